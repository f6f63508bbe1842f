"""How many drafted tokens to send along with the next one, and how many steps ahead. Pure.

A step that verifies k drafted tokens yields 1 + a + a^2 + ... + a^k tokens on average, if each is
right with probability a given that those before it were (speculative decoding, arXiv:2211.17192),
and takes as long as one row, and k further ones, take through chain and head. Both are estimated
as the answer goes on; the k with the most tokens a second is taken, and 0 where none pays.

Where trips are long, m more steps of k + 1 drafted tokens may be put in behind that one before it
is answered. They hold as long as all drafts were right, and the choice after them too, which has
probability q = a^(k + 1). A step T that follows a wrong one takes the whole trip; one that follows
a right one comes G later, which is no less than the slowest stage (a hop, or the choice of tokens
here) takes, nor than T / (m + 1). So a step takes (1 - q) T + q G on average.

========================= ==================================================================
told                      estimated anew
========================= ==================================================================
`checked(kind, n, m)`     how often drafts of this kind are right: n of m tokens, up to the
                          first wrong one. Drafts that cost nothing are checked unsent as well,
                          so that a text which begins to repeat itself is noticed
`took(rows, seconds)`     a step of one row, and of each further row
`followed(rows, seconds)` how much longer than G a step takes that was put in ahead
`chose(rows, seconds)`    the choice of tokens, of one row, and of each further row
`drafted(tokens, seconds)` what a drafted token costs to make
========================= ==================================================================
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import TypeAlias

__all__ = ["DraftLength", "Plan", "Stage"]

PRIOR_RIGHT = 0.6
"""Of a kind of draft that was never checked."""

PRIOR_ROW = 0.1
"""What a further row costs, as a share of a step of one, before any was measured."""

PRIOR_STRENGTH = 0.1
"""Of that share against measured steps; one step of two rows among ones of one weighs about 1."""

WEIGHT = 0.15
"""Of a new sample in an estimate: some ten tokens are remembered."""

STALL = 3.0
"""A step that took more than so many times what was expected says nothing of the next ones: a hop
was replaced. It counts as this many times."""

GAIN = 1.03
"""So much faster must a draft promise to be, before it is sent at all."""


AHEAD_GAIN = 1.05
"""So much more must each further step ahead promise: what is wrong of it is work for nothing."""

LATEST = 8.0
"""A gap that took more than so many times what was reckoned counts as this many times."""

FORGET = 0.02
"""Of what is known of the gaps, at each step without any: they are tried again some day."""

Stage: TypeAlias = Callable[[int], float]
"""Seconds that the slowest hop takes for a step of so many rows."""


@dataclass(frozen=True, slots=True)
class Plan:
    """So many drafted tokens in a step, and so many steps put in behind it."""

    tokens: int = 0
    ahead: int = 0


class DraftLength:
    """Of one answer. `longest` is the most that may be sent in a step, `ahead` the most steps that
    may be put in behind one."""

    def __init__(self, longest: int, ahead: int = 0) -> None:
        if longest < 0 or ahead < 0:
            raise ValueError(f"a draft of {longest} tokens, {ahead} steps ahead")
        self.longest = longest
        self.ahead = ahead
        self._right: dict[Hashable, float] = {}
        self._times, self._choices = _Line(), _Line()
        self._draft = 0.0
        self._late = 1.0  # how much longer gaps are than reckoned

    def plan(self, kind: Hashable, stage: Stage) -> Plan:
        """What to send next of drafts of this kind; nothing until a step was timed."""
        if self._times.empty:
            return Plan()
        one, row = self._times.fit()
        right = self._right.get(kind, PRIOR_RIGHT)
        best, most = Plan(), 1 / one
        for ahead in range(self.ahead + 1):
            rates = [
                (self._rate(one, row, right, Plan(k, ahead), stage), Plan(k, ahead))
                for k in range(0 if ahead else 1, self.longest + 1)
            ]
            rate, plan = max(rates, key=lambda each: each[0], default=(0.0, best))
            if rate > most * (AHEAD_GAIN if ahead else GAIN):
                best, most = plan, rate
        return best

    def _rate(self, one: float, row: float, right: float, plan: Plan, stage: Stage) -> float:
        """Tokens a second."""
        k = plan.tokens
        yielded = sum(right**i for i in range(k + 1))
        trip = one + k * (row + self._draft)
        if not plan.ahead:
            return yielded / trip
        again = right ** (k + 1)
        gap = self._late * self._gap(trip, k, plan.ahead, stage)
        return yielded / ((1 - again) * trip + again * gap)

    def _gap(self, trip: float, k: int, ahead: int, stage: Stage) -> float:
        drafting = (k + 1) * self._draft
        return max(trip / (ahead + 1), stage(k + 1), self._choice(k + 1), drafting)

    def _choice(self, rows: int) -> float:
        if self._choices.empty:
            return 0.0
        one, row = self._choices.fit()
        return one + (rows - 1) * row

    def checked(self, kind: Hashable, right: int, sent: int) -> None:
        """Of `sent` drafted tokens the first `right` were those that came."""
        if not 0 <= right <= sent:
            raise ValueError(f"{right} of {sent} tokens")
        for sample in [1.0] * right + [0.0] * (right < sent):
            known = self._right.get(kind, PRIOR_RIGHT)
            self._right[kind] = known + WEIGHT * (sample - known)

    def took(self, rows: int, seconds: float) -> None:
        """A step of `rows` tokens, the drafted ones among them, took so long."""
        if not self._times.empty:
            one, row = self._times.fit()
            seconds = min(seconds, STALL * (one + (rows - 1) * row))
        self._times.add(rows - 1, seconds)

    def followed(self, rows: int, seconds: float, stage: Stage, ahead: int) -> None:
        """A step of `rows` tokens that was put in ahead, one of so many, came so much later than
        the one before it."""
        if self._times.empty:
            return
        one, row = self._times.fit()
        due = self._gap(one + (rows - 1) * row, rows - 1, max(1, ahead), stage)
        sample = min(seconds / due, LATEST) if due else 1.0
        self._late = max(1.0, self._late + WEIGHT * (sample - self._late))

    def alone(self) -> None:
        """A step had none put in behind it."""
        self._late += FORGET * (1.0 - self._late)

    def chose(self, rows: int, seconds: float) -> None:
        """The choice of tokens after a step of `rows`, and the embedding of the next ones, took so
        long."""
        self._choices.add(rows - 1, seconds)

    def drafted(self, tokens: int, seconds: float) -> None:
        """To draft so many tokens took so long; not to be told of drafts that cost nothing."""
        if tokens > 0:
            self._draft += (WEIGHT if self._draft else 1.0) * (seconds / tokens - self._draft)


class _Line:
    """Seconds by further rows, as a line through the recent steps (least squares, with a slope
    that is drawn towards the prior one where they do not tell)."""

    def __init__(self) -> None:
        self._n = self._x = self._xx = self._y = self._xy = 0.0

    @property
    def empty(self) -> bool:
        return self._n == 0.0

    def add(self, further: int, seconds: float) -> None:
        x, y = float(further), max(seconds, 1e-6)
        sums = (self._n, self._x, self._xx, self._y, self._xy)
        new = (1.0, x, x * x, y, x * y)
        self._n, self._x, self._xx, self._y, self._xy = (
            (1 - WEIGHT) * old + one for old, one in zip(sums, new, strict=True)
        )

    def fit(self) -> tuple[float, float]:
        """Seconds of one row, above zero, and of each further one, at least zero."""
        mean_x, mean_y = self._x / self._n, self._y / self._n
        prior = PRIOR_ROW * mean_y / (1 + PRIOR_ROW * mean_x)
        spread = max(0.0, self._xx - self._x * mean_x)
        row = (self._xy - self._x * mean_y + PRIOR_STRENGTH * prior) / (spread + PRIOR_STRENGTH)
        row = min(max(0.0, row), mean_y / (1 + mean_x))  # no row costs more than a first one
        return mean_y - row * mean_x, row
