"""Prices are what the words say, and finite whatever a peer announces."""

from __future__ import annotations

import math
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from swarmd.routing.chain import Hop
from swarmd.routing.cost import CostModel, Costs, Measurements
from swarmd.routing.price import Price, chain_price

ANY_INT = st.integers() | st.sampled_from([0, -1, 1, 2**31, 2**64, 10**400])
ANY_FLOAT = st.floats() | st.sampled_from([0.0, -0.0, math.inf, -math.inf, math.nan, 1e308])


def test_a_hub_chain_costs_a_round_trip_for_each_hop(make_peer):
    a, b = make_peer(1, 0, 15, queue=1), make_peer(2, 15, 30)
    costs = Costs(
        CostModel(bytes_per_token=1000),
        Measurements(
            client_rtt={a.peer_id: 0.010, b.peer_id: 0.030},
            bandwidth={a.peer_id: 1e6, b.peer_id: 1e6},
        ),
    )
    hops = [Hop(a, a.span), Hop(b, b.span)]
    compute = 15 * 0.001 * 2 + 15 * 0.001
    price = sum(chain_price(hops, costs, mode="hub"), Price())
    assert price.total == price.seconds == pytest.approx(0.040 + 4 * 0.001 + compute)
    assert price.trips == pytest.approx(0.040)
    assert price.bytes == pytest.approx(4 * 0.001)
    assert (price.compute, price.queue) == pytest.approx((0.030, 0.015))


def test_a_ring_chain_costs_half_a_trip_for_each_edge(make_peer):
    b = make_peer(2, 15, 30)
    a = make_peer(1, 0, 15, rtts={b.peer_id: 0.004})
    costs = Costs(
        CostModel(bytes_per_token=1000),
        Measurements(
            client_rtt={a.peer_id: 0.010, b.peer_id: 0.030},
            bandwidth={a.peer_id: 1e6, b.peer_id: 1e6},
        ),
    )
    hops = [Hop(a, a.span), Hop(b, b.span)]
    prices = chain_price(hops, costs, mode="ring")
    assert [price.trips for price in prices] == pytest.approx([0.005, 0.002 + 0.015])
    total = sum(prices, Price()).total
    assert total == pytest.approx(0.005 + 0.002 + 0.015 + 3 * 0.001 + 30 * 0.001)


def test_own_measurements_override_announcements(make_peer):
    liar = make_peer(1, 0, 15, decode_us=1)
    measured = Costs(measured=Measurements(step_us={liar.peer_id: 50_000.0}))
    assert measured.step(liar) == pytest.approx(0.05)
    assert Costs().step(liar) == CostModel().min_step
    assert measured.step(liar, tokens=2) >= 0.05  # a chunk takes no less than one position
    chunks = Costs(measured=Measurements(prefill_us={liar.peer_id: 40_000.0}))
    assert chunks.step(liar, tokens=10) == pytest.approx(0.4)
    nothing = Costs(measured=Measurements(step_us={liar.peer_id: 0.0}))
    assert nothing.step(liar) == CostModel().min_step


def test_unknown_speeds_and_links_have_stated_defaults(make_peer):
    model = CostModel()
    peer, other = make_peer(1, 0, 15, decode_us=0, prefill_us=0), make_peer(2, 0, 15)
    costs = Costs(model)
    assert costs.step(peer) == model.default_step
    assert costs.step(peer, 100) == pytest.approx(
        100 * model.default_step * model.default_prefill_ratio
    )
    assert costs.client_rtt(peer.peer_id) == model.default_rtt
    assert costs.edge_rtt(peer, other.peer_id) is None
    assert costs.edge_rtt(None, other.peer_id) is None
    assert costs.edge_rtt(peer, peer.peer_id) is None
    assert costs.forwards(peer, other.peer_id), "an unknown link is worth a try"
    assert costs.hop(peer, other.peer_id, mode="ring") == costs.hop(peer, other.peer_id, mode="hub")


def test_penalties(make_peer):
    peer, model = make_peer(1, 0, 15, kv_free=100), CostModel()
    assert Costs().admit(peer, 100) == 0
    assert Costs().admit(peer, 101) == model.kv_shortage_penalty
    assert Costs().admit(peer, avoided=True) == model.avoid_penalty


def test_jitter_is_seeded_small_and_optional():
    costs = Costs()
    assert costs.jitter(None) == 1.0
    assert costs.jitter(Random(5)) == costs.jitter(Random(5))
    assert all(1.0 <= costs.jitter(Random(seed)) < 1.05 for seed in range(100))


@given(
    decode=ANY_INT, prefill=ANY_INT, kv=ANY_INT, queue=ANY_INT, rtt=ANY_FLOAT, own=ANY_FLOAT,
    bandwidth=ANY_FLOAT, step=ANY_FLOAT, tokens=st.integers(1, 100_000),
)  # fmt: skip
def test_no_announcement_or_measurement_makes_a_price_absurd(
    make_peer, decode, prefill, kv, queue, rtt, own, bandwidth, step, tokens
):
    b = make_peer(2, 15, 30)
    a = make_peer(
        1, 0, 15, decode_us=decode, prefill_us=prefill, kv_free=kv, queue=queue,
        rtts={b.peer_id: rtt},
    )  # fmt: skip
    costs = Costs(
        measured=Measurements(
            client_rtt={a.peer_id: own},
            bandwidth={a.peer_id: bandwidth},
            step_us={a.peer_id: step},
        )
    )
    prices = [
        costs.enter(a.peer_id, tokens),
        costs.leave(a.peer_id, tokens),
        costs.hop(a, b.peer_id, tokens=tokens, mode="ring"),
        costs.hop(a, b.peer_id, tokens=tokens, mode="hub"),
        costs.run(a, 80, tokens),
    ]
    assert all(math.isfinite(price) and price > 0 for price in prices)
    assert math.isfinite(costs.admit(a, 10)) and costs.admit(a, 10) >= 0
