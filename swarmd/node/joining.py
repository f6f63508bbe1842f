"""Which blocks a node takes, and how it claims them without colliding with others."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from swarmd.blocks import BlockRequest, Span
from swarmd.compute.memory import MemoryPlan
from swarmd.errors import BlocksOutOfRange
from swarmd.identity import PeerId
from swarmd.peers import PeerInfo
from swarmd.routing.placement import (
    block_throughput,
    choose_span,
    entry_delay,
    should_rechoose,
)

__all__ = ["Claims", "block_count", "choose_blocks"]

log = logging.getLogger(__name__)

MAX_RECHOICES = 8
"""The earliest claim never moves, so this many rounds settle far more joiners than one meets."""


def block_count(request: BlockRequest, plan: MemoryPlan) -> int:
    """How many blocks to take for `auto` or a count. Raises BlocksOutOfRange if they do not fit."""
    wanted = request.count or plan.blocks
    if plan.blocks == 0:
        raise BlocksOutOfRange(
            "not even one block fits:\n  " + "\n  ".join(plan.explain()) + "\n"
            "give more by --memory, or less cache by --kv-tokens"
        )
    if wanted > plan.blocks:
        raise BlocksOutOfRange(
            f"--blocks {wanted}: only {plan.blocks} fit:\n  " + "\n  ".join(plan.explain()) + "\n"
            "take fewer, give more by --memory, or less cache by --kv-tokens"
        )
    return wanted


@dataclass(frozen=True, slots=True)
class Claims:
    """How a node sees and makes claims: `fetch` the others', `claim` a span as JOINING (returns
    the claim's sequence number)."""

    fetch: Callable[[], Awaitable[Sequence[PeerInfo]]]
    claim: Callable[[Span], Awaitable[int]]


async def choose_blocks(
    claims: Claims,
    peer_id: PeerId,
    *,
    count: int,
    n_blocks: int,
    delay: float,
    settle: float,
    rng: random.Random,
) -> Span:
    """Choose and claim `count` blocks where the swarm needs them most.

    A short random delay makes it likely that nodes which start together see one another's
    claims; what still collides is settled by age (see :func:`should_rechoose`).
    """
    await asyncio.sleep(entry_delay(rng, delay))

    async def others() -> list[PeerInfo]:
        return [peer for peer in await claims.fetch() if peer.peer_id != peer_id]

    known = await others()
    seen = {peer.peer_id: peer.span for peer in known}
    span = choose_span(block_throughput(known, n_blocks), count)
    sequence = await claims.claim(span)
    for _ in range(MAX_RECHOICES):
        await asyncio.sleep(settle)
        known = await others()
        better = should_rechoose(span, (sequence, peer_id), known, count, n_blocks, seen)
        if better is None:
            return span
        log.info("others claimed blocks %s at the same time; taking %s", span, better)
        seen = {peer.peer_id: peer.span for peer in known}
        span = better
        sequence = await claims.claim(span)
    return span
