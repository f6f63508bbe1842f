"""How many drafted tokens are sent: by what trips cost, and by how often drafts are right."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from swarmd.client.draft_length import DraftLength


def settled(
    one: float, row: float, right: float, *, longest: int = 7, draft: float = 0.0
) -> DraftLength:
    """After many steps of which each takes `one` and `row` seconds a further token, with drafts
    of which each token is right with probability `right` (in turn, not by chance)."""
    length, owed = DraftLength(longest), 0.0
    for number in range(200):
        rows = 1 + number % (longest + 1)
        length.took(rows, one + (rows - 1) * row)
        owed += right
        length.checked("kind", int(owed), 1)
        owed -= int(owed)
        if draft:
            length.drafted(1, draft)
    return length


def test_nothing_is_sent_before_a_step_was_timed() -> None:
    length = DraftLength(7)
    assert length.best("kind") == 0
    length.took(1, 0.1)
    assert length.best("kind") > 0


def test_drafts_that_are_always_right_are_sent_whole_where_rows_cost_little() -> None:
    assert settled(0.2, 0.005, 1.0).best("kind") == 7


def test_drafts_that_are_always_wrong_are_not_sent() -> None:
    length = settled(0.2, 0.005, 0.0)
    assert length.best("kind") == 0
    assert length.best("another kind") > 0


def test_a_row_that_costs_as_much_as_a_step_pays_for_nothing() -> None:
    assert settled(0.03, 0.03, 0.9).best("kind") == 0


def test_a_slow_draft_model_does_not_pay() -> None:
    assert settled(0.03, 0.001, 0.9).best("kind") > 0
    assert settled(0.03, 0.001, 0.9, draft=0.04).best("kind") == 0


def test_a_stall_is_forgotten() -> None:
    length = settled(0.05, 0.04, 0.8)
    before = length.best("kind")
    length.took(1, 30.0)
    for number in range(60):
        length.took(1 + number % 4, 0.05 + 0.04 * (number % 4))
    assert length.best("kind") == before


speeds = st.floats(1e-4, 10, allow_nan=False)
rates = st.floats(0, 1)


@given(speeds, speeds, speeds, rates)
def test_longer_trips_never_make_for_shorter_drafts(
    one: float, more: float, row: float, right: float
) -> None:
    near, far = settled(one, row, right), settled(one + more, row, right)
    assert 0 <= near.best("kind") <= far.best("kind") <= 7


@given(speeds, speeds, rates, rates)
def test_better_drafts_are_never_shorter(one: float, row: float, a: float, b: float) -> None:
    worse, better = (settled(one, row, right).best("kind") for right in sorted((a, b)))
    assert worse <= better


@given(st.lists(st.tuples(st.integers(1, 8), st.floats(0, 1e6)), max_size=30), st.integers(0, 9))
def test_any_times_give_a_length_within_bounds(
    steps: list[tuple[int, float]], longest: int
) -> None:
    length = DraftLength(longest)
    for rows, seconds in steps:
        length.took(rows, seconds)
        assert 0 <= length.best(None) <= longest


def test_impossible_counts_are_refused() -> None:
    with pytest.raises(ValueError, match="3 of 2"):
        DraftLength(7).checked("kind", 3, 2)
    with pytest.raises(ValueError, match="-1"):
        DraftLength(-1)
