"""How a second chain catches up: never ahead of the session, never with what was cut since."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from swarmd.routing.precopy import Precopy, PrecopyConfig

CONFIG = PrecopyConfig(chunk=8, shortest_chunk=2, near=3, sample_steps=3)


class Following(RuleBasedStateMachine):
    """A session whose position p holds a text that says which step wrote it, and a second chain
    that runs what the machine says. What counts there must always be what the session holds."""

    @initialize(held=st.integers(1, 40))
    def begin(self, held: int) -> None:
        self.texts = [0] * held
        self.steps = 0
        self.machine = Precopy(held, 1.0, CONFIG)
        self.there: list[int] = []
        self.running: tuple[int, list[int]] | None = None

    @rule(back=st.integers(0, 12), tokens=st.integers(1, 6), fails=st.booleans())
    def step(self, back: int, tokens: int, fails: bool) -> None:
        """A step of the session, during which nothing ends on the second chain."""
        start = max(0, len(self.texts) - back)
        self.steps += 1
        self.machine.begin_step(start)
        del self.texts[start:]
        if fails:
            return
        self.texts += [self.steps] * tokens
        self.machine.end_step(start + tokens, 1.0)

    @precondition(lambda self: self.running is None)
    @rule(near=st.integers(0, 3))
    def next(self, near: int) -> None:
        chunk = self.machine.next(near)
        if chunk is None:
            assert len(self.texts) - self.machine.done <= near
            return
        start, end = chunk
        assert 0 < end - start <= CONFIG.chunk
        assert start <= len(self.there), "a step cannot begin beyond what was run"
        self.running = (start, self.texts[start:end])
        assert len(self.running[1]) == end - start, "positions that the session does not hold"

    @precondition(lambda self: self.running is None and self.machine.done > 0)
    @rule()
    def again(self) -> None:
        start, end = self.machine.again()
        assert end - start == 1
        self.running = (start, self.texts[start:end])

    @precondition(lambda self: self.running is not None)
    @rule()
    def ended(self) -> None:
        assert self.running is not None
        start, texts = self.running
        self.there[start:] = texts
        self.running = None
        self.machine.ended()

    @invariant()
    def what_is_done_is_what_the_session_holds(self) -> None:
        done = self.machine.done
        assert self.machine.held == len(self.texts)
        assert self.there[:done] == self.texts[:done]
        assert len(self.there) >= done
        if self.machine.is_near:
            assert self.running is None
            assert len(self.texts) - done <= CONFIG.near


TestFollowing = Following.TestCase
TestFollowing.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)


def test_it_catches_up_with_a_session_that_is_slower() -> None:
    machine = Precopy(500, 1.0)
    rounds = 0
    while (chunk := machine.next(machine.config.near)) is not None:
        rounds += 1
        for _ in range(max(1, (chunk[1] - chunk[0]) // 4)):  # the session's steps meanwhile
            machine.begin_step(machine.held)
            machine.end_step(machine.held + 1, 1.0)
        machine.ended()
    assert machine.is_near
    assert rounds < 50


def test_chunks_that_are_felt_become_shorter_and_then_a_burden() -> None:
    machine = Precopy(10_000, 1.0, CONFIG)
    sizes = []
    while not machine.is_burden:
        chunk = machine.next(0)
        assert chunk is not None
        sizes.append(chunk[1] - chunk[0])
        machine.begin_step(machine.held)
        machine.end_step(machine.held + 1, 1.6)
        machine.ended()
    assert sizes == [8] * 3 + [4] * 3 + [2] * 3


def test_steps_that_are_alone_or_as_fast_as_before_say_nothing() -> None:
    machine = Precopy(10_000, 1.0, CONFIG)
    for seconds, beside in ((9.0, False), (1.4, True), (None, True)) * 20:
        if beside:
            machine.next(0)
        machine.begin_step(machine.held)
        machine.end_step(machine.held + 1, seconds)
        if beside:
            machine.ended()
    assert machine.chunk == CONFIG.chunk
    assert not machine.is_burden


def test_one_chunk_at_a_time() -> None:
    machine = Precopy(100, 1.0)
    with pytest.raises(ValueError, match="no chunk"):
        machine.ended()
    with pytest.raises(ValueError, match="no position"):
        machine.again()
    machine.next(0)
    with pytest.raises(ValueError, match="under way"):
        machine.next(0)
