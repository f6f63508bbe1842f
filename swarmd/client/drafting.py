"""Drafts for one answer: from the text itself, from a draft model, and how much of them to send."""

from __future__ import annotations

import time
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Protocol

from swarmd.client.draft_length import DraftLength
from swarmd.client.prompt_lookup import PromptLookup

__all__ = ["DEFAULT_LONGEST", "Draft", "DraftStatistics", "Drafter", "Drafting", "default_longest"]

DEFAULT_LONGEST = 7
"""With the token before them such drafts are still a decode step to a node's engine
(`Scheduler.decode_tokens`), which waits behind no prompt."""

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
    """Of one answer: tokens that were sent along, those that were right, and steps of decoding."""

    sent: int = 0
    right: int = 0
    steps: int = 0


class Drafting:
    """Speculation for one answer: `draft`, then a step with its tokens, then `done`."""

    def __init__(self, longest: int, model: Drafter | None = None) -> None:
        self.statistics = DraftStatistics()
        self._length = DraftLength(longest)
        self._lookup = PromptLookup()
        self._model = model
        self._silent = 0

    async def draft(self, token_ids: Sequence[int], room: int) -> Draft:
        """What to send after `token_ids`, `room` tokens at most."""
        room = min(room, self._length.longest)
        if room <= 0:
            return Draft()
        tokens, matched = self._lookup.propose(token_ids, room)
        if tokens:
            kind = ("lookup", matched)
            k = self._length.best(kind)
            return Draft(tuple(tokens[:k]), tuple(tokens[k:]), kind)
        if self._model is None:
            return Draft()
        k = min(room, self._length.best("model"))
        if k == 0:
            self._silent += 1
            if self._silent < ASK_AGAIN:
                return Draft()
            k = 1
        self._silent = 0
        began = time.perf_counter()
        tokens = await self._model.propose(token_ids, k)
        self._length.drafted(max(1, len(tokens)), time.perf_counter() - began)
        return Draft(tuple(tokens), (), "model")

    def done(self, draft: Draft, came: Sequence[int], seconds: float) -> None:
        """The step with `draft` gave the tokens `came`, the last of which was not drafted rightly
        (or not at all), in `seconds`."""
        right = len(_agreeing(draft.tokens, came))
        self.statistics.steps += 1
        self.statistics.sent += len(draft.tokens)
        self.statistics.right += right
        self._length.took(1 + len(draft.tokens), seconds)
        if draft.tokens:
            self._length.checked(draft.kind, right, len(draft.tokens))
        elif draft.unsent:
            self._length.checked(draft.kind, int(draft.unsent[0] == came[0]), 1)


def _agreeing(drafted: Sequence[int], came: Sequence[int]) -> list[int]:
    agreeing = []
    for one, other in zip(drafted, came, strict=False):
        if one != other:
            break
        agreeing.append(one)
    return agreeing
