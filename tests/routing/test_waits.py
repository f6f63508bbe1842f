"""Who is late, and whether that is the hop or the link to it."""

from __future__ import annotations

from swarmd.routing.replay import Due
from swarmd.routing.waits import Alarm, Waits

DIRECT = Due(0, 1, 1, False)
FED = Due(1, 1, 1, True)


def waits() -> Waits:
    return Waits(lambda due: 2.0 * due.tokens)


def test_a_run_is_late_after_the_time_that_it_may_take() -> None:
    w = waits()
    assert w.update([], 0.0) is None
    assert w.update([DIRECT], 10.0) == 12.0
    assert w.alarms(11.9) == []
    assert w.alarms(12.0) == [(DIRECT, Alarm.HOP)]


def test_the_time_counts_from_when_a_run_fell_due() -> None:
    w = waits()
    w.update([DIRECT], 10.0)
    assert w.update([DIRECT, Due(2, 5, 10, False)], 11.0) == 12.0
    assert w.since(0, 1) == 10.0
    assert w.since(2, 5) == 11.0
    assert w.since(2, 6) is None
    assert w.allowed(2, 5) == 20.0
    assert w.update([Due(0, 2, 1, False)], 11.5) == 13.5, "the next run of the hop"


def test_of_a_fed_hop_that_does_not_answer_a_ping_the_hop_is_lost() -> None:
    w = waits()
    assert w.update([FED], 0.0) == 1.0
    w.heard(1)  # before the ping: says nothing of now
    assert w.alarms(1.0) == [(FED, Alarm.PING)]
    assert w.update([FED], 1.0) == 2.0
    w.heard(0)
    assert w.alarms(2.0) == [(FED, Alarm.HOP)]


def test_of_a_fed_hop_that_answers_a_ping_the_link_is_broken() -> None:
    w = waits()
    w.update([FED], 0.0)
    w.alarms(1.0)
    w.heard(1)
    assert w.alarms(1.5) == []
    assert w.alarms(2.0) == [(FED, Alarm.LINK)]
