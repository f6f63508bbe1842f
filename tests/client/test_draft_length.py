"""How many drafted tokens are sent, and how many steps ahead: by what trips cost, and by how often
drafts are right."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from swarmd.client.draft_length import DraftLength


def tokens(length: DraftLength, kind: str) -> int:
    return length.plan(kind, lambda rows: 0.0).tokens


def settled(
    one: float,
    row: float,
    right: float,
    *,
    longest: int = 7,
    draft: float = 0.0,
    ahead: int = 0,
) -> DraftLength:
    """After many steps of which each takes `one` and `row` seconds a further token, with drafts
    of which each token is right with probability `right` (in turn, not by chance)."""
    length, owed = DraftLength(longest, ahead), 0.0
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
    assert tokens(length, "kind") == 0
    length.took(1, 0.1)
    assert tokens(length, "kind") > 0


def test_drafts_that_are_always_right_are_sent_whole_where_rows_cost_little() -> None:
    assert tokens(settled(0.2, 0.005, 1.0), "kind") == 7


def test_drafts_that_are_always_wrong_are_not_sent() -> None:
    length = settled(0.2, 0.005, 0.0)
    assert tokens(length, "kind") == 0
    assert tokens(length, "another kind") > 0


def test_a_row_that_costs_as_much_as_a_step_pays_for_nothing() -> None:
    assert tokens(settled(0.03, 0.03, 0.9), "kind") == 0


def test_a_slow_draft_model_does_not_pay() -> None:
    assert tokens(settled(0.03, 0.001, 0.9), "kind") > 0
    assert tokens(settled(0.03, 0.001, 0.9, draft=0.04), "kind") == 0


def test_a_stall_is_forgotten() -> None:
    length = settled(0.05, 0.04, 0.8)
    before = tokens(length, "kind")
    length.took(1, 30.0)
    for number in range(60):
        length.took(1 + number % 4, 0.05 + 0.04 * (number % 4))
    assert tokens(length, "kind") == before


def test_steps_go_ahead_where_trips_are_long_and_drafts_are_right() -> None:
    quick = settled(0.3, 0.002, 1.0, ahead=3).plan("kind", lambda rows: 0.01)
    assert (quick.tokens, quick.ahead) == (7, 3)
    busy = settled(0.3, 0.002, 1.0, ahead=3).plan("kind", lambda rows: 0.3)
    assert (busy.tokens, busy.ahead) == (7, 0)
    doubtful = settled(0.3, 0.002, 0.5, ahead=3).plan("kind", lambda rows: 0.01)
    assert doubtful.ahead == 0


def test_no_more_steps_go_ahead_than_fill_the_trip() -> None:
    assert settled(0.3, 0.002, 1.0, ahead=8).plan("kind", lambda rows: 0.1).ahead == 2


def test_the_choice_of_tokens_here_is_a_stage_too() -> None:
    length = settled(0.3, 0.002, 1.0, ahead=3)
    length.chose(1, 0.3)
    assert length.plan("kind", lambda rows: 0.01).ahead == 0


def test_gaps_as_long_as_whole_steps_end_it_until_it_is_tried_again() -> None:
    """Hops that share a machine, for one, are no pipeline."""

    def stage(rows: int) -> float:
        return 0.01

    length = settled(0.3, 0.002, 1.0, ahead=3)
    for _ in range(50):
        length.followed(8, 0.3, stage, 3)
    assert length.plan("kind", stage).ahead == 0
    for _ in range(200):
        length.alone()
    assert length.plan("kind", stage).ahead == 3


speeds = st.floats(1e-4, 10, allow_nan=False)
rates = st.floats(0, 1)


@given(speeds, speeds, speeds, rates)
def test_longer_trips_never_make_for_shorter_drafts(
    one: float, more: float, row: float, right: float
) -> None:
    near, far = settled(one, row, right), settled(one + more, row, right)
    assert 0 <= tokens(near, "kind") <= tokens(far, "kind") <= 7


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
        assert tokens(worse, "kind") <= tokens(better, "kind")


@given(speeds, speeds, rates, speeds, st.integers(0, 7), st.integers(0, 5))
def test_a_plan_keeps_within_its_bounds(
    one: float, row: float, right: float, stage: float, longest: int, ahead: int
) -> None:
    length = settled(one, row, right, longest=longest, ahead=ahead)
    plan = length.plan("kind", lambda rows: stage)
    assert 0 <= plan.tokens <= longest
    assert 0 <= plan.ahead <= ahead
