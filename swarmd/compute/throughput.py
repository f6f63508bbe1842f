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
from swarmd.compute.ragged_batch import Piece
from swarmd.compute.sole_session import SoleSession
from swarmd.compute.turn_cost import TurnCost

__all__ = ["Throughput", "measure", "measured_or_cached"]

PREFILL_TOKENS = 64
LONG_TOKENS = 256
DECODE_STEPS = 8
BATCH = 8
LEAST_US = 0.01
"""Of a token more, which noise may make cheaper than nothing."""


@dataclass(frozen=True, slots=True)
class Throughput:
    """Microseconds for one token through one block in decode, and in a chunk of a prefill.

    `row_us` for each token more in a batch of decode steps, `piece_us` and `token_us` for a piece
    of a prefill that runs by itself beside decode steps, as on a GPU, and for each of its tokens
    (0: it does not; a piece rides along, and a token costs `prefill_us`).
    """

    decode_us: int
    prefill_us: int
    row_us: float = 0.0
    piece_us: float = 0.0
    token_us: float = 0.0

    def turn_cost(self, *, batched: bool) -> TurnCost:
        """What the scheduler reckons with: a turn reads the weights once for all of its tokens,
        unless sessions run one by one."""
        if not batched:
            return TurnCost(0.0, float(self.decode_us))
        row = min(self.row_us or float(self.prefill_us), float(self.decode_us))
        return TurnCost(
            self.decode_us - row, self.token_us or float(self.prefill_us), row, self.piece_us
        )


def measure(blocks: BlockSpan) -> Throughput:
    """Time a short prefill and decode steps through all of `blocks`, at a context of 64 tokens."""
    hidden = torch.randn(1, PREFILL_TOKENS, blocks.hidden_size) * 0.1
    session = SoleSession(blocks, 2 * PREFILL_TOKENS)
    session.step(hidden, 0)  # warms caches and allocators up
    prefill = _seconds(blocks, session, hidden, 0)
    decode = [
        _seconds(blocks, session, hidden[:, :1], PREFILL_TOKENS + n) for n in range(DECODE_STEPS)
    ]
    blocks.drop_graphs(session.arena)
    each_block = 1e6 / len(blocks.span)
    one = statistics.median(decode)
    row = each_block * (_batch_seconds(blocks) - one) / (BATCH - 1) if blocks.batched else 0.0
    piece_us = token_us = 0.0
    if blocks.pieces_run_alone:
        hidden = torch.randn(1, LONG_TOKENS, blocks.hidden_size) * 0.1
        session = SoleSession(blocks, LONG_TOKENS)
        session.step(hidden, 0)
        slope = (_seconds(blocks, session, hidden, 0) - prefill) / (LONG_TOKENS - PREFILL_TOKENS)
        token_us = max(LEAST_US, each_block * slope)
        piece_us = max(0.0, each_block * prefill - PREFILL_TOKENS * token_us)
    return Throughput(
        decode_us=max(1, round(each_block * one)),
        prefill_us=max(1, round(each_block * prefill / PREFILL_TOKENS)),
        row_us=max(LEAST_US, row),
        piece_us=piece_us,
        token_us=token_us,
    )


def _batch_seconds(blocks: BlockSpan) -> float:
    """Of a decode step of `BATCH` sessions together, as far along as the one that was measured."""
    arena = blocks.new_arena(2 * BATCH * PREFILL_TOKENS)
    caches = [arena.new_cache(blocks.span, 2 * PREFILL_TOKENS) for _ in range(BATCH)]
    hidden = torch.randn(1, 1, blocks.hidden_size) * 0.1
    for cache in caches:
        cache.prepare(0, PREFILL_TOKENS)
        cache.advance(PREFILL_TOKENS)
    times = []
    for _ in range(1 + DECODE_STEPS):
        pieces = [Piece(cache, cache.position, hidden) for cache in caches]
        for cache in caches:
            cache.prepare(cache.position, 1)
        began = time.perf_counter()
        blocks.run(arena, pieces)
        _wait_for(blocks)
        times.append(time.perf_counter() - began)
    blocks.drop_graphs(arena)
    return statistics.median(times[1:])


def _seconds(blocks: BlockSpan, session: SoleSession, hidden: torch.Tensor, start: int) -> float:
    began = time.perf_counter()
    session.step(hidden, start)
    _wait_for(blocks)
    return time.perf_counter() - began


def _wait_for(blocks: BlockSpan) -> None:
    if blocks.device != "cpu":
        torch.cuda.synchronize(blocks.device)


def measured_or_cached(blocks: BlockSpan, model_id: str, cache_file: Path) -> Throughput:
    """The remembered figures of this device, model, arithmetic and thread count, or new ones."""
    device = torch.cuda.get_device_name(blocks.device) if blocks.device != "cpu" else "cpu"
    key = f"{device}/{torch.get_num_threads()}/{torch.__version__}/{model_id}/{blocks.dtype}"
    if blocks.quantization != "none":
        key += f"/{blocks.quantization}"
    if blocks.packed_bytes:
        key += "/packed"
    known: dict[str, dict[str, float]] = {}
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        known = dict(json.loads(cache_file.read_text()))
        found = known[key]
        return Throughput(
            decode_us=int(found["decode_us"]),
            prefill_us=int(found["prefill_us"]),
            **{name: float(found[name]) for name in ("row_us", "piece_us", "token_us")},
        )
    result = measure(blocks)
    with contextlib.suppress(OSError):  # remembering is a convenience
        write_file(cache_file, json.dumps({**known, key: asdict(result)}, indent=1))
    return result
