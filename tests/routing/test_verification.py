"""The machine of spot checks: every row of its table, and what it says whatever happens."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from swarmd.blocks import Span
from swarmd.identity import PeerId
from swarmd.routing.verification import Check, Draw, State, Verdict, Verification

A, B = PeerId(b"a" * 20), PeerId(b"b" * 20)


def started(length: int = 10) -> tuple[Verification, Check]:
    machine = Verification()
    machine.produced(0, length, A, drawn=True)
    check = machine.begin()
    assert check is not None
    return machine, check


def disputed(at: int = 6) -> tuple[Verification, Check]:
    machine, check = started()
    assert machine.differed(check.ticket, at)
    return machine, check


def test_nothing_is_checked_until_a_position_is_drawn() -> None:
    machine = Verification()
    machine.produced(0, 5, A, drawn=False)
    assert machine.begin() is None
    machine.produced(5, 6, A, drawn=True)
    machine.produced(6, 9, A, drawn=False)
    check = machine.begin()
    assert check is not None
    assert (check.start, check.end) == (0, 6)
    assert machine.begin() is None
    machine.agreed(check.ticket, 4)
    assert (machine.state, machine.verified) == (State.SECOND, 4)
    machine.agreed(check.ticket, 6)
    assert (machine.state, machine.verified) == (State.IDLE, 6)
    assert machine.begin() is None


@pytest.mark.parametrize(
    ("with_hop", "with_second", "verdict", "state", "verified"),
    [
        (True, False, Verdict.VERIFIER_LIED, State.IDLE, 6),
        (False, True, Verdict.HOP_LIED, State.LIED, 6),
        (True, True, Verdict.ROUNDING, State.IDLE, 7),
        (False, False, Verdict.UNSETTLED, State.UNSETTLED, 6),
    ],
)
def test_a_third_opinion_decides(
    with_hop: bool, with_second: bool, verdict: Verdict, state: State, verified: int
) -> None:
    machine, check = disputed()
    found = machine.judged(check.ticket, with_hop=with_hop, with_second=with_second)
    assert (found, machine.state, machine.verified) == (verdict, state, verified)
    again = machine.begin()
    assert (again is None) == (state is not State.IDLE)
    if again is not None:
        assert (again.start, again.end) == (verified, 10)


def test_without_a_second_peer_the_next_draw_tries_all_again() -> None:
    machine, check = started()
    assert machine.skipped(check.ticket) is None
    assert machine.begin() is None
    machine.produced(10, 11, A, drawn=True)
    again = machine.begin()
    assert again is not None
    assert (again.start, again.end) == (0, 11)


def test_without_a_third_peer_a_dispute_stays_open() -> None:
    machine, check = disputed()
    assert machine.skipped(check.ticket) is Verdict.UNSETTLED
    machine.produced(10, 11, A, drawn=True)
    assert machine.begin() is None


@pytest.mark.parametrize("start", [0, 6])
def test_going_back_before_a_lie_forgets_it(start: int) -> None:
    machine, check = disputed()
    machine.judged(check.ticket, with_hop=False, with_second=True)
    machine.cut(7)
    assert machine.state is State.LIED, "the lie itself still stands"
    machine.cut(start)
    assert (machine.state, machine.verified) == (State.IDLE, start)
    assert machine.begin() is None
    machine.produced(start, 10, B, drawn=True)
    assert machine.producer(9) == B
    assert machine.begin() is not None


def test_what_was_under_way_when_the_session_went_back_is_void() -> None:
    machine, check = started()
    machine.cut(9)
    assert not machine.valid(check.ticket)
    machine.agreed(check.ticket, 10)
    assert not machine.differed(check.ticket, 3)
    assert machine.judged(check.ticket, with_hop=False, with_second=True) is None
    assert machine.skipped(check.ticket) is None
    assert (machine.verified, machine.state) == (0, State.IDLE)


def test_going_back_behind_what_is_under_way_changes_nothing() -> None:
    machine, check = started()
    machine.produced(10, 14, A, drawn=False)
    machine.cut(10)
    assert machine.valid(check.ticket)
    machine.agreed(check.ticket, 10)
    assert machine.verified == 10


def test_each_position_keeps_the_peer_that_gave_it() -> None:
    machine = Verification()
    machine.produced(0, 5, A, drawn=False)
    machine.produced(5, 8, B, drawn=False)
    assert (machine.producer(4), machine.producer(5)) == (A, B)
    assert machine.producers == {A, B}
    machine.cut(3)
    assert machine.producers == {A}
    with pytest.raises(LookupError):
        machine.producer(3)


def test_draws_follow_the_fraction_and_the_seed_alone() -> None:
    span = Span(0, 4)
    draw = Draw(0.1, b"seed")
    taken = [draw.takes(span, p, p + 1) for p in range(4000)]
    assert 300 < sum(taken) < 500
    assert taken == [Draw(0.1, b"seed").takes(span, p, p + 1) for p in range(4000)]
    assert taken != [Draw(0.1, b"other").takes(span, p, p + 1) for p in range(4000)]
    assert taken != [draw.takes(Span(4, 8), p, p + 1) for p in range(4000)]
    assert draw.takes(span, 0, 4000)
    assert not any(Draw(0.0, b"seed").takes(span, p, p + 1) for p in range(1000))
    assert all(Draw(1.0, b"seed").takes(span, p, p + 1) for p in range(1000))


@given(st.lists(st.tuples(st.integers(0, 6), st.integers(0, 30), st.booleans()), max_size=60))
def test_nothing_is_verified_that_does_not_stand(events: list[tuple[int, int, bool]]) -> None:
    """Whatever order of events: the verified prefix never exceeds what was produced, and every
    disputed or lying position is one that somebody gave."""
    machine, length, ticket = Verification(), 0, -1
    for kind, number, flag in events:
        if kind == 0:
            machine.produced(length, length + 1 + number, A, drawn=flag)
            length += 1 + number
        elif kind == 1 and (check := machine.begin()) is not None:
            ticket = check.ticket
            assert machine.verified == check.start < check.end <= length
        elif kind == 2:
            machine.agreed(ticket, number)
        elif kind == 3 and length and machine.state is State.SECOND:
            machine.differed(ticket, min(max(number, machine.verified), length - 1))
        elif kind == 4:
            machine.judged(ticket, with_hop=flag, with_second=number % 2 == 0)
        elif kind == 5:
            machine.skipped(ticket)
        elif kind == 6:
            machine.cut(number)
            length = min(length, number)
        assert 0 <= machine.verified <= length
        if machine.state in (State.THIRD, State.LIED, State.UNSETTLED):
            assert machine.producer(machine.at) == A
