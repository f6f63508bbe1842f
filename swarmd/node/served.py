"""What a node serves, and what it has served so far."""

from __future__ import annotations

from dataclasses import dataclass, field

from swarmd.compute.scheduler import DECODE_TOKENS
from swarmd.histogram import Histogram
from swarmd.peers import ModelId

__all__ = ["PHASES", "ServedModel", "Statistics"]

PHASES = ("prefill", "decode")


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
    """Counts since start. Bytes are those of payloads: hidden states as they travel."""

    connections: int = 0
    sessions: int = 0
    steps: int = 0
    tokens: int = 0
    refusals: int = 0
    bytes_in: int = 0
    bytes_out: int = 0
    compute: dict[str, Histogram] = field(
        default_factory=lambda: {phase: Histogram() for phase in PHASES}
    )
    """Seconds that a step took in the blocks, by phase; together with others of its turns."""
    queue: dict[str, Histogram] = field(
        default_factory=lambda: {phase: Histogram() for phase in PHASES}
    )
    """Seconds that a step waited for its turns, by phase."""

    def ran(self, tokens: int, queue_seconds: float, compute_seconds: float) -> None:
        """A step of `tokens` tokens was run."""
        self.steps += 1
        self.tokens += tokens
        phase = "decode" if tokens <= DECODE_TOKENS else "prefill"
        self.compute[phase].observe(compute_seconds)
        self.queue[phase].observe(queue_seconds)
