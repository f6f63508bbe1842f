"""One session's attention cache over a span, with position semantics, and the node's budget.

"Step at p" means: cut the cache back to p, then append. A cut is a change of one integer, so a
retry, a rejected draft and a replay cost nothing here. All layers keep all positions, also those
with a sliding window: the library's masks do the windowing, and a cut back into a window that
has been dropped already would be impossible.
"""

from __future__ import annotations

import threading
from typing import Any

import torch
from transformers.cache_utils import Cache, CacheLayerMixin

from swarmd.errors import Busy, PositionOutOfRange

__all__ = ["GROWTH_TOKENS", "KvBudget", "SessionCache"]

GROWTH_TOKENS = 256
"""A session reserves room in units of this many tokens."""


class KvBudget:
    """How many tokens all sessions of a node, or of one client of it, may hold in each block.
    What a part takes counts in its `whole` as well. Thread-safe."""

    def __init__(self, tokens: int, *, whole: KvBudget | None = None) -> None:
        self.tokens = tokens
        self._used = 0
        self._whole = whole
        self._lock = threading.Lock()

    @property
    def free(self) -> int:
        own = self.tokens - self._used
        return own if self._whole is None else min(own, self._whole.free)

    def take(self, tokens: int) -> None:
        """Reserve room. Raises Busy, and reserves nothing, when there is not enough."""
        with self._lock:
            if self._used + tokens > self.tokens:
                whose = "the attention cache" if self._whole is None else "your share of the cache"
                raise Busy(
                    f"{whose} is full: {self.tokens - self._used} of {self.tokens} tokens are "
                    f"free, {tokens} more are needed",
                    retry_after=1.0,
                )
            if self._whole is not None:
                self._whole.take(tokens)
            self._used += tokens

    def give_back(self, tokens: int) -> None:
        with self._lock:
            self._used -= tokens
        if self._whole is not None:
            self._whole.give_back(tokens)


class _Layer(CacheLayerMixin):
    """Keys and values of one block; `length` positions are valid. The buffers grow in the units
    in which room is reserved, so no more is allocated than the budget counts."""

    is_sliding = False
    is_croppable = True

    def __init__(self, limit: int) -> None:
        super().__init__()
        self.limit = limit
        self.length = 0

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        self.dtype, self.device = key_states.dtype, key_states.device
        capacity = rounded_room(key_states.shape[-2], self.limit)
        self.keys = _grown(key_states, 0, capacity)
        self.values = _grown(value_states, 0, capacity)
        self.is_initialized = True

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Append `(rows, heads, new, width)` and return all valid positions, as views."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        end = self.length + key_states.shape[-2]
        if end > self.keys.shape[-2]:
            capacity = rounded_room(end, self.limit)
            self.keys = _grown(self.keys, self.length, capacity)
            self.values = _grown(self.values, self.length, capacity)
        self.keys[:, :, self.length : end] = key_states
        self.values[:, :, self.length : end] = value_states
        self.length = end
        return self.keys[:, :, :end], self.values[:, :, :end]

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.length + query_length, 0

    def get_seq_length(self) -> int:
        return self.length

    def get_max_length(self) -> int:
        return -1

    def crop(self, tokens_to_remove: int) -> None:
        self.length = max(0, self.length - abs(tokens_to_remove))


class SessionCache(Cache):
    """The cache of one session over `n_blocks` blocks; `limit` is its greatest length in tokens."""

    def __init__(self, n_blocks: int, limit: int, budget: KvBudget) -> None:
        super().__init__(layers=[_Layer(limit) for _ in range(n_blocks)])
        self.layers: list[_Layer]
        self.limit = limit
        self.position = 0
        self._budget = budget
        self._reserved = 0

    def prepare(self, start: int, tokens: int) -> None:
        """Cut back to `start` and make room for `tokens` more.

        Raises PositionOutOfRange (nothing is cut) when `start` lies beyond what is held or the
        end lies beyond the limit, and Busy when the node has no room.
        """
        if start > self.position:
            raise PositionOutOfRange(
                f"step at {start}, but the cache holds only {self.position} positions"
            )
        end = start + tokens
        if end > self.limit:
            raise PositionOutOfRange(f"step ends at {end}; the session was opened for {self.limit}")
        needed = rounded_room(end, self.limit) - self._reserved
        if needed > 0:
            self._budget.take(needed)
            self._reserved += needed
        self.cut(start)

    def cut(self, position: int) -> None:
        """Forget everything from `position` on."""
        self.position = min(position, self.position)
        for layer in self.layers:
            layer.length = min(position, layer.length)

    def advance(self, tokens: int) -> None:
        """Record that `tokens` more positions went through all blocks."""
        self.position += tokens

    def close(self) -> None:
        """Give the memory and the reservation back. Idempotent."""
        self._budget.give_back(self._reserved)
        self._reserved = 0
        self.position = 0
        self.layers = []


def rounded_room(tokens: int, limit: int) -> int:
    """The room in tokens that a session of `tokens` takes: whole units, at most its limit."""
    return max(tokens, min(-(-tokens // GROWTH_TOKENS) * GROWTH_TOKENS, limit))


def _grown(old: torch.Tensor, length: int, capacity: int) -> torch.Tensor:
    rows, heads, _, width = old.shape
    new = old.new_empty((rows, heads, capacity, width))
    new[:, :, :length] = old[:, :, :length]
    return new
