"""What a client knows of the links from hop to hop: their length, and which do not work. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Literal

from swarmd.identity import PeerId

__all__ = ["Edges", "Route"]

Route = Literal["auto", "ring", "hub"]
"""Whether hops forward their outputs to one another: where that is cheaper; wherever they can; not
at all."""

MAX_EDGES = 4096
LEFT_ALONE = 60.0
"""Seconds for which a link that failed is not tried again."""

_Pair = tuple[PeerId, PeerId]


class Edges:
    """Round trips in seconds by (source, target), and pairs that failed. `now` is handed in, in
    monotonic seconds; the least recent of 4,096 pairs is forgotten."""

    def __init__(self) -> None:
        self._rtts: dict[_Pair, float] = {}
        self._bad_until: dict[_Pair, float] = {}

    def measured(self, source: PeerId, target: PeerId, seconds: float) -> None:
        """`source` linked itself to `target`, and says how long a round trip takes."""
        if math.isfinite(seconds) and seconds >= 0:
            _put(self._rtts, (source, target), seconds)
            self._bad_until.pop((source, target), None)

    def failed(self, source: PeerId, target: PeerId, now: float) -> None:
        _put(self._bad_until, (source, target), now + LEFT_ALONE)

    def is_bad(self, source: PeerId, target: PeerId, now: float) -> bool:
        """Whether it failed a short while ago."""
        return now < self._bad_until.get((source, target), -math.inf)

    def rtts(self, now: float) -> Mapping[_Pair, float]:
        """The round trips; infinite for a link that does not work now."""
        bad = {pair: math.inf for pair, until in self._bad_until.items() if now < until}
        return {**self._rtts, **bad}


def _put(table: dict[_Pair, float], pair: _Pair, value: float) -> None:
    table.pop(pair, None)
    table[pair] = value
    while len(table) > MAX_EDGES:
        del table[next(iter(table))]
