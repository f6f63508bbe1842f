"""How many drafted tokens are sent: by what trips cost, and by how often drafts are right."""

from __future__ import annotations

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


@given(speeds, speeds, st.lists(st.tuples(st.booleans(), st.booleans()), max_size=60))
def test_better_drafts_are_never_shorter(
    one: float, row: float, drafts: list[tuple[bool, bool]]
) -> None:
    """Of two answers, one whose drafts are right wherever the other's are, or more often."""
    worse, better = DraftLength(7), DraftLength(7)
    for length in (worse, better):
        for rows in range(1, 9):
            length.took(rows, one + (rows - 1) * row)
    for right, also in drafts:
        worse.checked("kind", int(right), 1)
        better.checked("kind", int(right or also), 1)
        assert worse.best("kind") <= better.best("kind")
