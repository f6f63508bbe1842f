"""Who takes which blocks: against brute force, alone, in turn and all at once."""

from __future__ import annotations

from dataclasses import replace
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from swarmd.blocks import Span, coverage
from swarmd.peers import PeerInfo, PeerState
from swarmd.routing.placement import (
    block_throughput,
    choose_span,
    entry_delay,
    should_move,
    should_rechoose,
)

JOINING, ONLINE = PeerState.JOINING, PeerState.ONLINE


def _chosen(peers: list[PeerInfo], count: int, n_blocks: int) -> Span:
    return choose_span(block_throughput(peers, n_blocks), count)


@given(st.lists(st.integers(0, 3), min_size=1, max_size=12), st.data())
def test_the_chosen_window_is_the_worst_served_one(speeds, data):
    count = data.draw(st.integers(1, len(speeds)))
    chosen = choose_span([float(speed) for speed in speeds], count)
    windows = [
        (sorted(speeds[start : start + count]), start) for start in range(len(speeds) - count + 1)
    ]
    assert (sorted(speeds[block] for block in chosen), chosen.start) == min(windows)
    assert len(chosen) == count


@pytest.mark.parametrize("count", [0, 4])
def test_a_window_must_fit(count):
    with pytest.raises(ValueError, match="of 3 blocks"):
        choose_span([0.0, 0.0, 0.0], count)


def test_throughput_counts_claims_and_online_peers(make_peer):
    peers = [
        make_peer(1, 0, 2, 4, decode_us=1000),
        make_peer(2, 1, 3, 4, decode_us=500, state=JOINING),
        make_peer(3, 0, 4, 4, state=PeerState.DRAINING),
        make_peer(4, 0, 4, 4, state=PeerState.GONE),
    ]
    assert block_throughput(peers, 4) == [1000.0, 3000.0, 2000.0, 0.0]


@given(decode=st.integers() | st.just(10**400), end=st.integers(1, 50))
def test_coverage_by_a_peer_of_absurd_speed_is_never_zero_or_endless(make_peer, decode, end):
    [speed] = set(block_throughput([make_peer(1, 0, end, decode_us=decode)], 1))
    assert 0 < speed <= 200_000


@given(st.lists(st.integers(1, 10**6), min_size=1, max_size=6), st.randoms(use_true_random=False))
def test_throughput_does_not_depend_on_the_order(make_peer, speeds, rng):
    peers = [make_peer(n, 0, 1, 1, decode_us=speed) for n, speed in enumerate(speeds)]
    shuffled = list(peers)
    rng.shuffle(shuffled)
    assert block_throughput(peers, 1) == block_throughput(shuffled, 1)


def test_four_peers_of_half_the_model_cover_it_twice(make_peer):
    peers: list[PeerInfo] = []
    for number in range(4):
        span = _chosen(peers, 15, 30)
        peers.append(make_peer(number, span.start, span.end, state=JOINING))
    assert [str(peer.span) for peer in peers] == ["0:15", "15:30", "0:15", "15:30"]


def _settle(
    claims: list[PeerInfo], n_blocks: int, rng: Random, *, together: bool
) -> list[PeerInfo]:
    """Re-choose, in turn in random order or all at once, until nobody wants to. A peer that moves
    announces that, so its claim becomes the latest."""
    claims, sequence = list(claims), max(claim.sequence for claim in claims)
    for _ in range(3 * len(claims) ** 2):
        order = list(range(len(claims)))
        rng.shuffle(order)
        seen, moved = list(claims), False
        for i in order:
            own, view = claims[i], seen if together else claims
            others = [peer for j, peer in enumerate(view) if j != i]
            better = should_rechoose(
                own.span, (own.sequence, own.peer_id), others, len(own.span), n_blocks
            )
            if better is not None:
                sequence += 1
                claims[i], moved = replace(own, span=better, sequence=sequence), True
        if not moved:
            return claims
    raise AssertionError("the peers never settle")


