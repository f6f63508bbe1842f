"""The chains that `swarmd route --explain` lists."""

from __future__ import annotations

import pytest

from swarmd.errors import NoRoute
from swarmd.routing.candidates import candidates
from swarmd.routing.cost import Costs, Measurements
from swarmd.routing.dijkstra import find_chain
from swarmd.routing.query import WHOLE_MODEL
from swarmd.routing.view import View


def listed(peers, model_id, rtts=None):
    view = View.of(peers, 30, model_id=model_id)
    costs = Costs(measured=Measurements(client_rtt=rtts or {}))
    return candidates(lambda query: find_chain(view, costs, query), costs, WHOLE_MODEL)


def test_the_best_chain_comes_first_and_then_the_best_without_each_of_its_peers(
    make_peer, model_id, peer_id
):
    a, b, c = make_peer(1, 0, 15), make_peer(2, 15, 30), make_peer(3, 0, 30, decode_us=1200)
    rtts = {peer_id(1): 0.002, peer_id(2): 0.002, peer_id(3): 0.010}
    winner, *others = listed([a, b, c], model_id, rtts)
    assert winner.chain.peer_ids == (a.peer_id, b.peer_id)
    assert winner.without is None
    assert winner.price.total == pytest.approx(winner.chain.cost)
    # c alone is the best without a, and without b as well: it is listed once
    assert [(one.chain.peer_ids, one.without) for one in others] == [((c.peer_id,), a.peer_id)]
    assert others[0].price.total > winner.price.total


def test_others_are_in_the_order_of_their_price(make_peer, model_id):
    peers = [make_peer(n, 0, 30, decode_us=1000 + 100 * n) for n in range(3)]
    ends = [make_peer(5, 0, 15, decode_us=100), make_peer(6, 15, 30, decode_us=10)]
    found = listed([*peers, *ends], model_id, {peer.peer_id: 0.001 for peer in [*peers, *ends]})
    prices = [one.price.total for one in found]
    assert prices == sorted(prices)
    assert len(found) == 3


def test_a_peer_without_which_nothing_works_has_no_entry(make_peer, model_id):
    assert len(listed([make_peer(1, 0, 15), make_peer(2, 15, 30)], model_id)) == 1


def test_no_chain_at_all_is_an_error(make_peer, model_id):
    with pytest.raises(NoRoute):
        listed([make_peer(1, 0, 15)], model_id)
