"""How long turns wait for one another's sessions: tried out, by what comes of it. Pure.

Whether it pays that a turn waits depends on what a node cannot see: whether the other nodes of a
chain share its device, whether its clients answer at once. So a few patiences are tried in turn,
each for an *epoch* of some turns, and the one that gives the most rows a second is kept; the others
are tried again after ever longer times. Clients that decode ask for the next token when they have
the last one, so more rows a second are shorter waits for all of them.

| state | after | then |
|---|---|---|
| settling | some turns | measuring |
| measuring | an epoch | its rate is noted; settling with the next one, or the best for a rest |
| resting | some epochs | settling with the next one; the next rest is twice as long |
| any | `disturbed` | all rates are forgotten; settling with the first candidate |

What sessions do while settling is due to the patience before. Those that have met stay together, so
before a shorter patience is tried, some turns wait for nobody.
"""

from __future__ import annotations

__all__ = ["CANDIDATES", "PatienceSearch"]

CANDIDATES = (0.6, 0.1, 1.25)
"""Longest waits, in turns; the first one is taken until there is reason for another."""
APART = 6
"""Turns that wait for nobody, before a shorter patience than the one before is tried."""
SETTLE_TURNS = 14
EPOCH_TURNS = 16
EPOCH_SECONDS = 0.3
"""An epoch has at least so many turns and seconds: `bench/gathering.py` says what comes of it."""
BETTER = 1.03
"""So many times the rate of the one at hand is better: less is chance."""
FIRST_REST, LONGEST_REST = 8, 256
"""Epochs between two rounds of trials; doubled each time."""


class PatienceSearch:
    """Of one engine. Times are seconds of one monotonic clock."""

    def __init__(self) -> None:
        self._rates: dict[float, float] = {}
        self._best = self._next = CANDIDATES[0]
        self._rest = self._left = 0
        self.disturbed()

    @property
    def value(self) -> float:
        """The longest wait, in turns."""
        if self._turns < self._apart:
            return 0.0
        return self._next

    def disturbed(self) -> None:
        """Sessions came or went, or did something else than decode."""
        self._rates.clear()
        self._best = self._next = CANDIDATES[0]
        self._rest, self._left = FIRST_REST, 0
        self._settle(0)

    def _settle(self, apart: int) -> None:
        self._turns, self._rows, self._began, self._apart = 0, 0, 0.0, apart

    def ran(self, now: float, rows: int) -> None:
        """A turn of so many rows of decode steps is over."""
        self._turns += 1
        if self._turns == SETTLE_TURNS:
            self._began = now
        if self._turns <= SETTLE_TURNS:
            return
        self._rows += rows
        spent = now - self._began
        if self._turns >= SETTLE_TURNS + EPOCH_TURNS and spent >= EPOCH_SECONDS:
            before = self._next
            self._epoch(self._rows / spent)
            self._settle(APART if self._next < before else 0)

    def _epoch(self, rate: float) -> None:
        self._rates[self._next] = rate
        if self._left > 0:  # between rounds of trials
            self._left -= 1
            if self._left == 0:
                self._rates = {self._best: rate}
        untried = [one for one in CANDIDATES if one not in self._rates]
        if self._left == 0 and untried:
            self._next = untried[0]
            return
        if self._left == 0:
            most = max(self._rates.values())
            if most > BETTER * self._rates[self._best]:
                self._best = next(one for one in CANDIDATES if self._rates[one] == most)
            self._left, self._rest = self._rest, min(LONGEST_REST, 2 * self._rest)
        self._next = self._best
