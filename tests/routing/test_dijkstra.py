"""The search against networkx on the full graph, and what a chain must be."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import pairwise
from random import Random

import networkx as nx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from swarmd.blocks import Span
from swarmd.errors import NoRoute
from swarmd.peers import PeerState
from swarmd.routing.chain import Chain
from swarmd.routing.cost import Costs, Measurements
from swarmd.routing.dijkstra import best_chain, find_chain
from swarmd.routing.price import Price, chain_price
from swarmd.routing.query import RouteQuery
from swarmd.routing.view import View

TRIPS = st.sampled_from([0.0, 0.0001, 0.002, 0.03, 0.1, 0.4, 2.0])


@st.composite
def cases(draw):
    """Plain values; the test makes peers of them. Peer number `count` is in no view."""
    n_blocks, count = draw(st.integers(1, 6)), draw(st.integers(1, 6))
    numbers = st.integers(0, count)
    peers = []
    for number in range(count):
        start = draw(st.integers(0, n_blocks - 1))
        fields = {
            "decode_us": draw(st.sampled_from([0, 100, 1000, 30_000, 200_000])),
            "kv_free": draw(st.sampled_from([0, 1000])),
            "queue": draw(st.integers(0, 2)),
            "rtts": draw(st.dictionaries(numbers, TRIPS, max_size=count)),
            "dtype": draw(st.sampled_from(["bfloat16", "float32"])),
            "quantization": draw(st.sampled_from(["none", "int8"])),
        }
        peers.append((number, start, draw(st.integers(start + 1, n_blocks)), fields))
    start = draw(st.integers(0, n_blocks - 1))
    return {
        "n_blocks": n_blocks,
        "peers": peers,
        "client_rtt": draw(st.dictionaries(numbers, TRIPS, max_size=count)),
        "edge_rtt": draw(
            st.dictionaries(st.tuples(numbers, numbers), TRIPS | st.just(math.inf), max_size=4)
        ),
        "start": start,
        "end": draw(st.integers(start + 1, n_blocks)),
        "banned": draw(st.sets(numbers, max_size=2)),
        "avoid": draw(st.sets(numbers, max_size=2)),
        "previous": draw(st.none() | numbers),
        "next": draw(st.none() | numbers),
        "tokens": draw(st.sampled_from([1, 128])),
        "kv_needed": draw(st.sampled_from([0, 500])),
        "mode": draw(st.sampled_from(["hub", "ring"])),
        "seed": draw(st.none() | st.integers(0, 9)),
    }


def _setting(case, make_peer, peer_id, model_id):
    """The view, the costs and the keyword arguments of a case."""
    peers = []
    for number, start, end, fields in case["peers"]:
        rtts = {peer_id(other): trip for other, trip in fields["rtts"].items()}
        peers.append(make_peer(number, start, end, case["n_blocks"], **{**fields, "rtts": rtts}))
    trips = {peer_id(number): trip for number, trip in case["client_rtt"].items()}
    arguments = {key: case[key] for key in ("start", "end", "tokens", "kv_needed", "mode")}
    for key in ("banned", "avoid"):
        arguments[key] = frozenset(map(peer_id, case[key]))
    for key in ("previous", "next"):
        arguments[key] = None if case[key] is None else peer_id(case[key])
    view = View.of(peers, case["n_blocks"], model_id=model_id)
    edges = {(peer_id(a), peer_id(b)): trip for (a, b), trip in case["edge_rtt"].items()}
    return view, Costs(measured=Measurements(client_rtt=trips, edge_rtt=edges)), arguments


def _full_graph(view, costs, factors, arguments):
    """Every pair of peers at every block: ("at", p, b) arrived there, ("ran", p, b) ran b - 1."""
    start, end, tokens, mode = (arguments[key] for key in ("start", "end", "tokens", "mode"))
    previous, following = view.get(arguments["previous"]), arguments["next"]
    peers = [peer for peer in view.routable if peer.peer_id not in arguments["banned"]]
    graph = nx.DiGraph()
    graph.add_nodes_from(["client", "done"])

    def admit(peer):
        return costs.admit(peer, arguments["kv_needed"], avoided=peer.peer_id in arguments["avoid"])

    for q in peers:
        own, f = q.peer_id, factors[q.peer_id]
        way_in, way_out = costs.enter(own, tokens), costs.leave(own, tokens)
        if previous is not None:
            way_in = costs.hop(previous, own, tokens=tokens, mode=mode)
        if following is not None:
            way_out = costs.hop(q, following, tokens=tokens, mode=mode)
        graph.add_edge("client", ("at", own, start), weight=f * (way_in + admit(q)))
        graph.add_edge(("ran", own, end), "done", weight=f * way_out)
        for b in q.span:
            run = f * costs.run(q, 1, tokens)
            graph.add_edge(("at", own, b), ("ran", own, b + 1), weight=run)
            graph.add_edge(("ran", own, b), ("ran", own, b + 1), weight=run)
        for p in peers:
            if p is q:
                continue
            for b in range(start, end + 1):
                hop = factors[p.peer_id] * costs.leave(p.peer_id, tokens)
                hop += f * (costs.enter(own, tokens) + admit(q))
                edge = costs.edge(p, own, tokens)
                if mode == "ring" and edge is not None:
                    hop = min(hop, f * (edge + admit(q)))
                graph.add_edge(("ran", p.peer_id, b), ("at", own, b), weight=hop)
    return graph


def _check_shape(chain: Chain, start: int, end: int) -> None:
    assert chain.span == Span(start, end)
    assert all(hop.peer.span.covers(hop.span) for hop in chain.hops)
    for one, two in pairwise(chain.hops):
        assert one.span.end == two.span.start
        assert one.peer.peer_id != two.peer.peer_id


@settings(max_examples=600, deadline=None)
@given(case=cases())
def test_the_cost_is_that_of_the_shortest_path_in_the_full_graph(
    case, make_peer, peer_id, model_id
):
    view, costs, arguments = _setting(case, make_peer, peer_id, model_id)
    rng = None if case["seed"] is None else Random(case["seed"])
    covered = {
        block
        for peer in view.routable
        if peer.peer_id not in arguments["banned"]
        for block in peer.span
    }
    missing = [b for b in range(case["start"], case["end"]) if b not in covered]
    if missing:
        with pytest.raises(NoRoute) as caught:
            find_chain(view, costs, RouteQuery(rng=rng, **arguments))
        assert [block for span in caught.value.missing for block in span] == missing
        return
    chain = find_chain(view, costs, RouteQuery(rng=rng, **arguments))
    _check_shape(chain, case["start"], case["end"])
    draw = None if case["seed"] is None else Random(case["seed"])
    factors = {peer.peer_id: costs.jitter(draw) for peer in view.routable}
    graph = _full_graph(view, costs, factors, arguments)
    shortest = nx.dijkstra_path_length(graph, "client", "done")
    assert chain.cost == pytest.approx(shortest, rel=1e-9)

    around = {
        key: None if arguments[key] is None else view.get(arguments[key])
        for key in ("previous", "next")
    }
    known = all(arguments[key] is None or around[key] for key in around)
    if rng is None and known:
        priced = {key: arguments[key] for key in ("avoid", "tokens", "kv_needed", "mode")}
        prices = chain_price(chain.hops, costs, **around, **priced)
        assert chain.cost == pytest.approx(sum(prices, Price()).total)


@settings(max_examples=150, deadline=None)
@given(case=cases(), mixed=st.booleans())
def test_the_best_chain_is_of_one_arithmetic_and_of_least_cost(
    case, mixed, make_peer, peer_id, model_id
):
    view, costs, arguments = _setting(case, make_peer, peer_id, model_id)
    possible = []
    parts = (
        [view.with_dtype(dtype) for dtype in view.dtypes()]
        if mixed
        else [view.with_arithmetic(arithmetic) for arithmetic in view.arithmetics()]
    )
    for part in parts:
        try:
            possible.append(find_chain(part, costs, RouteQuery(**arguments)))
        except NoRoute:
            continue
    if not possible:
        with pytest.raises(NoRoute) as caught:
            best_chain(view, costs, RouteQuery(**arguments), mixed=mixed)
        assert caught.value.missing
        return
    best = best_chain(view, costs, RouteQuery(**arguments), mixed=mixed)
    assert len({hop.peer.dtype for hop in best.hops}) == 1
    assert mixed or len(best.quantizations) == 1
    assert best.cost == min(chain.cost for chain in possible)


@pytest.mark.parametrize("mode", ["hub", "ring"])
def test_a_peer_may_be_entered_and_left_in_the_middle_of_its_span(make_peer, model_id, mode):
    peers = [make_peer(1, 0, 20, decode_us=50_000), make_peer(2, 10, 30)]
    chain = find_chain(View.of(peers, 30, model_id=model_id), Costs(), RouteQuery(mode=mode))
    assert chain.describe() == "0:10 via 00000000 10:30 via 00000000"
    assert [hop.peer for hop in chain.hops] == peers


def test_a_relay_that_runs_no_block_is_never_used(make_peer, peer_id, model_id):
    a = make_peer(1, 0, 1, 2, rtts={peer_id(2): 2.0, peer_id(3): 0.0001})
    b = make_peer(2, 1, 2, 2)
    relay = make_peer(3, 0, 1, 2, rtts={peer_id(2): 0.0001}, decode_us=10_000_000)
    far = Costs(measured=Measurements(client_rtt={peer_id(2): 4.0}))
    chain = find_chain(View.of([a, b, relay], 2, model_id=model_id), far, RouteQuery(mode="ring"))
    assert [hop.peer for hop in chain.hops] == [a, b]
    assert chain.cost > 1.0


def test_a_link_that_is_longer_than_the_way_by_the_client_is_not_counted(
    make_peer, peer_id, model_id
):
    far = make_peer(1, 0, 1, 2, rtts={peer_id(3): 5.0})
    tail = make_peer(3, 1, 2, 2)
    view = View.of([far, tail], 2, model_id=model_id)
    ring = find_chain(view, Costs(), RouteQuery(mode="ring"))
    assert ring.cost == find_chain(view, Costs(), RouteQuery(mode="hub")).cost


def test_a_link_that_the_client_measured_counts_and_one_that_broke_does_not(
    make_peer, peer_id, model_id
):
    slow = make_peer(1, 0, 1, 2, decode_us=60_000)
    fast = make_peer(2, 0, 1, 2, rtts={peer_id(3): 0.001})
    tail = make_peer(3, 1, 2, 2)
    view = View.of([slow, fast, tail], 2, model_id=model_id)
    query = RouteQuery(mode="ring")
    assert find_chain(view, Costs(), query).peer_ids[0] == fast.peer_id
    broken = {(fast.peer_id, tail.peer_id): math.inf, (slow.peer_id, tail.peer_id): 0.001}
    measured = Costs(measured=Measurements(edge_rtt=broken))
    assert find_chain(view, measured, query).peer_ids[0] == slow.peer_id


def test_a_ban_and_a_pause_act_on_the_next_search(make_peer, model_id):
    fast, slow = make_peer(1, 0, 30), make_peer(2, 0, 30, decode_us=20_000)
    view = View.of([fast, slow], 30, model_id=model_id)
    assert find_chain(view, Costs()).peer_ids == (fast.peer_id,)
    assert find_chain(view, Costs(), RouteQuery(banned={fast.peer_id})).peer_ids == (slow.peer_id,)
    assert find_chain(view, Costs(), RouteQuery(avoid={fast.peer_id})).peer_ids == (slow.peer_id,)
    both = find_chain(view, Costs(), RouteQuery(banned={slow.peer_id}, avoid={fast.peer_id}))
    assert both.peer_ids == (fast.peer_id,)  # avoided, yet the only one


def test_a_lost_range_may_need_several_peers(make_peer, model_id):
    peers = [make_peer(n, 5 * n, 5 * n + 5) for n in range(6)]
    view = View.of(peers, 30, model_id=model_id)
    query = RouteQuery(
        start=7, end=18, mode="ring", previous=peers[0].peer_id, next=peers[5].peer_id
    )
    chain = find_chain(view, Costs(), query)
    assert [str(hop.span) for hop in chain.hops] == ["7:10", "10:15", "15:18"]


def test_jitter_spreads_equal_peers_and_is_reproducible(make_peer, model_id):
    view = View.of([make_peer(n, 0, 30) for n in range(10)], 30, model_id=model_id)
    taken = {find_chain(view, Costs(), RouteQuery(rng=Random(seed))).peer_ids for seed in range(60)}
    assert len(taken) == 10
    assert find_chain(view, Costs(), RouteQuery(rng=Random(3))) == find_chain(
        view, Costs(), RouteQuery(rng=Random(3))
    )
    assert find_chain(view, Costs()).peer_ids == (view.peers[0].peer_id,)


def test_no_route_says_what_is_missing_and_what_to_do(make_peer, model_id):
    peers = [make_peer(n, 0, 12, announced_at=100.0 + n) for n in range(4)]
    peers += [make_peer(n, 18, 30, announced_at=50.0) for n in (4, 5)]
    view = View.of(peers, 30, model_id=model_id)
    with pytest.raises(NoRoute) as caught:
        find_chain(view, Costs(), RouteQuery(wall=144.0))
    assert caught.value.missing == (Span(12, 18),)
    assert str(caught.value) == (
        "no live peer holds blocks 12:18 of smollm2-135m (6 peers seen, newest 41 s ago); "
        "start one: swarmd serve --blocks 12:18"
    )
    with pytest.raises(NoRoute, match=r"blocks 12:30 of .*6 peers seen, 2 banned for now\)"):
        find_chain(
            view, Costs(), RouteQuery(banned={peers[4].peer_id, peers[5].peer_id, peers[0].peer_id})
        )
    with pytest.raises(NoRoute, match=r"0 peers seen\)"):
        find_chain(View.of([], 30, model_id=model_id), Costs())


def test_no_route_within_one_dtype_names_it(make_peer, model_id):
    peers = [make_peer(1, 0, 20), make_peer(2, 15, 30, dtype="float32")]
    view = View.of(peers, 30, model_id=model_id)
    with pytest.raises(NoRoute, match="blocks 20:30 of smollm2-135m in bfloat16") as caught:
        best_chain(view, Costs())
    assert caught.value.missing == (Span(20, 30),)
    with pytest.raises(NoRoute, match="blocks 20:30 of smollm2-135m \\("):
        best_chain(view.without({peers[1].peer_id}), Costs())


def test_joining_and_draining_peers_are_not_routed_over(make_peer, model_id):
    peer = make_peer(1, 0, 30)
    for state in (PeerState.JOINING, PeerState.DRAINING):
        view = View.of([replace(peer, state=state)], 30, model_id=model_id)
        with pytest.raises(NoRoute, match="1 peer seen"):
            find_chain(view, Costs())


@pytest.mark.parametrize(("start", "end"), [(-1, 5), (5, 5), (0, 31)])
def test_a_range_outside_the_model_is_our_own_bug(make_peer, model_id, start, end):
    view = View.of([make_peer(1, 0, 30)], 30, model_id=model_id)
    with pytest.raises(ValueError, match="30 blocks"):
        find_chain(view, Costs(), RouteQuery(start=start, end=end))
