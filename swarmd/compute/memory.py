"""How many blocks fit: a sum that can be shown line by line. Pure."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["MemoryPlan"]

WORKSPACE_BYTES = 16 << 20
"""The allocator's slack, and small things."""


@dataclass(frozen=True, slots=True)
class MemoryPlan:
    """What a node may use and what a block needs, in bytes. `kv_tokens` are whole pages;
    `output_bytes`, those of the outputs that are kept of shared beginnings, once for all blocks."""

    limit: int
    block_bytes: int
    kv_token_bytes: int
    kv_tokens: int
    n_blocks: int
    workspace: int = WORKSPACE_BYTES
    output_bytes: int = 0

    @property
    def each_block(self) -> int:
        return self.block_bytes + self.kv_token_bytes * self.kv_tokens

    @property
    def blocks(self) -> int:
        """How many blocks fit, at most all; 0 if not even one does."""
        left = self.limit - self.workspace - self.output_bytes
        return max(0, min(self.n_blocks, left // self.each_block))

    def room_beside(self, blocks: int) -> int:
        """Bytes that so many blocks leave."""
        needed = self.workspace + self.output_bytes + blocks * self.each_block
        return max(0, self.limit - needed)

    def explain(self) -> list[str]:
        """The sum, a line each."""
        cache = self.kv_token_bytes * self.kv_tokens
        return [
            f"memory for the model     {_mb(self.limit)}",
            f"  workspace             -{_mb(self.workspace)}",
            f"  kept outputs          -{_mb(self.output_bytes)}  ({self.kv_tokens} tokens)",
            f"  one block's weights    {_mb(self.block_bytes)}",
            f"  one block's cache      {_mb(cache)}  ({self.kv_tokens} tokens)",
            f"  blocks that fit        {self.blocks} of {self.n_blocks}",
        ]


def _mb(value: int) -> str:
    return f"{value / 1e6:8.1f} MB"
