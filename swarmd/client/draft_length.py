"""How many drafted tokens to send along with the next one. Pure.

A step that verifies k drafted tokens yields 1 + a + a^2 + ... + a^k tokens on average, if each is
right with probability a given that those before it were (speculative decoding, arXiv:2211.17192),
and takes as long as one row, and k further ones, take through chain and head. Both are estimated
as the answer goes on; the k with the most tokens a second is taken, and 0 where none pays.

========================= ==================================================================
told                      estimated anew
========================= ==================================================================
`checked(kind, n, m)`     how often drafts of this kind are right: n of m tokens, up to the
                          first wrong one. Drafts that cost nothing are checked unsent as well,
                          so that a text which begins to repeat itself is noticed
`took(rows, seconds)`     a step of one row, and of each further row
`drafted(tokens, seconds)` what a drafted token costs to make
========================= ==================================================================
"""

from __future__ import annotations

from collections.abc import Hashable

__all__ = ["DraftLength"]

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


class DraftLength:
    """Of one answer. `longest` is the most that may be sent."""

    def __init__(self, longest: int) -> None:
        if longest < 0:
            raise ValueError(f"a draft of {longest} tokens")
        self.longest = longest
        self._right: dict[Hashable, float] = {}
        self._times = _Line()
        self._draft = 0.0

    def best(self, kind: Hashable) -> int:
        """How many tokens of a draft of this kind to send next; 0 until a step was timed."""
        if self._times.empty:
            return 0
        one, row = self._times.fit()
        right = self._right.get(kind, PRIOR_RIGHT)
        best, most, yielded = 0, GAIN / one, 1.0
        for k in range(1, self.longest + 1):
            yielded += right**k
            rate = yielded / (one + k * (row + self._draft))
            if rate > most:
                best, most = k, rate
        return best

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
