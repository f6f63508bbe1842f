"""A session with a cache of its own, outside of any engine: what measurements run."""

from __future__ import annotations

import torch

from swarmd.blocks import Span
from swarmd.compute.block_span import BlockSpan
from swarmd.compute.ragged_batch import Piece

__all__ = ["SoleSession"]


class SoleSession:
    """Runs steps through `blocks` of a span, one after the other, of at most `limit` tokens."""

    def __init__(self, span: BlockSpan, limit: int, blocks: Span | None = None) -> None:
        """Raises BlocksNotHeld."""
        blocks = blocks or span.span
        span.check(blocks)
        self._span = span
        self.arena = span.new_arena(limit)
        self.cache = self.arena.new_cache(blocks, limit)

    def step(self, hidden: torch.Tensor, start: int | None = None) -> torch.Tensor:
        """Cut back to `start` (default: the position reached), append `hidden` (1, tokens, hidden
        size) and return what the blocks give, on their device. Raises PositionOutOfRange."""
        start = self.cache.position if start is None else start
        self.arena.copy_pages(self.cache.prepare(start, hidden.shape[1]), self.cache.blocks)
        (output,) = self._span.run(self.arena, [Piece(self.cache, start, hidden)])
        return output

    def skip(self, tokens: int) -> None:
        """Go on as if so many tokens had been run; what they would have stored is undefined."""
        self.cache.prepare(self.cache.position, tokens)
        self.cache.advance(tokens)
