"""Drafts for one answer: from the text itself, from a draft model, and how much of them to send."""

from __future__ import annotations

import time
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Protocol

from swarmd.client.draft_length import DraftLength, Plan, Stage
from swarmd.client.prompt_lookup import PromptLookup

__all__ = [
    "DEFAULT_AHEAD",
    "DEFAULT_LONGEST",
    "Draft",
    "DraftStatistics",
    "Drafter",
    "Drafting",
    "default_longest",
]

DEFAULT_LONGEST = 7
"""With the token before them such drafts are still a decode step to a node's engine
(`Scheduler.decode_tokens`), which waits behind no prompt."""

DEFAULT_AHEAD = 3
"""Steps put in behind one that is not answered yet: with it as many as a session sends to a hop at
once (`swarmd.routing.replay.WINDOW`)."""

ASK_AGAIN = 24
"""Tokens after which a draft model that did not pay is asked for one token again."""


def default_longest(dtype: str) -> int:
    """How much is drafted unless somebody says so: nothing where rows of a batch round so
    differently from single ones that near ties fall the other way."""
    return DEFAULT_LONGEST if dtype == "float32" else 0


class Drafter(Protocol):
    """A model that drafts: up to `longest` tokens that may follow `token_ids`, fewer if it is not
    sure."""

    async def propose(self, token_ids: Sequence[int], longest: int) -> list[int]: ...


@dataclass(frozen=True, slots=True)
class Draft:
    """Tokens to send along, and more that are only compared with what comes (`unsent`)."""

    tokens: tuple[int, ...] = ()
    unsent: tuple[int, ...] = ()
    kind: Hashable = None


@dataclass(slots=True)
class DraftStatistics:
    """Of one answer: tokens that were sent along, those that were right, steps of decoding, and the
    tokens that those gave; steps that were put in ahead, and those of them that held."""

    sent: int = 0
    right: int = 0
    steps: int = 0
    tokens: int = 0
    ahead: int = 0
    held: int = 0


class Drafting:
    """Speculation for one answer: `draft`, then a step with its tokens, then `done`. While a step
    is under way, `next` gives the tokens of further ones, to be put in behind it."""

    def __init__(
        self, longest: int, model: Drafter | None = None, *, ahead: int = DEFAULT_AHEAD
    ) -> None:
        self.statistics = DraftStatistics()
        self.stage: Stage = lambda rows: 0.0
        """How long the slowest hop takes for a step; whoever runs the steps knows."""
        self._length = DraftLength(longest, ahead)
        self._lookup = PromptLookup()
        self._model = model
        self._silent = 0
        self._plan = Plan()

    @property
    def ahead(self) -> int:
        """How many steps are to be put in behind the one under way."""
        return self._plan.ahead

    @property
    def takes_time(self) -> bool:
        """Whether drafts are computed."""
        return self._model is not None

    async def draft(self, token_ids: Sequence[int], room: int) -> Draft:
        """What to send after `token_ids`, `room` tokens at most."""
        room = min(room, self._length.longest)
        self._plan = Plan()
        if room <= 0:
            return Draft()
        tokens, matched = self._lookup.propose(token_ids, room)
        if tokens:
            kind = ("lookup", matched)
            self._plan = self._length.plan(kind, self.stage)
            k = self._plan.tokens
            return Draft(tuple(tokens[:k]), tuple(tokens[k:]), kind)
        if self._model is None:
            return Draft()
        self._plan = self._length.plan("model", self.stage)
        k = min(room, self._plan.tokens)
        if k == 0 and not self._plan.ahead:
            self._silent += 1
            if self._silent < ASK_AGAIN:
                return Draft()
            k = 1
        self._silent = 0
        return Draft(tuple(await self._propose(token_ids, k)), (), "model")

    async def next(self, token_ids: Sequence[int], room: int) -> Draft:
        """The tokens of a step to put in behind all those of `token_ids`; none where nothing is
        likely enough."""
        room = min(room, self._length.longest + 1)
        if room <= 0:
            return Draft()
        tokens, matched = self._lookup.propose(token_ids, room)
        kind = ("lookup", matched) if tokens else "model"
        plan = self._length.plan(kind, self.stage)
        if not plan.ahead:
            return Draft()
        self._plan = plan
        if not tokens:
            tokens = await self._propose(token_ids, min(room, plan.tokens + 1))
        return Draft(tuple(tokens[: plan.tokens + 1]), (), kind)

    async def _propose(self, token_ids: Sequence[int], longest: int) -> list[int]:
        if self._model is None or longest <= 0:
            return []
        began = time.perf_counter()
        tokens = await self._model.propose(token_ids, longest)
        self._length.drafted(max(1, len(tokens)), time.perf_counter() - began)
        return tokens

    def put_in(self, tokens: int) -> None:
        """A step of so many drafted tokens was put in ahead."""
        self.statistics.ahead += 1
        self.statistics.sent += tokens

    def done(
        self,
        draft: Draft,
        came: Sequence[int],
        seconds: float,
        *,
        choosing: float = 0.0,
        went_on: bool = False,
        following: Draft | None = None,
    ) -> None:
        """The step with `draft` gave the tokens `came`, the last of which was not drafted rightly
        (or not at all, or begins `following`, which was put in behind it), in `seconds`, of which
        `choosing` went for the choice of tokens. `went_on`: the step had been put in ahead."""
        right, rows = len(_agreeing(draft.tokens, came)), 1 + len(draft.tokens)
        self.statistics.steps += 1
        self.statistics.tokens += len(came)
        self.statistics.right += right
        if went_on:
            self.statistics.held += 1
            self._length.followed(rows, seconds, self.stage, self._plan.ahead)
        else:
            self.statistics.sent += len(draft.tokens)
            self._length.took(rows, seconds)
        if not self._plan.ahead:
            self._length.alone()
        if choosing:
            self._length.chose(rows, choosing)
        if draft.tokens:
            self._length.checked(draft.kind, right, len(draft.tokens))
        elif draft.unsent and following is None:  # else it begins with them
            self._length.checked(draft.kind, int(draft.unsent[0] == came[0]), 1)
        if following is not None and right == len(draft.tokens) and len(came) == rows:
            first = int(following.tokens[0] == came[-1])
            self.statistics.right += first
            self._length.checked(following.kind, first, 1)


def _agreeing(drafted: Sequence[int], came: Sequence[int]) -> list[int]:
    agreeing = []
    for one, other in zip(drafted, came, strict=False):
        if one != other:
            break
        agreeing.append(one)
    return agreeing
