"""Bans, pauses, deadlines and round trips."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from swarmd.routing.health import MAX_PEERS, Deadlines, Health, RttTable


def test_a_failure_bans_at_once_and_doubles_to_a_cap(peer_id):
    health, now, lengths = Health(), 0.0, []
    for _ in range(8):
        seconds = health.failed(peer_id(1), now)
        assert health.banned(now) == {peer_id(1)}
        assert health.banned(now + seconds - 0.001) == {peer_id(1)}
        now += seconds
        assert health.banned(now) == frozenset()
        lengths.append(seconds)
    assert lengths == [15, 30, 60, 120, 240, 480, 600, 600]


def test_many_sessions_losing_one_peer_at_once_count_once(peer_id):
    health = Health()
    assert [health.failed(peer_id(1), 0.1 * n) for n in range(5)] == [15] * 5
    assert health.banned(15.3) == {peer_id(1)}
    assert health.banned(15.4) == frozenset()


def test_success_and_time_forgive(peer_id):
    health = Health()
    health.failed(peer_id(1), 0.0)
    health.busy(peer_id(1), 50.0)
    health.succeeded(peer_id(1))
    assert health.banned(1.0) == health.avoid(1.0) == frozenset()
    assert health.failed(peer_id(1), 1.0) == 15
    assert health.failed(peer_id(1), 16.0) == 30
    assert health.failed(peer_id(1), 46.0 + 600.0) == 15


def test_bans_are_counted_once_each(peer_id):
    health = Health()
    for now in (0.0, 0.1, 14.9):  # one ban: the last two fall into it
        health.failed(peer_id(1), now)
    assert health.bans == 1
    health.failed(peer_id(1), 60.0)
    health.failed(peer_id(2), 60.0)
    assert health.bans == 3
    for _ in range(2):
        health.convict(peer_id(3))
    assert health.bans == 4


def test_busy_is_no_ban(peer_id):
    health = Health()
    health.busy(peer_id(1), 12.0)
    health.busy(peer_id(2), math.nan)
    health.busy(peer_id(3), math.inf)
    assert health.banned(10.0) == frozenset()
    assert health.avoid(10.0) == {peer_id(1)}
    assert health.avoid(12.0) == frozenset()


def test_the_pause_of_a_chain_is_its_longest(peer_id):
    health = Health()
    assert health.pause_left([], 0.0) == health.pause_left([peer_id(1)], 0.0) == 0.0
    health.busy(peer_id(1), 5.0)
    health.busy(peer_id(2), 8.0)
    assert health.pause_left([peer_id(1), peer_id(3)], 2.0) == 3.0
    assert health.pause_left([peer_id(1), peer_id(2)], 2.0) == 6.0
    assert health.pause_left([peer_id(1), peer_id(2)], 9.0) == 0.0


def test_tables_are_bounded(peer_id):
    health, rtts = Health(), RttTable()
    for number in range(MAX_PEERS + 10):
        health.failed(peer_id(number), 0.0)
        rtts.observe(peer_id(number), 0.1)
    assert len(health.banned(1.0)) == len(rtts.snapshot()) == MAX_PEERS
    assert peer_id(0) not in health.banned(1.0)
    assert peer_id(MAX_PEERS + 9) in health.banned(1.0)


def test_deadlines_before_a_measurement_come_from_the_announcement(make_peer):
    peer, deadlines = make_peer(1, 0, 15, decode_us=50_000, prefill_us=10_000), Deadlines()
    assert deadlines.deadline(peer.peer_id, 1, 15, peer) == pytest.approx(8 * 0.75 + 3)
    assert deadlines.deadline(peer.peer_id, 100, 15, peer) == 60.0  # 8 x 15 s + 3 s, cut
    assert deadlines.deadline(peer.peer_id, 200, 15, peer) == 100.0  # half a second a position
    assert deadlines.deadline(peer.peer_id, 1, 15) == 60.0
    silent = make_peer(2, 0, 15, decode_us=0)
    assert deadlines.deadline(silent.peer_id, 1, 15, silent) == 60.0
    gpu = make_peer(3, 0, 15, decode_us=100, prefill_us=0)  # less than a microsecond a position
    assert deadlines.deadline(gpu.peer_id, 100, 15, gpu) == pytest.approx(8 * 0.15 + 3)


def test_deadlines_follow_rfc_6298(peer_id):
    deadlines = Deadlines()
    deadlines.observe(peer_id(1), 1, 10, 2.0)  # R = 0.2 a block, D = 0.1
    assert deadlines.deadline(peer_id(1), 1, 10) == pytest.approx(8.0)  # 4 R beats R + 4 D
    deadlines.observe(peer_id(1), 1, 10, 10.0)  # D = 0.1 x 3/4 + 0.8 / 4, R = 0.2 + 0.8 / 8
    assert deadlines.deadline(peer_id(1), 1, 10) == pytest.approx((0.3 + 4 * 0.275) * 10)
    assert deadlines.deadline(peer_id(1), 1, 20) == pytest.approx((0.3 + 4 * 0.275) * 20)


def test_a_hung_fast_peer_costs_the_minimum_and_a_slow_chunk_is_waited_for(peer_id):
    deadlines = Deadlines()
    for _ in range(50):
        deadlines.observe(peer_id(1), 1, 10, 0.01)
        deadlines.observe(peer_id(2), 512, 10, 40.0)
    assert deadlines.deadline(peer_id(1), 1, 10) == Deadlines.MIN
    assert deadlines.deadline(peer_id(2), 512, 10) == pytest.approx(160.0)
    assert deadlines.deadline(peer_id(2), 5120, 10) == pytest.approx(1600.0)


def test_a_chunk_never_gets_less_than_a_single_position(peer_id):
    deadlines = Deadlines()
    deadlines.observe(peer_id(1), 512, 10, 1.0)
    deadlines.observe(peer_id(1), 1, 10, 1.0)
    assert deadlines.deadline(peer_id(1), 2, 10) >= deadlines.deadline(peer_id(1), 1, 10)


def test_a_missed_deadline_doubles_until_an_answer(peer_id):
    deadlines = Deadlines()
    deadlines.observe(peer_id(1), 1, 10, 0.75)
    waits = []
    for _ in range(7):
        waits.append(deadlines.deadline(peer_id(1), 1, 10))
        deadlines.timed_out(peer_id(1))
    assert waits == pytest.approx([3, 6, 12, 24, 48, 48, 48])
    deadlines.observe(peer_id(1), 1, 10, 0.75)
    assert deadlines.deadline(peer_id(1), 1, 10) < 3.0 + 0.1


@given(
    samples=st.lists(st.tuples(st.integers(1, 4096), st.integers(1, 200), st.floats())),
    tokens=st.integers(1, 10**6),
    blocks=st.integers(1, 200),
    decode_us=st.integers() | st.just(10**400),
    prefill_us=st.integers() | st.just(10**400),
)
def test_no_sample_or_announcement_makes_a_deadline_absurd(
    make_peer, samples, tokens, blocks, decode_us, prefill_us
):
    peer = make_peer(1, 0, 15, decode_us=decode_us, prefill_us=prefill_us)
    deadlines = Deadlines()
    for sample in samples:
        deadlines.observe(peer.peer_id, *sample)
    seconds = deadlines.deadline(peer.peer_id, tokens, blocks, peer)
    assert 2.0 <= seconds <= max(60.0, 0.5 * tokens)


@pytest.mark.parametrize(("tokens", "blocks"), [(0, 1), (1, 0)])
def test_a_step_without_work_is_our_own_bug(peer_id, tokens, blocks):
    with pytest.raises(ValueError, match="no step"):
        Deadlines().observe(peer_id(1), tokens, blocks, 1.0)
    with pytest.raises(ValueError, match="no step"):
        Deadlines().deadline(peer_id(1), tokens, blocks)


def test_round_trips_are_smoothed(peer_id):
    rtts = RttTable()
    assert rtts.get(peer_id(1)) is None
    rtts.observe(peer_id(1), 0.08)
    rtts.observe(peer_id(1), 0.16)
    assert rtts.get(peer_id(1)) == pytest.approx(0.09)
    for bad in (math.nan, math.inf, -1.0):
        rtts.observe(peer_id(1), bad)
    assert rtts.snapshot() == {peer_id(1): pytest.approx(0.09)}
