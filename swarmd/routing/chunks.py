"""Into chunks of which size a prompt is cut on its way through a chain. Pure.

Chunks flow: while one hop computes a chunk, the one before it computes the next, and others travel.
Small chunks fill that pipeline sooner; but each costs its hop a pass over the weights and a trip.
What a size takes is the time of the first chunk through all stages, and then the slowest stage's
for each further one (Narayanan et al., arXiv:2104.04473, section 2.2, for the same trade in
training).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from swarmd.routing.chain import Hop
from swarmd.routing.cost import Costs
from swarmd.routing.replay import WINDOW

__all__ = ["FIXED_STEPS", "SIZES", "HopPace", "chunk_size", "paces", "prefill_seconds"]

SIZES = (32, 64, 128, 256, 512)
"""Positions of a chunk that are tried. Under 32 the weights' pass outweighs all else on any
hardware; over 512 a chunk is a long wait for the other sessions of a peer."""

FIXED_STEPS = 2.5
"""What a chunk costs beside its positions, in steps of one position. Those are made to be fast for
one row; by `bench.quantize`, eight rows took 3.1 of them and 256 rows 20, which is a line through
2.5."""


@dataclass(frozen=True, slots=True)
class HopPace:
    """Seconds at one hop: `fixed` for each chunk however short, `each` for a position of it,
    `transfer` for its bytes one way, `trip` for a round trip from the client."""

    fixed: float
    each: float
    transfer: float
    trip: float

    def compute(self, tokens: int) -> float:
        return self.fixed + tokens * self.each


def paces(hops: Sequence[Hop], costs: Costs) -> list[HopPace]:
    """What is known of each hop: `fixed` follows from a step of one position, `each` is what a
    position of a long chunk takes."""
    return [
        HopPace(
            fixed=FIXED_STEPS * costs.run(hop.peer, len(hop.span)),
            each=costs.run(hop.peer, len(hop.span), SIZES[-1]) / SIZES[-1],
            transfer=costs.transfer(hop.peer.peer_id, 1),
            trip=costs.client_rtt(hop.peer.peer_id),
        )
        for hop in hops
    ]


def prefill_seconds(hops: Sequence[HopPace], tokens: int, size: int) -> float:
    """Predicted seconds of `tokens` positions in chunks of `size`, each answered to the client,
    whose own line carries the outputs of all hops."""
    size = min(size, tokens)
    compute = [hop.compute(size) for hop in hops]
    first = sum(compute) + sum(hop.trip + 2 * size * hop.transfer for hop in hops)
    line = size * sum(hop.transfer for hop in hops)
    # Of each hop only so many chunks are under way, so a long trip slows the flow as well.
    flow = [
        max(one, (one + hop.trip + 2 * size * hop.transfer) / WINDOW)
        for one, hop in zip(compute, hops, strict=True)
    ]
    return first + (math.ceil(tokens / size) - 1) * max(line, *flow)


def chunk_size(hops: Sequence[HopPace], tokens: int) -> int:
    """The size of those in `SIZES` that is predicted to be done first; of equals the longest."""
    return min(reversed(SIZES), key=lambda size: prefill_seconds(hops, tokens, size))
