"""When a session leaves its chain for a better one, in the middle of an answer. Pure.

A move is a replay of all positions on other peers, beside the running answer. It is worth that only
if the other chain is clearly better, stays so, and enough of the answer is left. `now` is handed
in, in monotonic seconds.

======== ====================================== ============================== ====================
state    meaning                                leaves by                      next
======== ====================================== ============================== ====================
resting  the session began, or was moved, or    `due`: its rest is over, and   watching
         a move was dropped, a short while ago  enough steps were measured
watching no better chain was seen at the last   `looked`: one is better        favoured
         look
favoured a better one was seen, in fewer looks  `looked`: one is better again, moving
         in a row than are wanted               and this is the last look
                                                `looked`: none is              watching
moving   that chain is made ready               `ended`: it was, or was not    resting
any      but moving                             `disturbed`: a hop was lost    watching
======== ====================================== ============================== ====================

What a step costs on the present chain is what it was measured to cost. What it would cost elsewhere
is predicted, and a prediction leaves things out: so the least by which predictions of the present
chain ever fell short of what was measured is added to it. Before the move is made, a few steps on
the new chain are measured as well (`confirms`).

The margin is what keeps a session from going to and fro: as long as the errors of measurement and
prediction are within half of it, of two equal chains neither is better than the other by all of it.
"""

from __future__ import annotations

import enum
import math
from collections import deque
from dataclasses import dataclass
from random import Random

__all__ = ["Offer", "ReplanConfig", "Replanning"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplanConfig:
    """Times in seconds."""

    look_every: float = 3.0
    """Between two looks at what else there is; longer by up to a half, so that clients differ."""
    look_steps: int = 8
    """Steps between two looks at least: so many say how fast the chain is."""
    window: int = 16
    """The last steps, whose mean is what a step costs."""
    margin: float = 0.2
    """The share of a step's time that must be saved. Peers that differ by less are alike, as far
    as announcements a minute old can tell."""
    least_gain: float = 0.005
    """Saved in each step at least: a reader does not notice less."""
    looks: int = 2
    """In a row that have to see something better: a hiccup is over by then."""
    view_age: float = 10.0
    """A look has older announcements fetched anew. A node announces itself when it joins, and once
    a minute."""
    rest: float = 10.0
    """After a move; doubled by each further one, and by each that was dropped."""
    longest_rest: float = 320.0


@dataclass(frozen=True, slots=True)
class Offer:
    """What a look found, in predicted seconds: a step on the present chain, one on the best other
    chain, and until all positions are replayed there."""

    present: float
    other: float
    replay: float


class _State(enum.Enum):
    WATCHING = enum.auto()  # or resting: until `_not_before`
    FAVOURED = enum.auto()
    MOVING = enum.auto()


class Replanning:
    """The decisions of one session."""

    def __init__(self, config: ReplanConfig, now: float, rng: Random) -> None:
        self._config = config
        self._rng = rng
        self._state = _State.WATCHING
        self._steps: deque[tuple[int, float]] = deque(maxlen=config.window)
        self._since_look = 0
        self._made = 0
        self._seen = 0
        self._left_out = math.inf  # what predictions leave out, at most
        self._rest = config.rest
        self._not_before = -math.inf
        self._pause(now, config.look_every)

    @property
    def is_moving(self) -> bool:
        return self._state is _State.MOVING

    @property
    def step_seconds(self) -> float:
        """What a step took of late, on average; 0 where none was measured."""
        return sum(seconds for _, seconds in self._steps) / max(1, len(self._steps))

    @property
    def step_tokens(self) -> int:
        """How many positions a step ran of late: more than one with drafts."""
        return max(1, round(sum(tokens for tokens, _ in self._steps) / max(1, len(self._steps))))

    def stepped(self, tokens: int, seconds: float) -> None:
        """A decode step succeeded, with nothing unusual about it."""
        self._steps.append((tokens, seconds))
        self._since_look += 1
        self._made += 1

    def disturbed(self, now: float) -> None:
        """A hop was lost and replaced: what was measured says nothing of the chain as it is now."""
        self._forget()
        if not self.is_moving:
            self._watch()
            self._pause(now, self._config.look_every)

    def due(self, now: float) -> bool:
        """Whether to look for something better."""
        measured = min(self._since_look, len(self._steps)) >= self._config.look_steps
        return measured and now >= self._not_before and not self.is_moving

    def postpone(self, now: float) -> None:
        """A look begins, or cannot be had now: the next one is due later."""
        self._since_look = 0
        self._pause(now, self._config.look_every)

    def looked(self, offer: Offer | None, left: int, now: float) -> bool:
        """A look found `offer`, or nothing but the present chain, when at most `left` more
        positions were to come. Whether to move: then the session is moving until `ended`."""
        if self.is_moving:
            raise ValueError("a look during a move")
        self.postpone(now)
        if offer is None or not self._is_better(offer, left):
            self._watch()
            return False
        self._seen += 1
        self._state = _State.FAVOURED
        if self._seen < self._config.looks:
            return False
        self._state = _State.MOVING
        return True

    def confirms(self, seconds: float) -> bool:
        """Whether a step that was measured to take so long on the new chain still saves most of
        what was hoped for: half of the margin, which is what measuring may err by."""
        saved = self.step_seconds - seconds
        return 2 * saved > max(self._config.margin * self.step_seconds, self._config.least_gain)

    def ended(self, now: float, *, moved: bool) -> None:
        """The move was made, or dropped. Either way the next one is a longer rest away, so that
        one that disappoints again and again costs less and less."""
        if moved:
            self._forget()
        self._since_look = 0
        self._watch()
        self._pause(now, self._rest)
        self._rest = min(2 * self._rest, self._config.longest_rest)

    def _is_better(self, offer: Offer, left: int) -> bool:
        present = self.step_seconds
        self._left_out = min(self._left_out, max(0.0, present - offer.present))
        gain = present - (offer.other + self._left_out)
        if not gain > max(self._config.margin * present, self._config.least_gain):
            return False
        # Nobody knows how long an answer gets: as a rule as long again as it is by now.
        steps = min(left / self.step_tokens, max(self._made, self._config.window))
        after = steps - offer.replay / present
        return after * gain > offer.replay

    def _forget(self) -> None:
        """It is another chain now."""
        self._steps.clear()
        self._since_look = 0
        self._left_out = math.inf

    def _watch(self) -> None:
        self._seen = 0
        self._state = _State.WATCHING

    def _pause(self, now: float, seconds: float) -> None:
        until = now + seconds * self._rng.uniform(1.0, 1.5)
        self._not_before = max(self._not_before, until)