@pytest.mark.parametrize("together", [False, True])
def test_four_claims_at_once_end_in_even_coverage(make_peer, together):
    claims = [make_peer(n, 0, 15, state=JOINING, sequence=7) for n in range(4)]
    settled = _settle(claims, 30, Random(1), together=together)
    assert coverage((peer.span for peer in settled), 30) == [2] * 30


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_claims_made_blindly_end_as_if_made_one_after_the_other(make_peer, data):
    n_blocks = data.draw(st.integers(1, 9))
    equal = data.draw(st.none() | st.integers(1, n_blocks))
    claims: list[PeerInfo] = []
    for number in range(data.draw(st.integers(1, 6))):
        count = equal or data.draw(st.integers(1, n_blocks))
        seen = [claim for claim in claims if data.draw(st.booleans())]
        span = _chosen(seen, count, n_blocks)
        sequence = data.draw(st.integers(0, 1)) + number
        claims.append(
            make_peer(number, span.start, span.end, n_blocks, state=JOINING, sequence=sequence)
        )
    rng = Random(data.draw(st.integers(0, 99)))
    settled = _settle(claims, n_blocks, rng, together=data.draw(st.booleans()))

    one_by_one: list[PeerInfo] = []
    for peer in sorted(settled, key=lambda peer: (peer.sequence, peer.peer_id)):
        span = _chosen(one_by_one, len(peer.span), n_blocks)
        one_by_one.append(replace(peer, span=span))
    assert {peer.peer_id: peer.span for peer in settled} == {
        peer.peer_id: peer.span for peer in one_by_one
    }


@given(st.data())
def test_one_pass_in_the_order_of_the_claims_is_enough(make_peer, data):
    n_blocks = data.draw(st.integers(1, 9))
    claims: list[PeerInfo] = []
    for number in range(data.draw(st.integers(1, 6))):
        count = data.draw(st.integers(1, n_blocks))
        seen = [claim for claim in claims if data.draw(st.booleans())]
        span = _chosen(seen, count, n_blocks)
        claims.append(
            make_peer(number, span.start, span.end, n_blocks, state=JOINING, sequence=number)
        )
    sequential: list[PeerInfo] = []
    for i, own in enumerate(claims):
        others = claims[:i] + claims[i + 1 :]
        claim = (own.sequence, own.peer_id)
        better = should_rechoose(own.span, claim, others, len(own.span), n_blocks)
        claims[i] = replace(own, span=better or own.span)
        span = _chosen(sequential, len(own.span), n_blocks)
        sequential.append(replace(own, span=span))
    assert claims == sequential


def test_an_earlier_claim_and_an_online_peer_are_given_a_later_claim_yields(make_peer, peer_id):
    own = (5, peer_id(5))

    def rechoose(other: PeerInfo, **seen: object) -> Span | None:
        return should_rechoose(Span(0, 15), own, [other], 15, 30, **seen)  # type: ignore[arg-type]

    assert rechoose(make_peer(9, 0, 15, state=JOINING, sequence=4)) == Span(15, 30)
    assert rechoose(make_peer(9, 0, 15, state=JOINING, sequence=6)) is None
    assert rechoose(make_peer(4, 0, 15, state=JOINING, sequence=5)) == Span(15, 30)
    assert rechoose(make_peer(6, 0, 15, state=JOINING, sequence=5)) is None
    assert rechoose(make_peer(9, 0, 15, sequence=99)) == Span(15, 30)
    assert rechoose(make_peer(9, 0, 15, sequence=1, state=PeerState.DRAINING)) is None


def test_a_claim_that_was_seen_stays_given_when_it_is_renewed(make_peer, peer_id):
    loading = make_peer(1, 0, 15, state=JOINING, sequence=100)
    renewed = replace(loading, sequence=160)
    claim, own = (150, peer_id(2)), Span(15, 30)
    assert should_rechoose(own, claim, [loading], 15, 30) is None
    assert should_rechoose(own, claim, [renewed], 15, 30) == Span(0, 15)  # as if it came later
    seen = {loading.peer_id: loading.span}
    assert should_rechoose(own, claim, [renewed], 15, 30, seen) is None


