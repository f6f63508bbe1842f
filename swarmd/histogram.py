"""Counts of values by size, as Prometheus' histograms hold them. Pure, and cheap to add to."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence

__all__ = ["SECONDS", "Histogram"]

SECONDS = (
    0.0005,
    0.001,
    0.0025,
    0.005,
    0.01,
    0.025,
    0.05,
    0.1,
    0.25,
    0.5,
    1.0,
    2.5,
    5.0,
    10.0,
    30.0,
)
"""From a decode step of few blocks on a GPU to a long prefill on a CPU."""


class Histogram:
    """How many values were at most each of `bounds` (ascending), and their sum."""

    __slots__ = ("_bounds", "_counts", "count", "sum")

    def __init__(self, bounds: Sequence[float] = SECONDS) -> None:
        if list(bounds) != sorted(set(bounds)):
            raise ValueError("bounds must ascend")
        self._bounds = tuple(bounds)
        self._counts = [0] * (len(bounds) + 1)
        self.count = 0
        self.sum = 0.0

    def observe(self, value: float) -> None:
        self._counts[bisect_left(self._bounds, value)] += 1
        self.count += 1
        self.sum += value

    def buckets(self) -> list[tuple[float, int]]:
        """Each bound, infinity last, and how many values were at most that."""
        found, total = [], 0
        for bound, count in zip((*self._bounds, float("inf")), self._counts, strict=True):
            total += count
            found.append((bound, total))
        return found
