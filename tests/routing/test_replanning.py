"""When a session moves: only for what is clearly better, stays so, and pays."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from swarmd.routing.replanning import Offer, ReplanConfig, Replanning

CONFIG = ReplanConfig()
seconds = st.floats(0.001, 10.0)


class Client:
    """A session whose steps take what `present` says; a look costs no time."""

    def __init__(self, config: ReplanConfig = CONFIG, seed: int = 1) -> None:
        self.config = config
        self.now = 0.0
        self.machine = Replanning(config, self.now, random.Random(seed))
        self.looks = 0

    def run(self, steps: int, present: float) -> None:
        for _ in range(steps):
            self.now += present
            self.machine.stepped(1, present)

    def look(self, offer: Offer | None, left: int = 10_000) -> bool:
        """Go on until a look is due; whether it says to move."""
        while not self.machine.due(self.now):
            self.run(1, offer.present if offer else 0.05)
        self.looks += 1
        return self.machine.looked(offer, left, self.now)


def test_a_better_chain_is_taken_when_it_was_seen_twice() -> None:
    client = Client()
    better = Offer(present=0.06, other=0.03, replay=1.0)
    assert not client.look(better)
    assert client.look(better)
    assert client.machine.is_moving
    assert not client.machine.due(client.now + 1000)
    with pytest.raises(ValueError, match="during a move"):
        client.machine.looked(better, 100, client.now)


def test_a_hiccup_between_two_looks_begins_anew() -> None:
    client = Client()
    better = Offer(present=0.06, other=0.03, replay=1.0)
    for _ in range(5):
        assert not client.look(better)
        assert not client.look(None)
    assert not client.look(better)
    client.machine.disturbed(client.now)
    assert not client.look(better)
    assert client.look(better)


def test_a_look_waits_for_steps_and_for_time() -> None:
    config = ReplanConfig(look_every=3.0, look_steps=8)
    client = Client(config)
    client.run(7, 1.0)
    assert not client.machine.due(client.now), "too few steps"
    client.run(1, 1.0)
    assert client.machine.due(client.now)
    client.machine.postpone(client.now)
    client.run(200, 0.01)
    assert not client.machine.due(client.now), "too early"
    assert client.machine.due(client.now + 4.5)
    client.machine.disturbed(client.now)
    assert not client.machine.due(client.now + 1000), "nothing is known of the chain as it is now"


@given(
    cost=seconds,
    noise=st.lists(st.tuples(st.floats(-1, 1), st.floats(-1, 1)), min_size=30, max_size=30),
    seed=st.integers(0, 1000),
)
def test_of_two_equal_chains_none_is_left_for_the_other(
    cost: float, noise: list[tuple[float, float]], seed: int
) -> None:
    """However measuring and prediction err, by up to half of the margin each."""
    client = Client(seed=seed)
    half = CONFIG.margin / 2
    for one, other in noise:
        present = cost * (1 + half * one)
        offer = Offer(present, cost * (1 + half * other) * (1 - 1e-9), replay=0.0)
        for _ in range(CONFIG.window):
            client.run(1, present)
        assert not client.look(offer)


@given(present=seconds, other=seconds, replay=st.floats(0, 1000), left=st.integers(0, 5000))
def test_no_move_costs_more_than_it_saves(
    present: float, other: float, replay: float, left: int
) -> None:
    client = Client(ReplanConfig(look_every=0.0))
    offer = Offer(present, other, replay)
    moved = client.look(offer, left) or client.look(offer, left)
    if moved:
        assert present - other > max(CONFIG.margin * present, CONFIG.least_gain) * (1 - 1e-6)
        assert left * (present - other) >= replay * (1 - 1e-6)
    if not left or other >= present:
        assert not moved


@given(present=seconds, left_out=st.floats(0, 1), other=seconds)
def test_what_predictions_leave_out_of_this_chain_is_added_to_the_other(
    present: float, left_out: float, other: float
) -> None:
    """A chain that is predicted to be as fast as this one is no better for it, although steps on
    this one take longer than predicted."""
    client = Client()
    client.run(CONFIG.window, present + left_out)
    offer = Offer(present, max(other, present), replay=0.0)
    for _ in range(4):
        client.run(CONFIG.window, present + left_out)
        client.now += 100
        assert not client.machine.looked(offer, 10_000, client.now)


@given(outcomes=st.lists(st.booleans(), max_size=12))
def test_each_further_move_is_a_longer_rest_away(outcomes: list[bool]) -> None:
    client = Client()
    rest, ended = CONFIG.rest, 0.0
    better = Offer(present=0.1, other=0.01, replay=0.0)
    for number, moved in enumerate(outcomes):
        while not client.look(better):
            pass
        if number:
            assert client.now - ended >= rest
            rest = min(2 * rest, CONFIG.longest_rest)
        client.machine.ended(client.now, moved=moved)
        client.machine.disturbed(client.now)  # which does not shorten it
        ended = client.now
        assert not client.machine.is_moving


@given(present=seconds, measured=seconds)
def test_a_chain_that_disappoints_is_not_taken(present: float, measured: float) -> None:
    client = Client()
    client.run(CONFIG.window, present)
    if client.machine.confirms(measured):
        assert measured < present * (1 - CONFIG.margin / 2) + 1e-9
    else:
        assert measured > present * (1 - CONFIG.margin / 2) - CONFIG.least_gain - 1e-9
