"""How fast the loaded blocks are: measured on them, not guessed, and remembered by device."""

from __future__ import annotations

import contextlib
import json
import statistics
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from swarmd.atomic_file import write_file
from swarmd.compute.block_span import BlockSpan
from swarmd.compute.sole_session import SoleSession
from swarmd.compute.turn_cost import TurnCost

__all__ = ["Throughput", "measure", "measured_or_cached"]

PREFILL_TOKENS = 64
DECODE_STEPS = 8


@dataclass(frozen=True, slots=True)
class Throughput:
    """Microseconds for one token through one block in decode, and in a chunk of a prefill."""

    decode_us: int
    prefill_us: int

    def turn_cost(self, *, batched: bool) -> TurnCost:
        """What the scheduler reckons with: a turn reads the weights once for all of its tokens,
        unless sessions run one by one."""
        if not batched:
            return TurnCost(0.0, float(self.decode_us))
        return TurnCost(float(max(0, self.decode_us - self.prefill_us)), float(self.prefill_us))


def measure(blocks: BlockSpan) -> Throughput:
    """Time a short prefill and decode steps through all of `blocks`, at a context of 64 tokens."""
    hidden = torch.randn(1, PREFILL_TOKENS, blocks.hidden_size) * 0.1
    session = SoleSession(blocks, 2 * PREFILL_TOKENS)
    session.step(hidden, 0)  # warms caches and allocators up
    prefill = _seconds(blocks, session, hidden, 0)
    decode = [
        _seconds(blocks, session, hidden[:, :1], PREFILL_TOKENS + n) for n in range(DECODE_STEPS)
    ]
    n_blocks = len(blocks.span)
    return Throughput(
        decode_us=max(1, round(1e6 * statistics.median(decode) / n_blocks)),
        prefill_us=max(1, round(1e6 * prefill / n_blocks / PREFILL_TOKENS)),
    )


def _seconds(blocks: BlockSpan, session: SoleSession, hidden: torch.Tensor, start: int) -> float:
    began = time.perf_counter()
    session.step(hidden, start)
    if blocks.device != "cpu":
        torch.cuda.synchronize(blocks.device)
    return time.perf_counter() - began


def measured_or_cached(blocks: BlockSpan, model_id: str, cache_file: Path) -> Throughput:
    """The remembered figures of this device, model, arithmetic and thread count, or new ones."""
    device = torch.cuda.get_device_name(blocks.device) if blocks.device != "cpu" else "cpu"
    key = f"{device}/{torch.get_num_threads()}/{torch.__version__}/{model_id}/{blocks.dtype}"
    if blocks.quantization != "none":
        key += f"/{blocks.quantization}"
    known: dict[str, dict[str, int]] = {}
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        known = dict(json.loads(cache_file.read_text()))
        found = known[key]
        return Throughput(decode_us=int(found["decode_us"]), prefill_us=int(found["prefill_us"]))
    result = measure(blocks)
    with contextlib.suppress(OSError):  # remembering is a convenience
        write_file(cache_file, json.dumps({**known, key: asdict(result)}, indent=1))
    return result
