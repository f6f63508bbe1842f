"""What `generate` takes for the model's cache: a table of tokens here, the caches in the swarm."""

from __future__ import annotations

import contextlib
import copy
import threading
import weakref
from collections.abc import Iterator
from typing import Any

import torch
from transformers import Cache

from swarmd.errors import UsageError
from swarmd.hf.batch_inputs import Embeddings
from swarmd.hf.loop_thread import LoopThread
from swarmd.hf.row_sessions import RowSessions
from swarmd.hf.rows import RowBook
from swarmd.hf.swarm_link import SwarmLink

__all__ = ["SwarmCache"]


class SwarmCache(Cache):
    """`past_key_values` of a distributed model. Keys and values lie at the peers, in a session a
    row; here is which tokens they stand for (:class:`~swarmd.hf.rows.RowBook`).

    So cutting back, reordering and repeating rows send nothing, a copy costs nothing, and a cache
    whose sessions were closed still works: the next step runs its tokens again. The sessions are
    closed by `close`, and when the cache is dropped. One thread at a time (UsageError).
    """

    def __init__(
        self,
        loop: LoopThread[SwarmLink],
        *,
        max_positions: int,
        max_length: int | None = None,
    ) -> None:
        """`max_positions` of the model; `max_length` is a limit on positions that the user set
        (None: the cache grows). Raises UsageError for a `max_length` that the model cannot have."""
        super().__init__(layers=[])
        if max_length is not None and not 1 <= max_length <= max_positions:
            raise UsageError(f"max_length {max_length}: this model has {max_positions} positions")
        self.book = RowBook()
        self.sessions = RowSessions(loop.value)
        self.embeddings = Embeddings()
        self.max_length = max_length
        self._max_positions = max_positions
        self._reserved = 0
        self.loop = loop
        self._busy = threading.RLock()
        weakref.finalize(self, loop.post, self.sessions.close).atexit = False

    # ---- what the library's `generate` calls ---------------------------------------------------

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Columns so far, padding included."""
        return self.book.n_columns

    def get_max_length(self, layer_idx: int | None = None) -> int:
        """Columns that fit; −1 without a limit of the user's."""
        return -1 if self.max_length is None else self.max_length

    def get_mask_sizes(self, query_length: int, layer_idx: int) -> tuple[int, int]:
        return self.book.n_columns + query_length, 0

    def crop(self, tokens_to_remove: int) -> None:
        """As the library's: −n takes the last n columns away. Raises UsageError."""
        if tokens_to_remove > 0:
            raise UsageError("crop takes a negative number; cut(n) keeps the first n")
        self.cut(max(0, self.book.n_columns + tokens_to_remove))

    def reorder_cache(self, beam_idx: torch.Tensor) -> None:
        self.book.select([int(row) for row in beam_idx])

    def batch_repeat_interleave(self, repeats: int) -> None:
        self.book.select([row for row in range(self.book.n_rows) for _ in range(repeats)])

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        self.book.select(torch.arange(self.book.n_rows)[indices].tolist())

    def reset(self) -> None:
        """Forget all columns."""
        self.book.clear()

    def update(self, *_args: Any, **_kwargs: Any) -> tuple[torch.Tensor, torch.Tensor]:
        """Raises UsageError: another model was given this cache."""
        raise UsageError("this cache holds no tensors: it is for the distributed model it is of")

    @property
    def batch_size(self) -> int:
        return self.book.n_rows or -1

    @property
    def is_compileable(self) -> bool:
        return False

    @property
    def is_initialized(self) -> bool:
        return self.book.n_columns > 0

    @property
    def is_croppable(self) -> bool:
        return True

    def __len__(self) -> int:
        """Layers that are held here."""
        return 0

    def __bool__(self) -> bool:
        return True

    def __repr__(self) -> str:
        return f"{type(self).__name__}(rows={self.book.n_rows}, columns={self.book.n_columns})"

    def __deepcopy__(self, memo: dict[int, Any]) -> SwarmCache:
        """The same tokens, without sessions as yet."""
        copied = SwarmCache(
            self.loop, max_positions=self._max_positions, max_length=self.max_length
        )
        copied.book.columns = self.book.columns.copy()
        copied.embeddings = copy.copy(self.embeddings)
        memo[id(self)] = copied
        return copied

    # ---- what users call -----------------------------------------------------------------------

    @property
    def position(self) -> int:
        """Columns so far."""
        return self.book.n_columns

    def cut(self, position: int) -> None:
        """Keep the first `position` columns. Raises UsageError if there are not so many."""
        try:
            self.book.cut(position)
        except ValueError as error:
            raise UsageError(f"cut({position}): there are {self.position} columns") from error

    def close(self) -> None:
        """Close the sessions; the peers free their caches. The cache can be used again. Waits for
        another thread that is at a step."""
        with self._busy:
            self.book.lose_slots()
            if self.sessions.n_open:
                with contextlib.suppress(UsageError):  # the model is closed, and all with it
                    self.loop.run(self.sessions.close())

    # ---- what the model calls ------------------------------------------------------------------

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        """For a step, or for all of a generation. Raises UsageError while another thread has it."""
        if not self._busy.acquire(blocking=False):
            raise UsageError("this session is in use by another thread; give each its own")
        try:
            yield
        finally:
            self._busy.release()

    def reserve(self, length: int) -> None:
        """The sessions will need this many positions, and probably no more."""
        self._reserved = max(self._reserved, length)

    def room_for(self, length: int) -> int:
        """How long sessions are to be opened for a step that ends at position `length`; if those
        that are open are shorter, they are closed and their tokens run again. Raises UsageError
        beyond the limits."""
        if length > self._max_positions:
            raise UsageError(f"{length} tokens: this model has {self._max_positions} positions")
        if self.max_length is not None and length > self.max_length:
            raise UsageError(
                f"{length} tokens: this session was opened for {self.max_length}; give a larger "
                "max_length, or cut it back"
            )
        if self.sessions.n_open and length > self.sessions.max_length:
            self._reserved = max(self._reserved, 2 * self.sessions.max_length)
            self.close()
        # what is not known to end here will probably go on
        wanted = self.max_length or max(self._reserved, length if self._reserved else 2 * length)
        return min(wanted, self._max_positions)
