"""Drafts from what the text repeats: no model, no cost.

Where the last tokens occurred before, what followed them there is likely to follow again: names,
quotations, code that is edited, text that is summarised (prompt lookup decoding, A. Saxena, 2023;
LLMA, arXiv:2304.04487). The longest match counts, and of several the latest.
"""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["LONGEST_MATCH", "SHORTEST_MATCH", "PromptLookup"]

SHORTEST_MATCH = 2
"""Tokens: a single one that occurred before says little of what follows."""

LONGEST_MATCH = 5
"""Tokens: longer matches are told apart from these by nothing."""


class PromptLookup:
    """Of one text that grows by tokens, and may be cut back."""

    def __init__(self) -> None:
        self._known: list[int] = []
        self._ends: dict[tuple[int, ...], list[int]] = {}  # after which positions a phrase stood

    def propose(self, token_ids: Sequence[int], longest: int) -> tuple[list[int], int]:
        """Up to `longest` tokens that may follow `token_ids`, and the length of the match; nothing
        and 0 without one. Takes time by what has changed since the last call."""
        self._learn(token_ids)
        end = len(token_ids)
        for length in range(min(LONGEST_MATCH, end - 1), SHORTEST_MATCH - 1, -1):
            earlier = self._ends[tuple(token_ids[end - length :])]
            if len(earlier) > 1:  # the last one is the end itself
                start = earlier[-2]
                # Of a phrase that runs into the end, what comes after it is the phrase again.
                period = end - start
                return [token_ids[start + i % period] for i in range(longest)], length
        return [], 0

    def _learn(self, token_ids: Sequence[int]) -> None:
        same = min(len(self._known), len(token_ids))
        while same and self._known[same - 1] != token_ids[same - 1]:
            same -= 1
        while len(self._known) > same:
            for phrase in self._phrases(self._known, len(self._known)):
                self._ends[phrase].pop()
            self._known.pop()
        for token in token_ids[same:]:
            self._known.append(token)
            for phrase in self._phrases(self._known, len(self._known)):
                self._ends.setdefault(phrase, []).append(len(self._known))

    @staticmethod
    def _phrases(tokens: Sequence[int], end: int) -> list[tuple[int, ...]]:
        lengths = range(SHORTEST_MATCH, min(LONGEST_MATCH, end) + 1)
        return [tuple(tokens[end - length : end]) for length in lengths]
