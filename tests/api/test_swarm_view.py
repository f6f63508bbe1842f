"""The page's JSON: coverage, hostile text, bounds, and what changed."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Collection
from typing import Any

from swarmd.api.swarm_view import (
    HISTORY,
    MAX_HOPS,
    MAX_PEERS,
    MAX_RECOVERIES,
    SENTENCE,
    WORD,
    AnswerSeen,
    Doubts,
    ModelSeen,
    RecoverySeen,
    TokenRate,
    changes,
    snapshot,
)
from swarmd.blocks import Span
from swarmd.identity import PeerId
from swarmd.peers import Address, ModelId, PeerInfo, PeerState
from swarmd.routing.chain import Hop
from swarmd.routing.view import View

MODEL = ModelId(bytes(16))


def peer(number: int, start: int, end: int, **fields: Any) -> PeerInfo:
    plain = PeerInfo(
        peer_id=PeerId(number.to_bytes(20, "big")),
        address=Address("127.0.0.1", 1000),
        model_id=MODEL,
        model_name="m",
        n_blocks=6,
        span=Span(start, end),
        state=PeerState.ONLINE,
        decode_us=1000,
        prefill_us=100,
        kv_free=512,
        dtype="float32",
    )
    return dataclasses.replace(plain, **fields)


def shown(peers: Collection[PeerInfo], banned: Collection[PeerId] = ()) -> dict[str, Any]:
    """The only model of a snapshot."""
    view = View.of(peers, 6, model_id=MODEL, model_name="tiny")
    rtts = {peer.peer_id: 0.01234 for peer in list(peers)[:1]}
    (model,) = snapshot([ModelSeen(view, banned, rtts.get)], [], [])["models"]
    assert isinstance(model, dict)
    return model


def test_coverage_counts_those_that_can_serve() -> None:
    first, second = peer(1, 0, 4), peer(2, 2, 6)
    joining = peer(3, 0, 6, state=PeerState.JOINING)
    model = shown([first, second, joining])
    assert model["replicas"] == [1, 1, 2, 2, 1, 1]
    assert model["holes"] == []
    assert (model["peers_live"], model["peers_total"]) == (2, 3)
    rows = {row["id"]: row for row in model["peers"]}
    assert rows[str(first.peer_id)]["rtt_ms"] == 12.3
    assert rows[str(second.peer_id)]["rtt_ms"] is None
    assert rows[str(first.peer_id)]["tokens_per_second"] == 250.0
    assert rows[str(joining.peer_id)]["state"] == "joining"

    model = shown([first, second, joining], banned={second.peer_id})
    assert model["replicas"] == [1, 1, 1, 1, 0, 0]
    assert model["holes"] == [[4, 6]]
    states = {row["id"]: row["state"] for row in model["peers"]}
    assert states[str(second.peer_id)] == "failing"


def test_a_failed_peer_stays_in_doubt_until_it_announces_itself_anew() -> None:
    def seen(sequence: int, *banned: PeerInfo) -> frozenset[PeerId]:
        peers = [peer(1, 0, 3, sequence=sequence), peer(2, 3, 6, sequence=7)]
        view = View.of(peers, 6, model_id=MODEL)
        return doubts.update(view, {one.peer_id for one in banned})

    doubts, failed = Doubts(), peer(1, 0, 3)
    assert seen(7) == frozenset()
    assert seen(7, failed) == {failed.peer_id}
    assert seen(7) == {failed.peer_id}, "the ban has ended, and nothing was heard"
    assert seen(8) == frozenset()
    assert seen(8, failed) == {failed.peer_id}
    assert seen(9, failed) == {failed.peer_id}, "the ban lasts"
    assert seen(9) == frozenset(), "it was heard during the ban"
    seen(9, failed)
    assert doubts.update(View.of([], 6, model_id=MODEL), ()) == frozenset()
    assert seen(9) == frozenset(), "who left the view is forgotten"


def test_text_of_peers_is_cut_and_printable() -> None:
    evil = "\x1b[2J\u202e<script>" + "x" * 5000
    (row,) = shown([peer(1, 0, 6, version=evil, dtype=evil, address=Address(evil, 1))])["peers"]
    for name in ("version", "arithmetic", "address"):
        assert row[name].isprintable()
        assert len(row[name]) <= 2 * WORD
    hop = Hop(peer(1, 0, 6), Span(0, 6))
    lost = RecoverySeen(hop, [hop], f"{evil}\r\n\r\ndata: forged", 3, 0.5).as_json()
    assert lost["reason"].isprintable()
    assert len(lost["reason"]) <= SENTENCE
    assert lost["ms"] == 500.0


def test_sizes_are_bounded() -> None:
    model = shown([peer(number, 0, 6) for number in range(1, MAX_PEERS + 100)])
    assert len(model["peers"]) == MAX_PEERS
    assert model["peers_total"] == MAX_PEERS + 99
    assert model["replicas"] == [MAX_PEERS + 99] * 6
    assert len(json.dumps(model)) < 100_000
    hop = Hop(peer(1, 0, 6), Span(0, 6))
    lost = [RecoverySeen(hop, [hop] * 500, "gone", at, 0.1) for at in range(50)]
    answer = AnswerSeen(1, [(hop, 0.01)] * 500, 9, 4, lost).as_json()
    assert len(answer["route"]) == MAX_HOPS
    assert answer["losses"] == 50
    assert [one["position"] for one in answer["recoveries"]] == list(range(50))[-MAX_RECOVERIES:]
    assert len(answer["recoveries"][0]["by"]) == MAX_HOPS


def test_the_rate_is_that_of_the_time_between_samples() -> None:
    rate = TokenRate()
    for tokens, now in ((5, 0.0), (7, 1.0), (7, 1.0), (10, 3.0), (2, 4.0)):
        rate.sample(tokens, now)
    assert list(rate.rates) == [2.0, 1.5, 0.0]
    for second in range(2 * HISTORY):
        rate.sample(second, 10.0 + second)
    assert len(rate.rates) == HISTORY


def test_only_what_changed_is_told() -> None:
    first = snapshot([], [], [1.0])
    assert changes({}, first) == first
    assert changes(first, first) == {}
    assert changes(first, snapshot([], [], [1.0, 2.0])) == {"rates": [1.0, 2.0]}
