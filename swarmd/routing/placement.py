"""Which blocks a peer should hold: the rule of Petals, made safe for peers that join together.

A peer takes the window of blocks that the swarm serves worst: of all windows of its size the one
whose blocks' summed throughputs, sorted ascending, are lexicographically lowest, ties to the
lowest start (Borzunov et al., "Petals", 2022, section 3.2; `petals/server/block_selection.py`).

Speeds are announced, not proven. They are clamped, so a lie can make blocks look well served,
but a peer of unknown speed never looks like a hole.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from math import fsum
from random import Random
from statistics import median

from swarmd.blocks import Span
from swarmd.identity import PeerId
from swarmd.peers import PeerInfo, PeerState

__all__ = [
    "block_throughput",
    "choose_span",
    "entry_delay",
    "should_move",
    "should_rechoose",
]

DEFAULT_DECODE_US = (
    20_000  # one token through one block on an ordinary CPU; where nobody's is known
)
_FASTEST_US, _SLOWEST_US = 5, 60_000_000  # no hardware is faster; slower is of no use


def block_throughput(peers: Iterable[PeerInfo], n_blocks: int) -> list[float]:
    """For each block, the summed tokens a second of the peers that hold it or claim to.

    Each ONLINE or JOINING peer adds 1e6 / `decode_us` to every block of its span; DRAINING and
    GONE ones add nothing. A peer that has not measured itself yet (it is still loading) counts as
    the median of those that have: any fixed guess would make one loading peer look like many
    others, or like none. The sums do not depend on the order of `peers`.
    """
    counted = [peer for peer in peers if peer.state in (PeerState.ONLINE, PeerState.JOINING)]
    known = [peer.decode_us for peer in counted if peer.decode_us > 0]
    typical = median(known) if known else DEFAULT_DECODE_US
    shares: list[list[float]] = [[] for _ in range(n_blocks)]
    for peer in counted:
        decode_us = peer.decode_us if peer.decode_us > 0 else typical
        speed = 1e6 / min(max(decode_us, _FASTEST_US), _SLOWEST_US)
        for block in range(peer.span.start, min(peer.span.end, n_blocks)):
            shares[block].append(speed)
    return [fsum(share) for share in shares]


def choose_span(throughputs_by_block: Sequence[float], count: int) -> Span:
    """The window of `count` consecutive blocks that is served worst; ties to the lowest start.

    Raises ValueError unless 1 <= count <= number of blocks.
    """
    n_blocks = len(throughputs_by_block)
    if not 1 <= count <= n_blocks:
        raise ValueError(f"cannot choose {count} of {n_blocks} blocks")
    start = min(
        range(n_blocks - count + 1),
        key=lambda start: sorted(throughputs_by_block[start : start + count]),
    )
    return Span(start, start + count)


def should_rechoose(
    own_span: Span,
    own_claim: tuple[int, PeerId],
    others: Sequence[PeerInfo],
    count: int,
    n_blocks: int,
    seen: Mapping[PeerId, Span] | None = None,
) -> Span | None:
    """Where a JOINING peer should go instead, after claims made at the same time came to light.

    `own_claim` is (sequence, PeerId) of this peer's newest announcement. ONLINE peers and those
    whose claim is earlier are taken as given; the later ones yield to us, by the same rule.
    `seen` are the claims that the own choice took into account, PeerId to span: where the span
    is still that one the claim is given too, for a peer that loads for minutes renews its
    announcement meanwhile, and its sequence then says nothing of who came first.

    Returns the span that :func:`choose_span` gives then, if it is another one than `own_span`,
    else None. Call it between claiming and loading, once others' claims had time to arrive.
    After a move announce it (a new, later claim), wait and call it again, until it returns None.
    When it does so for all, every peer stands where :func:`choose_span` puts it given those
    before it: the outcome of joining one after the other, in the order of the final claims.
    """
    seen = seen or {}
    given = [
        peer
        for peer in others
        if peer.state is PeerState.ONLINE
        or (peer.sequence, peer.peer_id) < own_claim
        or seen.get(peer.peer_id) == peer.span
    ]
    better = choose_span(block_throughput(given, n_blocks), count)
    return None if better == own_span else better


def should_move(
    current: Span,
    others: Sequence[PeerInfo],
    own_throughput: float,
    n_blocks: int,
    gain: float = 1 / 3,
) -> Span | None:
    """Where an ONLINE peer should move its blocks, or None to stay.

    `others` is the swarm without this peer; `own_throughput` its tokens a second through one
    block. A window qualifies only if each block that it gives up is held by another ONLINE peer
    (a claim may fail), so no move opens a hole. Of those the one that leaves the swarm's block
    throughputs, sorted ascending, lexicographically highest is the candidate, ties to the lowest
    start. It is worth the reload if the lowest throughput rises by more than the share `gain`,
    or, where the swarm has holes, if fewer blocks are without a peer afterwards.
    """
    without = block_throughput(others, n_blocks)
    held = block_throughput((p for p in others if p.state is PeerState.ONLINE), n_blocks)

    def served(span: Span) -> list[float]:
        return sorted(
            speed + own_throughput if block in span else speed
            for block, speed in enumerate(without)
        )

    candidates = [
        span
        for span in (Span(i, i + len(current)) for i in range(n_blocks - len(current) + 1))
        if span != current and all(held[block] > 0 for block in current if block not in span)
    ]
    if own_throughput <= 0 or not candidates:
        return None
    target = max(candidates, key=lambda span: (served(span), -span.start))
    before, after = served(current), served(target)
    if before[0] > 0:
        return target if after[0] > before[0] * (1 + gain) else None
    return target if after.count(0.0) < before.count(0.0) else None


def entry_delay(rng: Random, max_seconds: float) -> float:
    """Seconds to wait before claiming, uniform in [0, max_seconds): peers started by one script
    then see each other's claims, most of the time."""
    return rng.random() * max(max_seconds, 0.0)
