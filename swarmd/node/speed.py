"""How fast this machine is, and what a node of it would announce: for `swarmd bench`."""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch

from swarmd.blocks import Span
from swarmd.compute.block_span import BlockSpan
from swarmd.compute.memory import MemoryPlan
from swarmd.compute.model_folder import ModelFolder
from swarmd.compute.throughput import Throughput, measure
from swarmd.config import DaemonConfig
from swarmd.node.memory_probe import memory_plan

__all__ = ["Speed", "memory_bandwidth", "speed"]

BANDWIDTH_BYTES = 128 << 20
"""Read at a time: more than the caches of most processors."""
BANDWIDTH_RUNS = 5


@dataclass(frozen=True, slots=True)
class Speed:
    """What was measured: `throughput` of the blocks of `span`, and `bandwidth` of the memory in
    bytes a second. `plan` says how many blocks fit."""

    folder: ModelFolder
    span: Span
    dtype: str
    throughput: Throughput
    bandwidth: float
    plan: MemoryPlan

    @property
    def decode_tokens_per_second(self) -> float:
        """Of one session through as many blocks as fit, as `swarmd peers` shows it."""
        return 1e6 / (self.throughput.decode_us * max(1, self.plan.blocks))

    @property
    def prefill_tokens_per_second(self) -> float:
        """The same for a prompt."""
        return 1e6 / (self.throughput.prefill_us * max(1, self.plan.blocks))

    @property
    def decode_bandwidth(self) -> float:
        """Bytes of weights a second that decoding reads: at most `bandwidth`, where nothing but
        the memory limits it."""
        return self.plan.block_bytes / (1e-6 * self.throughput.decode_us)


def speed(config: DaemonConfig, folder: ModelFolder, span: Span, dtype: str) -> Speed:
    """Load `span` and measure it as a node of as many blocks as fit would run it. Takes seconds.
    Raises ModelError, UnsupportedModel."""
    plan = memory_plan(config, folder, dtype)
    blocks = BlockSpan(
        folder, span, dtype=dtype, quantization=config.quantization, device=config.device
    )
    if config.device == "cpu" and plan.room_beside(plan.blocks) >= plan.blocks * plan.block_bytes:
        blocks.use_room(len(span) * plan.block_bytes)
    return Speed(
        folder,
        span,
        dtype,
        measure(blocks),
        memory_bandwidth(config.device),
        plan,
    )


def memory_bandwidth(device: str) -> float:
    """Bytes a second that a sum over a large tensor reads; the best of a few runs."""
    numbers = torch.ones(BANDWIDTH_BYTES // 4, dtype=torch.float32, device=device)
    best = 0.0
    for _ in range(BANDWIDTH_RUNS):
        began = time.perf_counter()
        numbers.sum()
        if device != "cpu":
            torch.cuda.synchronize(device)
        best = max(best, BANDWIDTH_BYTES / (time.perf_counter() - began))
    return best
