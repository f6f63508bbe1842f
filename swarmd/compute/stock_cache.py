"""One session's pages as the stock modules' cache, for models that attend in their own way."""

from __future__ import annotations

from typing import Any

import torch
from transformers.cache_utils import Cache, CacheLayerMixin

from swarmd.compute.kv_arena import KvArena
from swarmd.compute.ragged_batch import Piece

__all__ = ["StockCache"]


class _Layer(CacheLayerMixin):
    """One block's part: appends to the session's pages and returns all positions up to there."""

    is_sliding = False
    is_croppable = True

    def __init__(self, arena: KvArena, block: int, piece: Piece) -> None:
        super().__init__()
        self.is_initialized = True
        self._arena, self._block, self._piece = arena, block, piece
        self.length = piece.start

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        """The memory is there already."""

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *_args: Any, **_kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Append `(1, heads, new, width)` and return all valid positions."""
        end = self.length + key_states.shape[-2]
        cache, offset = self._piece.cache, 0
        keys, values = self._arena.keys[self._block], self._arena.values[self._block]
        for run in cache.slots(self.length, end):
            part = slice(offset, offset + run.count)
            keys[:, run.start : run.start + run.count] = key_states[0, :, part]
            values[:, run.start : run.start + run.count] = value_states[0, :, part]
            offset += run.count
        self.length = end
        all_keys, all_values = self._arena.read(self._block, cache.slots(0, end))
        return all_keys.unsqueeze(0), all_values.unsqueeze(0)

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.length + query_length, 0

    def get_seq_length(self) -> int:
        return self.length

    def get_max_length(self) -> int:
        return -1

    def crop(self, tokens_to_remove: int) -> None:
        self.length = max(0, self.length - abs(tokens_to_remove))


class StockCache(Cache):
    """The cache of a run of `n_blocks` blocks that begin at `first_block` of the arena."""

    def __init__(self, arena: KvArena, first_block: int, n_blocks: int, piece: Piece) -> None:
        super().__init__(
            layers=[_Layer(arena, first_block + index, piece) for index in range(n_blocks)]
        )
