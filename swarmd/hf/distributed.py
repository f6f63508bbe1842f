"""A stock model whose blocks are in the swarm: what all kinds of it share."""

from __future__ import annotations

import contextlib
import weakref
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from transformers import PretrainedConfig, PreTrainedModel

from swarmd.compute.ends import ModelEnds
from swarmd.errors import UsageError
from swarmd.hf.batch_inputs import Embeddings, new_columns
from swarmd.hf.cache import SwarmCache
from swarmd.hf.loop_thread import LoopThread
from swarmd.hf.row_sessions import Ran, RowStep
from swarmd.hf.rows import Feed, Plan
from swarmd.hf.swarm_link import SwarmLink

__all__ = ["DistributedModel", "Passed"]


@dataclass(frozen=True, slots=True)
class Passed:
    """A batch that went through the blocks."""

    hidden: torch.Tensor
    """After the last block, before the final norm: `(rows, columns, hidden size)`."""
    boundaries: tuple[int, ...]
    """The first block of each hop, if that was asked for; 0 comes first."""
    states: tuple[torch.Tensor, ...]
    """The inputs of those hops, in the shape of `hidden`."""


class DistributedModel(PreTrainedModel):
    """Embedding and head here, on the CPU; the blocks at peers. For inference.

    Calls block; they may come from several threads, also at the same time. `close`, leaving a
    `with` block, or the end of the program closes the connections.
    """

    _supports_sdpa = True
    main_input_name = "input_ids"

    def __init__(
        self,
        config: PretrainedConfig,
        ends: ModelEnds,
        loop: LoopThread[SwarmLink],
        *,
        max_positions: int,
    ) -> None:
        """`config` of the whole model; `ends` in the arithmetic of `loop.value`."""
        super().__init__(config)
        self.ends = ends
        self.max_positions = max_positions
        self.prelude = ends.prelude
        self.head = ends.head
        self._loop = loop
        self._active: list[SwarmCache] = []
        self._finalizer = weakref.finalize(self, loop.close)
        self._finalizer.atexit = False  # the loop sees to it itself
        super().train(False)

    # ---- what a program does with it -----------------------------------------------------------

    @contextlib.contextmanager
    def session(self, *, max_length: int) -> Iterator[SwarmCache]:
        """`with model.session(max_length=512) as session:` within it `generate` and calls of the
        model go on in the session's caches, from any thread.

        `generate` is given the whole text so far, and runs what is new of it; a call of the model
        is given the tokens that follow. `session.position` is how many columns there are,
        `session.cut(n)` keeps the first n. Raises UsageError beyond `max_length` positions.
        """
        session = SwarmCache(self._loop, max_positions=self.max_positions, max_length=max_length)
        self._active.append(session)
        try:
            yield session
        finally:
            self._active.remove(session)
            session.close()

    def close(self) -> None:
        """Close all sessions and connections, and the thread that has them. Idempotent."""
        self._finalizer()

    def __enter__(self) -> Any:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()

    def get_input_embeddings(self) -> torch.nn.Module:
        return self.ends.prelude.get_input_embeddings()

    def train(self, mode: bool = True) -> Any:
        """Raises UsageError for training."""
        if mode:
            raise UsageError("a distributed model is for inference: its blocks are at the peers")
        return super().train(False)

    def save_pretrained(self, *_args: Any, **_kwargs: Any) -> None:
        """Raises UsageError."""
        raise UsageError("a distributed model cannot be saved: its blocks are at the peers")

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> Any:
        """`to`, `half`, `cuda` and their like. Raises UsageError for a change."""
        now = torch.zeros(1, dtype=self.dtype)
        then = fn(now)
        if then.dtype != now.dtype or then.device != now.device:
            raise UsageError(
                f"the client's part of a distributed model stays on the CPU in {self.dtype}, the "
                "arithmetic of the peers; name another by dtype= of from_pretrained"
            )
        return self

    # ---- a batch through the blocks ------------------------------------------------------------

    @property
    def active_session(self) -> SwarmCache | None:
        """The session that calls without a cache go on in."""
        return self._active[-1] if self._active else None

    def new_cache(self) -> SwarmCache:
        """A cache that grows as far as the model's positions go."""
        return SwarmCache(self._loop, max_positions=self.max_positions)

    def through(
        self,
        cache: SwarmCache,
        *,
        input_ids: torch.Tensor | None,
        inputs_embeds: torch.Tensor | None,
        attention_mask: torch.Tensor | None,
        position_ids: torch.Tensor | None,
        keep: int | None = None,
        boundaries: bool = False,
    ) -> Passed:
        """Run new columns through the blocks; of the last `keep` (default: of all) the outputs are
        given. If a row fails, the cache is as before. Raises UsageError, NoRoute, and what
        :meth:`~swarmd.client.chain_session.ChainSession.step` raises."""
        with cache.alone():
            book = cache.book
            new = new_columns(
                book.columns, input_ids, inputs_embeds, attention_mask, position_ids,
                vocab_size=int(self.config.vocab_size), hidden_size=self.ends.hidden_size,
                embeddings=cache.embeddings,
            )  # fmt: skip
            kept = new.shape[1] if keep is None else min(keep, new.shape[1])
            room = cache.room_for(book.length_with(new))
            plan = book.plan(new, keep=kept)
            ran = self._loop.run(
                cache.sessions.run(
                    self._embedded(plan.feeds, cache.embeddings),
                    max_length=room,
                    surplus=plan.surplus,
                    boundaries=boundaries,
                )
            )
            done = []
            for feed, result in zip(plan.feeds, ran, strict=True):
                if isinstance(result, Ran):
                    book.ran(feed)
                    done.append(result)
            for result in ran:
                if not isinstance(result, Ran):
                    raise result
            book.commit(plan)
            cache.embeddings.keep(book.columns)
        return self._passed(plan, done, kept)

    def _embedded(self, feeds: Sequence[Feed], embeddings: Embeddings) -> list[RowStep]:
        """The inputs of the first block; feeds of one length are embedded together."""
        by_length: defaultdict[int, list[int]] = defaultdict(list)
        for index, feed in enumerate(feeds):
            by_length[len(feed.keys)].append(index)
        data: dict[int, bytes] = {}
        for length, group in by_length.items():
            keys = torch.from_numpy(np.stack([feeds[index].keys for index in group]))
            starts = torch.tensor([feeds[index].start for index in group])
            inputs = keys
            if (keys < 0).any():
                tokens = self.get_input_embeddings()(keys.clamp(min=0))
                inputs = tokens.detach().to(self.ends.torch_dtype).clone()
                for row, column in (keys < 0).nonzero().tolist():
                    inputs[row, column] = embeddings[int(keys[row, column])]
            hidden = self.ends.embed_rows(inputs, starts[:, None] + torch.arange(length))
            raw = hidden.contiguous().view(torch.uint8).numpy()
            data |= {index: row.tobytes() for index, row in zip(group, raw, strict=True)}
        return [
            RowStep(feed.slot, feed.start, len(feed.keys), data[index])
            for index, feed in enumerate(feeds)
        ]

    def _passed(self, plan: Plan, done: Sequence[Ran], kept: int) -> Passed:
        positions = torch.from_numpy(plan.positions(kept))

        def laid_out(parts: Sequence[bytes]) -> torch.Tensor:
            """Outputs of the feeds, each where its column stands."""
            shape = (*positions.shape, self.ends.hidden_size)
            table = torch.zeros(shape, dtype=self.ends.torch_dtype)
            for feed, raw in zip(plan.feeds, parts, strict=True):
                output = torch.frombuffer(bytearray(raw), dtype=self.ends.torch_dtype)
                output = output.reshape(-1, self.ends.hidden_size)
                at = positions[feed.row]
                table[feed.row, at >= 0] = output[at[at >= 0] - feed.start]
            return table

        hidden = laid_out([ran.output for ran in done])
        # rows may have other chains after a failure: a boundary counts if all have it
        have = [dict(ran.boundaries) for ran in done]
        shared = sorted(set.intersection(*(set(one) for one in have))) if have else []
        states = tuple(laid_out([one[block] for one in have]) for block in shared)
        return Passed(hidden, tuple(shared), states)
