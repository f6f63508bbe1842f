"""What a failure counts as: each row of the table in `swarmd/routing/losses.py`."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from swarmd.errors import (
    BadTensor,
    BlocksNotHeld,
    Busy,
    ConnectionLost,
    DeadlineExceeded,
    Draining,
    InternalError,
    ModelMismatch,
    NotFinite,
    PeerTimeout,
    PositionOutOfRange,
    SessionTooLong,
    UnknownSession,
    VersionMismatch,
)
from swarmd.routing.losses import AGAIN, Losses, Verdict

PAUSES = [Busy, DeadlineExceeded, UnknownSession]
BLAMED = [ConnectionLost, PeerTimeout, InternalError]
LASTING = [BlocksNotHeld, Draining, ModelMismatch, SessionTooLong, VersionMismatch]
DOUBTS = [BadTensor, NotFinite, PositionOutOfRange]


@pytest.mark.parametrize("kind", PAUSES)
def test_who_has_no_room_is_asked_again_until_patience_ends(kind, peer_id):
    losses = Losses(max_losses=3, patience=30.0)
    for second in range(31):
        assert losses.failed(peer_id(1), kind("later"), 100.0 + second) is Verdict.GO_ON
    assert losses.left_out(131.0) == frozenset()
    assert losses.refusal is None
    assert losses.failed(peer_id(1), kind("later"), 130.5) is Verdict.TOO_LONG
    losses.begin()
    assert losses.failed(peer_id(1), kind("later"), 131.0) is Verdict.GO_ON


@pytest.mark.parametrize("kind", [*BLAMED, *LASTING])
def test_lost_hops_are_counted_in_each_step_anew(kind, peer_id):
    losses = Losses(max_losses=3)
    for _ in range(2):
        losses.begin()
        verdicts = [losses.failed(peer_id(i), kind("x"), 0.0) for i in range(4)]
        assert verdicts == [Verdict.GO_ON] * 3 + [Verdict.TOO_MANY]


@pytest.mark.parametrize("kind", [*LASTING, *DOUBTS])
def test_who_refuses_for_good_is_left_out_for_a_while(kind, peer_id):
    losses = Losses(left_out=60.0)
    error = kind("x")
    losses.failed(peer_id(1), error, 5.0)
    assert losses.refusal is error
    losses.begin()
    assert losses.refusal is None
    assert losses.left_out(64.9) == {peer_id(1)}
    assert losses.left_out(65.0) == frozenset()


@pytest.mark.parametrize("kind", BLAMED)
def test_who_is_banned_is_not_left_out_as_well(kind, peer_id):
    losses = Losses()
    losses.failed(peer_id(1), kind("x"), 5.0)
    assert losses.left_out(5.0) == frozenset()


@pytest.mark.parametrize("kind", DOUBTS)
def test_a_refusal_of_the_request_is_believed_of_a_second_peer_only(kind, peer_id):
    losses = Losses()
    assert losses.failed(peer_id(1), kind("x"), 0.0) is Verdict.GO_ON
    assert losses.failed(peer_id(1), kind("x"), 0.0) is Verdict.GO_ON
    other = PositionOutOfRange if kind is not PositionOutOfRange else BadTensor
    assert losses.failed(peer_id(2), other("another reason"), 0.0) is Verdict.GO_ON
    assert losses.failed(peer_id(3), kind("x"), 0.0) is Verdict.BELIEVE
    losses.begin()
    assert losses.failed(peer_id(4), kind("x"), 0.0) is Verdict.GO_ON


def test_a_second_try_is_spent_once_a_step(peer_id):
    losses = Losses()
    losses.spend([peer_id(1)], 5.0)
    assert losses.spent() == {peer_id(1)}
    losses.begin()
    assert losses.spent() == frozenset()


def test_who_waits_tries_again_after_pauses_that_double(peer_id):
    losses = Losses()
    losses.begin()
    losses.spend([peer_id(1)], 5.0)
    assert losses.spent(5.0 + AGAIN - 0.1) == {peer_id(1)}
    assert losses.spent(5.0 + AGAIN) == frozenset()
    assert losses.spent() == {peer_id(1)}, "who does not wait has one try"
    losses.spend([peer_id(1)], 10.0)
    assert losses.spent(10.0 + AGAIN) == {peer_id(1)}
    assert losses.spent(10.0 + 2 * AGAIN) == frozenset()


@given(seed=st.integers(0, 2**32))
def test_no_order_of_failures_goes_on_for_ever(peer_id, seed):
    rng = random.Random(seed)
    losses, now, verdicts = Losses(max_losses=16, patience=30.0), 0.0, []
    for _ in range(350):
        now += rng.uniform(0.1, 5.0)
        kind = rng.choice([*PAUSES, *BLAMED, *LASTING, *DOUBTS])
        verdicts.append(losses.failed(peer_id(rng.randint(1, 4)), kind("x"), now))
    assert any(verdict is not Verdict.GO_ON for verdict in verdicts)
