"""Whose turn it is among those who share one thing: start-time fair queueing, without a clock.

Each name has a *share*: what it has cost so far, counted from the moment when it joined. Whoever
has the smallest share is next. A name that comes back after a pause starts at the level that the
others have reached, so nobody saves up turns by waiting; and one that leaves and comes straight
back finds its own share again, so nobody gets rid of what it has cost. (Goyal, Vin and Cheng,
"Start-time Fair Queuing", 1996.)
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from typing import TypeVar

__all__ = ["FairQueue"]

T = TypeVar("T", bound=Hashable)


class FairQueue:
    """Shares by name. Costs are of any one unit; the engine's are seconds."""

    def __init__(self) -> None:
        self._shares: dict[Hashable, float] = {}
        self._level = 0.0

    def __len__(self) -> int:
        """Names that are remembered: those that were ever ahead of the level."""
        return len(self._shares)

    def share(self, name: Hashable) -> float:
        """What `name` has cost so far; at least the level that the others have reached."""
        return max(self._level, self._shares.get(name, 0.0))

    def pick(self, waiting: Iterable[T]) -> T:
        """The one of `waiting` whose turn it is; of equals the first. `waiting` is not empty."""
        chosen = min(waiting, key=self.share)
        self._level = max(self._level, self._shares.get(chosen, 0.0))
        return chosen

    def charge(self, name: Hashable, cost: float) -> None:
        """Count what a turn of `name` cost (at least 0), and forget all who are not ahead."""
        self._shares[name] = max(self._level, self._shares.get(name, 0.0)) + max(0.0, cost)
        self._shares = {name: share for name, share in self._shares.items() if share > self._level}

    def clear(self) -> None:
        """Nobody waits any more: all begin anew."""
        self._shares.clear()
        self._level = 0.0
