"""The table of a batch: what its sessions run, and that it is never more than it must be."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from swarmd.hf.rows import PAD, Keys, RowBook


def table(*rows: list[int]) -> Keys:
    return np.array(rows, dtype=np.int64)


def run(book: RowBook, new: Keys, keep: int | None = None) -> list[tuple[int, int, list[int]]]:
    """One step that succeeds: what was run, as (row, start, keys)."""
    plan = book.plan(new, keep=keep)
    for feed in plan.feeds:
        book.ran(feed)
    book.commit(plan)
    return [(feed.row, feed.start, feed.keys.tolist()) for feed in plan.feeds]


def test_rows_run_only_their_own_tokens() -> None:
    book = RowBook()
    assert run(book, table([PAD, PAD, 5], [6, 7, 8])) == [(0, 0, [5]), (1, 0, [6, 7, 8])]
    assert run(book, table([9], [9])) == [(0, 1, [9]), (1, 3, [9])]
    assert run(book, table([PAD], [4])) == [(0, 1, [9]), (1, 4, [4])], "row 0: 9's output again"


def test_padding_on_the_right_gives_the_output_of_the_token_before_it() -> None:
    book = RowBook()
    plan = book.plan(table([5, 6, PAD, PAD], [PAD, 7, 8, 9]), keep=2)
    assert plan.positions(2).tolist() == [[1, 1], [1, 2]]
    assert plan.positions(4).tolist() == [[0, 1, 1, 1], [-1, 0, 1, 2]]
    assert [feed.start for feed in plan.feeds] == [0, 0]


def test_swapped_rows_swap_their_sessions() -> None:
    book = RowBook()
    run(book, table([1, 2, 3], [1, 5, 6]))
    book.select([1, 0])
    assert run(book, table([7], [8])) == [(0, 3, [7]), (1, 3, [8])]
    book.select([1, 0])
    assert run(book, table([7], [8])) == [(0, 4, [7]), (1, 4, [8])]


def test_a_beam_that_takes_over_runs_what_came_after_they_parted() -> None:
    book = RowBook()
    run(book, table([1, 2, 3, 4], [1, 2, 5, 6]))
    book.select([0, 0])
    assert run(book, table([7], [8])) == [(0, 4, [7]), (1, 2, [3, 4, 8])]


def test_cut_columns_are_run_again_only_where_they_differ() -> None:
    book = RowBook()
    run(book, table([1, 2, 3, 4]))
    book.cut(2)
    assert run(book, table([3, 9])) == [(0, 2, [3, 9])], "all new columns' outputs are wanted"
    book.cut(2)
    assert run(book, table([3, 9, 5]), keep=1) == [(0, 4, [5])], "the last one's only"


def test_a_cleared_table_finds_its_sessions_by_their_tokens() -> None:
    book = RowBook()
    run(book, table([1, 2, 3], [4, 5, 6]))
    book.clear()
    assert run(book, table([4, 5, 6, 7], [1, 2, 9, 9]), keep=1) == [
        (0, 3, [7]),
        (1, 2, [9, 9]),
    ]


def test_rows_that_are_gone_leave_sessions_to_be_closed() -> None:
    book = RowBook()
    run(book, table([1, 2], [3, 4], [5, 6]))
    book.select([1])
    plan = book.plan(table([7]))
    assert len(plan.surplus) == 2
    assert [feed.start for feed in plan.feeds] == [2]
    assert book.held(plan.feeds[0].slot).tolist() == [3, 4]


def test_a_step_that_failed_leaves_the_table_and_says_what_sessions_hold() -> None:
    book = RowBook()
    run(book, table([1, 2], [3, 4]))
    plan = book.plan(table([5], [6]))
    book.ran(plan.feeds[0])  # the other row failed
    assert book.columns.tolist() == [[1, 2], [3, 4]]
    assert run(book, table([5], [6])) == [(0, 2, [5]), (1, 2, [6])]


def test_a_failed_step_may_have_closed_a_rows_session() -> None:
    book = RowBook()
    run(book, table([1, 2, 3], [1, 9, 4]))
    book.select([0])
    book.cut(1)
    plan = book.plan(table([9, 4, 5]), keep=1)  # the other row's session fits better
    assert len(plan.surplus) == 1
    assert run(book, table([9, 4, 5]), keep=1) == [(0, 3, [5])]


def test_lost_sessions_run_everything_again() -> None:
    book = RowBook()
    run(book, table([1, 2]))
    assert book.lose_slots() == (0,)
    assert run(book, table([3])) == [(0, 0, [1, 2, 3])]


def test_impossible_changes_are_refused() -> None:
    book = RowBook()
    run(book, table([1, 2], [3, 4]))
    with pytest.raises(ValueError, match="cannot cut"):
        book.cut(3)
    with pytest.raises(IndexError):
        book.select([2])
    with pytest.raises(ValueError, match="3 rows"):
        book.plan(table([1], [2], [3]))


KEYS = st.integers(PAD, 2)


@settings(max_examples=80, deadline=None)
@given(data=st.data())
def test_whatever_is_done_to_the_rows_their_sessions_hold_them(data: st.DataObject) -> None:
    book, expected = RowBook(), [[0]]
    sessions: dict[int, list[int]] = {}
    run_book(book, table(*expected), sessions, None)
    for _ in range(data.draw(st.integers(1, 12))):
        action = data.draw(st.sampled_from(["step", "cut", "select", "clear", "lose", "fail"]))
        n_columns = len(expected[0])
        if action == "cut":
            n = data.draw(st.integers(1, n_columns))
            book.cut(n)
            expected = [row[:n] for row in expected]
        elif action == "select":
            rows = data.draw(st.lists(st.integers(0, len(expected) - 1), min_size=1, max_size=4))
            book.select(rows)
            expected = [list(expected[row]) for row in rows]
        elif action == "lose":
            book.lose_slots()
            sessions.clear()
        else:
            width = data.draw(st.integers(1, 3))
            new = [data.draw(st.lists(KEYS, min_size=width, max_size=width)) for _ in expected]
            if action == "clear":
                book.clear()
                expected = [[] for _ in expected]
            keep = data.draw(st.sampled_from([None, 1]))
            fail = data.draw(st.integers(0, len(expected) - 1)) if action == "fail" else None
            run_book(book, table(*new), sessions, keep, fail)
            if fail is None:
                expected = [row + more for row, more in zip(expected, new, strict=True)]
        assert book.columns.tolist() == expected or not expected[0]


def run_book(
    book: RowBook,
    new: Keys,
    sessions: dict[int, list[int]],
    keep: int | None,
    fail: int | None = None,
) -> None:
    """A step over sessions as peers have them: each cuts back to the start and appends."""
    plan = book.plan(new, keep=keep)
    for slot in plan.surplus:
        sessions.pop(slot, None)
    assert len({feed.slot for feed in plan.feeds}) == len(plan.feeds)
    for feed in plan.feeds:
        held = sessions.get(feed.slot, [])
        assert feed.start <= len(held), "a step beyond what the session has"
        if feed.row == fail:
            sessions[feed.slot] = held[: feed.start]
            continue
        sessions[feed.slot] = held[: feed.start] + feed.keys.tolist()
        book.ran(feed)
        own = plan.columns[feed.row]
        assert sessions[feed.slot] == own[own != PAD].tolist()
        wanted = plan.positions(new.shape[1] if keep is None else keep)[feed.row]
        assert all(feed.start <= at < feed.end for at in wanted if at >= 0)
    if fail is None:
        book.commit(plan)
