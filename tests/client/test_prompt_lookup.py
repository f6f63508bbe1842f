"""Drafts from repetition: what followed the last tokens where they stood before."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from swarmd.client.prompt_lookup import LONGEST_MATCH, SHORTEST_MATCH, PromptLookup


def test_what_followed_before_is_proposed() -> None:
    assert PromptLookup().propose([1, 2, 3, 4, 5, 9, 1, 2, 3], 2) == ([4, 5], 3)


def test_the_longest_match_wins_and_then_the_latest() -> None:
    text = [7, 1, 2, 30, 8, 1, 2, 40, 9, 1, 2, 50, 8, 1, 2]
    assert PromptLookup().propose(text, 1) == ([40], 3)
    assert PromptLookup().propose([1, 2, 30, 5, 1, 2, 40, 6, 1, 2], 1) == ([40], 2)


def test_a_text_that_repeats_itself_is_continued_beyond_its_end() -> None:
    assert PromptLookup().propose([5, 1, 2, 1, 2, 1, 2], 5)[0] == [1, 2, 1, 2, 1]


def test_nothing_is_proposed_without_a_match() -> None:
    assert PromptLookup().propose([1, 2, 3, 4, 2], 4) == ([], 0)
    assert PromptLookup().propose([], 4) == ([], 0)
    assert PromptLookup().propose([1], 4) == ([], 0)


def naive(text: list[int], longest: int) -> tuple[list[int], int]:
    end = len(text)
    for length in range(min(LONGEST_MATCH, end - 1), SHORTEST_MATCH - 1, -1):
        for start in range(end - 1, length - 1, -1):
            if text[start - length : start] == text[end - length :]:
                found = list(text)
                for _ in range(longest):
                    found.append(found[start + len(found) - end])
                return found[end:], length
    return [], 0


texts = st.lists(st.integers(0, 3), max_size=40)


@given(texts=st.lists(texts, min_size=1, max_size=4), longest=st.integers(1, 9))
def test_it_equals_a_plain_search_however_the_text_changes(
    texts: list[list[int]], longest: int
) -> None:
    lookup = PromptLookup()
    for text in texts:
        for end in range(len(text) + 1):
            assert lookup.propose(text[:end], longest) == naive(text[:end], longest)
        assert lookup.propose(text[: len(text) // 2], longest) == naive(
            text[: len(text) // 2], longest
        )
