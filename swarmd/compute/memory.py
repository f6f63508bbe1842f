"""How many blocks fit: a sum that can be shown line by line. Pure."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["MemoryPlan"]

WORKSPACE_BYTES = 32 << 20
"""Activations of one prefill chunk and the allocator's slack; the trial step stays below it."""


@dataclass(frozen=True, slots=True)
class MemoryPlan:
    """What a node may use and what a block needs, in bytes."""

    limit: int
    block_bytes: int
    kv_token_bytes: int
    kv_tokens: int
    n_blocks: int
    workspace: int = WORKSPACE_BYTES

    @property
    def each_block(self) -> int:
        return self.block_bytes + self.kv_token_bytes * self.kv_tokens

    @property
    def blocks(self) -> int:
        """How many blocks fit, at most all; 0 if not even one does."""
        return max(0, min(self.n_blocks, (self.limit - self.workspace) // self.each_block))

    def explain(self) -> list[str]:
        """The sum, a line each."""
        cache = self.kv_token_bytes * self.kv_tokens
        return [
            f"memory for the model     {_mb(self.limit)}",
            f"  workspace             -{_mb(self.workspace)}",
            f"  one block's weights    {_mb(self.block_bytes)}",
            f"  one block's cache      {_mb(cache)}  ({self.kv_tokens} tokens)",
            f"  blocks that fit        {self.blocks} of {self.n_blocks}",
        ]


def _mb(value: int) -> str:
    return f"{value / 1e6:8.1f} MB"
