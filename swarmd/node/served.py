"""What a node serves, and what it has served so far."""

from __future__ import annotations

from dataclasses import dataclass

from swarmd.peers import ModelId

__all__ = ["ServedModel", "Statistics"]


@dataclass(frozen=True, slots=True)
class ServedModel:
    """The model of which the node serves blocks."""

    model_id: ModelId
    name: str
    n_blocks: int
    hidden_size: int
    max_positions: int
    dtype: str
    quantization: str = "none"


@dataclass(slots=True)
class Statistics:
    """Counts since start."""

    connections: int = 0
    sessions: int = 0
    steps: int = 0
    tokens: int = 0
    refusals: int = 0
