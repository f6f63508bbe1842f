"""What a relay grants: bounded, released whole, and a ticket is good once."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from swarmd.errors import Busy
from swarmd.identity import PeerId
from swarmd.rates import Bucket
from swarmd.relay.ledger import Call, Ledger, RelayLimits

LIMITS = RelayLimits(reservations=3, streams=2, call_timeout=5.0)


def peer_id(number: int) -> PeerId:
    return PeerId(number.to_bytes(20, "big"))


def ledger(limits: RelayLimits = LIMITS) -> Ledger:
    numbers = itertools.count()
    return Ledger(limits, lambda: next(numbers).to_bytes(16, "big"))


def test_a_client_is_joined_with_the_node_that_it_called() -> None:
    book = ledger()
    assert book.reserve(peer_id(1), "link", 0.0) is None
    link, call = book.call(peer_id(1), "client", 1.0)
    assert link == "link"
    answered = book.answer(call.ticket, "stream", 2.0)
    assert answered is not None
    assert answered[0] is call
    assert call.waiter == "client"
    assert book.streams == 1
    assert book.answer(call.ticket, "again", 2.0) is None, "a ticket is good once"
    book.end(peer_id(1), "stream")
    book.end(peer_id(1), "stream")
    assert book.streams == 0


def test_who_is_not_relayed_here_cannot_be_called() -> None:
    with pytest.raises(KeyError):
        ledger().call(peer_id(1), "client", 0.0)


def test_reservations_and_streams_are_bounded() -> None:
    book = ledger()
    for number in range(3):
        book.reserve(peer_id(number), number, 0.0)
    with pytest.raises(Busy):
        book.reserve(peer_id(3), 3, 0.0)
    book.call(peer_id(1), "a", 0.0)
    _, call = book.call(peer_id(1), "b", 0.0)
    with pytest.raises(Busy):
        book.call(peer_id(1), "c", 0.0)
    book.forget(call)
    book.forget(call)
    assert book.call(peer_id(1), "c", 0.0)


def test_a_call_that_nobody_answers_expires() -> None:
    book = ledger()
    book.reserve(peer_id(1), "link", 0.0)
    _, first = book.call(peer_id(1), "a", 0.0)
    _, second = book.call(peer_id(1), "b", 3.0)
    assert book.expire(5.0) == []
    assert book.answer(first.ticket, "late", 5.1) is None
    assert book.expire(8.1) == ["b"]
    assert book.answer(second.ticket, "later", 8.1) is None


def test_a_node_that_comes_back_over_another_link_keeps_its_streams() -> None:
    book = ledger()
    book.reserve(peer_id(1), "old", 0.0)
    _, call = book.call(peer_id(1), "a", 0.0)
    book.answer(call.ticket, "stream", 0.0)
    assert book.reserve(peer_id(1), "new", 1.0) == "old"
    assert book.release(peer_id(1), "old") == []
    assert book.call(peer_id(1), "b", 1.0)[0] == "new"
    assert set(book.release(peer_id(1), "new")) == {"stream", "b"}
    assert book.relayed == ()


class LedgerMachine(RuleBasedStateMachine):
    """Any order of events: the bounds hold, and what is released is gone."""

    def __init__(self) -> None:
        super().__init__()
        self.book = ledger()
        self.now = 0.0
        self.calls: list[Call] = []
        self.names = itertools.count()

    @rule(number=st.integers(0, 5), seconds=st.floats(0, 3))
    def reserve(self, number: int, seconds: float) -> None:
        self.now += seconds
        try:
            self.book.reserve(peer_id(number), next(self.names), self.now)
        except Busy:
            assert len(self.book.relayed) == LIMITS.reservations

    @rule(number=st.integers(0, 5))
    def call(self, number: int) -> None:
        try:
            _, call = self.book.call(peer_id(number), next(self.names), self.now)
        except KeyError:
            assert peer_id(number) not in self.book.relayed
        except Busy:
            assert peer_id(number) in self.book.relayed
        else:
            self.calls.append(call)

    @rule(index=st.integers(0, 30))
    def answer(self, index: int) -> None:
        if not self.calls:
            return
        call = self.calls[index % len(self.calls)]
        before = self.book.streams
        answered = self.book.answer(call.ticket, next(self.names), self.now)
        assert self.book.streams == before + (answered is not None)
        assert self.book.answer(call.ticket, "again", self.now) is None

    @rule(number=st.integers(0, 5))
    def release(self, number: int) -> None:
        held = self.book._held.get(peer_id(number))
        if held is not None:
            ended = self.book.release(peer_id(number), held.link)
            assert len(ended) == len(held.calls) + len(held.streams)
            assert peer_id(number) not in self.book.relayed

    @rule(seconds=st.floats(0, 10))
    def expire(self, seconds: float) -> None:
        self.now += seconds
        self.book.expire(self.now)
        for held in self.book._held.values():
            assert all(self.now - call.since <= 5.0 for call in held.calls.values())

    @invariant()
    def bounded(self) -> None:
        assert len(self.book.relayed) <= LIMITS.reservations
        for held in self.book._held.values():
            assert len(held.calls) + len(held.streams) <= LIMITS.streams


TestLedgerMachine = LedgerMachine.TestCase


@given(
    rate=st.floats(1, 1e6),
    burst=st.floats(1, 1e6),
    takes=st.lists(st.tuples(st.floats(0, 1e5), st.floats(0, 5)), min_size=1, max_size=50),
)
def test_a_bucket_never_gives_more_than_its_rate(
    rate: float, burst: float, takes: list[tuple[float, float]]
) -> None:
    """Who waits as told takes at most the burst, the rate, and one last portion."""
    bucket, now, total, last = Bucket(rate, burst, 0.0), 0.0, 0.0, 0.0
    for units, pause in takes:
        now += bucket.take(units, now) + pause
        total, last = total + units, units
    assert total - last <= (burst + rate * now) * (1 + 1e-9) + 1e-6


def test_a_bucket_fills_again() -> None:
    bucket = Bucket(10.0, 20.0, 0.0)
    assert bucket.take(20.0, 0.0) == 0.0
    assert bucket.take(5.0, 0.0) == 0.5
    assert bucket.take(0.0, 0.25) == 0.25
    assert bucket.take(20.0, 100.0) == 0.0
    with pytest.raises(ValueError, match="above zero"):
        Bucket(0.0, 1.0, 0.0)
