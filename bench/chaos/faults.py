"""When which node suffers what: a pure function of a seed.

The rule: while nodes are harmed, each block is held by one that is not. A killed node counts as
harmed until it had `RESTART` seconds to serve again, so most repairs find a peer at once; the
runner waits for one that takes longer.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum

from swarmd.blocks import Span

__all__ = ["Fault", "Kind", "covered", "schedule"]

RESTART = 6.0
"""Seconds that a killed daemon is given to serve again."""


class Kind(StrEnum):
    """What happens to a node."""

    KILL = "kill"
    """SIGKILL, then a new daemon with the same blocks."""
    MOVE = "move"
    """SIGKILL, then a new daemon with other blocks."""
    STOP = "stop"
    """SIGSTOP, and SIGCONT after a while."""
    CUT = "cut"
    """All its connections are reset."""
    MUTE = "mute"
    """Nothing that it sends arrives for a while; what is sent to it does."""
    DEAF = "deaf"
    """Nothing that is sent to it arrives for a while; what it sends does."""
    CORRUPT = "corrupt"
    """One bit of the next bytes that it sends is flipped."""
    SLOW = "slow"
    """Everything to and from it is late for a while."""


SECONDS = {
    Kind.STOP: (3.0, 8.0), Kind.MUTE: (3.0, 8.0), Kind.DEAF: (3.0, 8.0), Kind.SLOW: (2.0, 6.0),
}  # fmt: skip
"""How long a fault lasts, from and to; what is not named lasts no time."""


@dataclass(frozen=True, slots=True)
class Fault:
    """`at` and `seconds` on the schedule's clock; `victim` counts the nodes from 0; `span` is what
    it holds afterwards."""

    at: float
    kind: Kind
    victim: int
    seconds: float
    span: Span

    @property
    def over(self) -> float:
        """When the node is as it should be again."""
        return self.at + self.seconds + (RESTART if self.kind in (Kind.KILL, Kind.MOVE) else 0.0)


def covered(spans: Iterator[Span] | Sequence[Span], n_blocks: int) -> bool:
    """Whether each block is in one of `spans`."""
    held = set().union(*(range(span.start, span.end) for span in spans))
    return held >= set(range(n_blocks))


def schedule(
    seed: int, seconds: float, spans: Sequence[Span], n_blocks: int, *, pause: float = 3.0
) -> list[Fault]:
    """Faults in order of time that all begin within `seconds`, `pause` seconds apart on average.

    `spans` are what the nodes hold at first. Each kind comes before any comes twice, as far as the
    rule lets it. Raises ValueError if the rule lets nobody be harmed.
    """
    rng = random.Random(seed)
    held, busy = list(spans), [0.0] * len(spans)
    found: list[Fault] = []
    kinds: list[Kind] = []
    at = rng.uniform(0.5, 1.5) * pause
    if not any(_others_cover(node, held, busy, 0.0, n_blocks) for node in range(len(held))):
        raise ValueError("no node can be harmed: each holds blocks that no other one holds")
    while at < seconds:
        if not kinds:
            kinds = rng.sample(list(Kind), len(Kind))
        victims = [
            node for node in range(len(held))
            if busy[node] <= at and _others_cover(node, held, busy, at, n_blocks)
        ]  # fmt: skip
        if victims:
            kind, victim = kinds.pop(), rng.choice(victims)
            length = rng.uniform(*SECONDS.get(kind, (0.0, 0.0)))
            if kind is Kind.MOVE:
                others = sorted(set(spans) - {held[victim]}, key=lambda span: span.start)
                held[victim] = rng.choice(others) if others else held[victim]
            fault = Fault(at, kind, victim, length, held[victim])
            busy[victim] = fault.over
            found.append(fault)
        at += rng.uniform(0.5, 1.5) * pause
    return found


def _others_cover(
    node: int, held: Sequence[Span], busy: Sequence[float], at: float, n_blocks: int
) -> bool:
    return covered(
        [span for other, span in enumerate(held) if other != node and busy[other] <= at], n_blocks
    )