def test_moving_needs_a_gain_of_more_than_a_third(make_peer):
    # Blocks 0:2 are served at 1000 + 1000 (ours), 2:4 at what the last peer makes of it.
    def swarm(decode_us: int) -> list[PeerInfo]:
        return [make_peer(1, 0, 2, 4), make_peer(2, 2, 4, 4, decode_us=decode_us)]

    assert should_move(Span(0, 2), swarm(4000), 1000.0, 4) == Span(2, 4)  # 250 to 1000
    assert should_move(Span(0, 2), swarm(1250), 1000.0, 4) is None  # 800 to 1000
    assert should_move(Span(0, 2), swarm(1250), 1000.0, 4, gain=0.2) == Span(2, 4)
    assert should_move(Span(0, 2), swarm(4000), 0.0, 4) is None


def test_a_move_never_opens_a_hole_and_fills_one_where_it_can(make_peer):
    assert should_move(Span(0, 2), [make_peer(1, 1, 4, 4)], 1000.0, 4) is None
    claim = make_peer(1, 0, 2, 4, state=JOINING)  # it may fail: what we hold stays held
    assert should_move(Span(0, 2), [claim], 1000.0, 4) is None
    assert should_move(Span(0, 2), [replace(claim, state=ONLINE)], 1000.0, 4) == Span(2, 4)
    # A hole of 4 blocks cannot be filled by one peer of 2, yet half of it is a gain.
    assert should_move(Span(0, 2), [make_peer(1, 0, 2, 6)], 1000.0, 6) == Span(2, 4)


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_should_move_against_its_rule(make_peer, data):
    n_blocks = data.draw(st.integers(1, 8))

    def window() -> Span:
        start = data.draw(st.integers(0, n_blocks - 1))
        return Span(start, data.draw(st.integers(start + 1, n_blocks)))

    others = []
    for number in range(data.draw(st.integers(0, 5))):
        span, state = window(), data.draw(st.sampled_from([JOINING, ONLINE]))
        speed = data.draw(st.sampled_from([300, 1000, 5000]))
        others.append(
            make_peer(number, span.start, span.end, n_blocks, state=state, decode_us=speed)
        )
    current, own_speed = window(), data.draw(st.sampled_from([100.0, 1000.0]))
    target = should_move(current, others, own_speed, n_blocks)

    held_by_others = {block for p in others if p.state is ONLINE for block in p.span}
    base = block_throughput(others, n_blocks)

    def outcome(span: Span) -> list[float]:
        return [speed + own_speed * (block in span) for block, speed in enumerate(base)]

    def worthwhile(span: Span) -> bool:
        before, after = outcome(current), outcome(span)
        if min(before) == 0:
            return after.count(0) < before.count(0)
        return min(after) > min(before) * 4 / 3

    allowed = [
        Span(start, start + len(current))
        for start in range(n_blocks - len(current) + 1)
        if set(current) - set(range(start, start + len(current))) <= held_by_others
    ]
    if target is None:
        assert not any(worthwhile(span) for span in allowed if span != current)
    else:
        assert target in allowed and worthwhile(target)
        assert sorted(outcome(target)) == max(sorted(outcome(span)) for span in allowed)


def test_the_entry_delay_is_uniform_and_seeded():
    delays = [entry_delay(Random(seed), 3.0) for seed in range(50)]
    assert all(0 <= delay < 3.0 for delay in delays)
    assert len(set(delays)) == 50
    assert entry_delay(Random(1), 3.0) == entry_delay(Random(1), 3.0)
    assert entry_delay(Random(1), 0.0) == 0.0


def test_a_loading_peer_counts_as_a_typical_one(make_peer):
    """Three peers join at the same moment as a measured one serves: each half is held twice."""
    peers = [make_peer(1, 0, 15, decode_us=2000)]
    for number, expected in ((2, Span(15, 30)), (3, Span(0, 15)), (4, Span(15, 30))):
        span = choose_span(block_throughput(peers, 30), 15)
        assert span == expected
        peers.append(make_peer(number, span.start, span.end, state=JOINING, decode_us=0))
