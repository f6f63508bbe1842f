"""For whom a turn waits, and for how long."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from swarmd.compute.gathering import LATENESS, LEAST, Gathering
from swarmd.compute.patience import CANDIDATES

PATIENCE = CANDIDATES[0]
"""What it is before anything was tried."""


def decoding(*pauses: float, turn: float = 0.08) -> Gathering:
    """Sessions 0, 1, ... that were answered at 10 s, and paused so long before their last step."""
    gathering = Gathering()
    for session, pause in enumerate(pauses):
        gathering.arrived(session, 0.0)
        gathering.finished(session, 1.0)
        gathering.arrived(session, 1.0 + pause)
        gathering.finished(session, 10.0)
    gathering.ran(10.0, turn, len(pauses))
    return gathering


def test_who_is_due_is_waited_for_as_long_as_it_may_take() -> None:
    gathering = decoding(0.002, 0.004)
    late = 1 + LATENESS
    assert gathering.until(10.0, 10.0) == pytest.approx(10.0 + late * 0.004 + LEAST)
    gathering.arrived(1, 10.001)
    assert gathering.until(10.002, 10.0) == pytest.approx(10.0 + late * 0.002 + LEAST)
    gathering.arrived(0, 10.002)
    assert gathering.until(10.002, 10.0) is None


def test_who_is_late_is_waited_for_no_longer() -> None:
    assert decoding(0.002).until(10.0 + (1 + LATENESS) * 0.002 + 2 * LEAST, 10.0) is None


def test_who_comes_back_from_another_node_is_waited_for_when_it_is_due() -> None:
    gathering = decoding(0.1)  # a turn of another node, beside 0.08 s here
    assert gathering.until(10.0, 10.0) is None
    assert gathering.until(10.09, 10.09) == pytest.approx(10.1 + LATENESS * PATIENCE * 0.08 + LEAST)
    assert gathering.until(10.09, 10.0) is None, "no longer than a share of a turn in all"


def test_who_lives_far_away_is_not_waited_for() -> None:
    gathering = decoding(PATIENCE * 0.08 + 0.001)
    assert gathering.until(10.0, 10.0) is None
    gathering.ran(10.0, 0.2, 1)  # a longer turn has more patience
    assert gathering.until(10.0, 10.0) is not None


def test_who_is_new_closed_or_busy_is_not_waited_for() -> None:
    gathering = decoding(0.001, 0.001)
    gathering.forget(0)
    gathering.arrived(1, 10.0)
    gathering.arrived(1, 10.0)  # a second step beside the first
    gathering.finished(1, 10.001)
    gathering.arrived("new", 10.0)
    gathering.finished("new", 10.001)  # its pause is not known yet
    assert gathering.until(10.001, 10.001) is None
    gathering.finished(1, 10.002)
    assert gathering.until(10.002, 10.002) is not None


EVENTS = st.lists(
    st.tuples(st.sampled_from(["arrived", "finished", "forget", "ran"]), st.integers(0, 3),
              st.floats(0, 0.1)),
    max_size=60,
)  # fmt: skip


@given(EVENTS)
def test_nobody_is_waited_for_longer_than_the_longest_patience(
    events: list[tuple[str, int, float]],
) -> None:
    gathering, now, turn, steps = Gathering(), 1.0, 0.0, dict.fromkeys(range(4), 0)
    for kind, session, seconds in events:
        if kind == "ran":
            gathering.ran(now, seconds, 1)
            turn = seconds
        else:
            now += seconds
            if kind == "forget":
                gathering.forget(session)
                steps[session] = 0
            else:
                getattr(gathering, kind)(session, now)
                steps[session] = max(0, steps[session] + (1 if kind == "arrived" else -1))
        until = gathering.until(now, now - 0.01)
        assert until is None or now < until <= now - 0.01 + max(CANDIDATES) * turn
        if all(steps.values()):
            assert until is None, "all have a step already"
