"""The memory of the attention cache: taken once at start, so that it is there when it is needed."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch

from swarmd.blocks import Span
from swarmd.compute.kv_cache import KvBudget, SessionCache, Slots
from swarmd.compute.pages import PAGE_TOKENS, PagePool, pages_for

__all__ = ["KvArena", "KvShape"]


@dataclass(frozen=True, slots=True)
class KvShape:
    """What one block stores for a position: `heads` keys and as many values of these widths."""

    heads: int
    key_width: int
    value_width: int
    dtype: torch.dtype

    @property
    def token_bytes(self) -> int:
        return self.heads * (self.key_width + self.value_width) * self.dtype.itemsize


class KvArena:
    """Keys and values of `tokens` positions (rounded up to whole pages) in each of `blocks`.

    Buffers have the shape (heads, positions, width), so a run of pages is one slice of them; one
    page more, from `scratch_slot` on, takes what nobody reads.
    `outputs`, (pages, positions in a page, hidden size), on the CPU, has what named pages gave.
    """

    def __init__(
        self,
        blocks: Span,
        shapes: Sequence[KvShape],
        tokens: int,
        *,
        device: str,
        hidden_size: int,
        hidden_dtype: torch.dtype,
    ) -> None:
        self.blocks = blocks
        self.pool = PagePool(pages_for(tokens))
        self.tokens = self.pool.n_pages * PAGE_TOKENS
        self.scratch_slot = self.tokens
        places = self.tokens + PAGE_TOKENS
        self.keys = [
            _taken((shape.heads, places, shape.key_width), shape.dtype, device) for shape in shapes
        ]
        self.values = [
            _taken((shape.heads, places, shape.value_width), shape.dtype, device)
            for shape in shapes
        ]
        self.outputs = _taken((self.pool.n_pages, PAGE_TOKENS, hidden_size), hidden_dtype, "cpu")

    @property
    def free(self) -> int:
        """Positions for which there is room."""
        return self.pool.available * PAGE_TOKENS

    def new_cache(self, blocks: Span, limit: int, budget: KvBudget | None = None) -> SessionCache:
        return SessionCache(blocks, limit, self.pool, budget)

    def copy_pages(self, pages: Iterable[tuple[int, int]], blocks: Span) -> None:
        """Copy whole pages, given as (from, to), in all of `blocks`."""
        for source, target in pages:
            old = slice(source * PAGE_TOKENS, (source + 1) * PAGE_TOKENS)
            new = slice(target * PAGE_TOKENS, (target + 1) * PAGE_TOKENS)
            for index in range(blocks.start - self.blocks.start, blocks.end - self.blocks.start):
                self.keys[index][:, new] = self.keys[index][:, old]
                self.values[index][:, new] = self.values[index][:, old]

    def read(self, block: int, slots: Sequence[Slots]) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values (heads, positions, width) in these places: a view if it is one run."""
        keys, values = self.keys[block], self.values[block]
        if len(slots) == 1:
            (run,) = slots
            return (
                keys.narrow(1, run.start, run.count),
                values.narrow(1, run.start, run.count),
            )
        return (
            torch.cat([keys.narrow(1, run.start, run.count) for run in slots], dim=1),
            torch.cat([values.narrow(1, run.start, run.count) for run in slots], dim=1),
        )


def _taken(shape: tuple[int, ...], dtype: torch.dtype, device: str) -> torch.Tensor:
    """Zeroed memory that is really there: systems give memory out only when it is written to."""
    return torch.empty(shape, dtype=dtype, device=device).zero_()
