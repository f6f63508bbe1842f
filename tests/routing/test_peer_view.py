"""The view keeps what can be routed over, and only that."""

from __future__ import annotations

from swarmd.blocks import Span
from swarmd.peers import ModelId, PeerState
from swarmd.routing.view import MAX_REMEMBERED, View


def test_only_online_peers_of_the_model_are_routable(make_peer, model_id):
    online = make_peer(1, 0, 15)
    joining = make_peer(2, 15, 30, state=PeerState.JOINING)
    draining = make_peer(3, 0, 30, state=PeerState.DRAINING)
    foreign = make_peer(4, 0, 30, model_id=ModelId(b"x" * 16))
    other_size = make_peer(5, 0, 20, n_blocks=20)
    beyond = make_peer(6, 20, 40)
    gone = make_peer(7, 0, 30, state=PeerState.GONE)
    view = View.of(
        [beyond, gone, other_size, foreign, draining, joining, online], 30, model_id=model_id
    )
    assert view.peers == (online, joining, draining)
    assert view.routable == (online,)
    assert view.coverage() == [1] * 15 + [0] * 15
    assert view.holes() == [Span(15, 30)]
    assert view.get(joining.peer_id) is joining
    assert view.get(gone.peer_id) is None


def test_the_newest_announcement_counts_also_as_a_tombstone(make_peer, model_id):
    old, new = make_peer(1, 0, 15, sequence=1), make_peer(1, 15, 30, sequence=2)
    dead = make_peer(1, 15, 30, sequence=3, state=PeerState.GONE)
    for order in ([old, new], [new, old]):
        assert View.of(order, 30, model_id=model_id).peers == (new,)
    assert View.of([dead, new, old], 30, model_id=model_id).peers == ()


def test_dtypes_and_without(make_peer, model_id):
    one = make_peer(1, 0, 30)
    two = make_peer(2, 0, 30, dtype="float32")
    three = make_peer(3, 0, 30, dtype="int8", state=PeerState.JOINING)
    view = View.of([one, two, three], 30, model_id=model_id)
    assert view.dtypes() == ("bfloat16", "float32")
    assert view.with_dtype("float32").peers == (two,)
    assert view.without({one.peer_id}).peers == (two, three)


def test_arithmetics(make_peer, model_id):
    plain, eight = make_peer(1, 0, 30), make_peer(2, 0, 30, quantization="int8")
    other = make_peer(3, 0, 30, dtype="float32", quantization="int8")
    view = View.of([plain, eight, other], 30, model_id=model_id)
    assert view.arithmetics() == (eight.arithmetic, plain.arithmetic, other.arithmetic)
    assert view.with_arithmetic(eight.arithmetic).peers == (eight,)
    assert view.with_quantization("int8").peers == (eight, other)
    assert view.with_dtype("bfloat16").peers == (plain, eight)
    assert str(plain.arithmetic) == "bfloat16"
    assert str(other.arithmetic) == "float32 int8"


def test_the_name_is_for_messages_and_never_unprintable(make_peer, model_id):
    evil = make_peer(1, 0, 30, model_name="\x1b[2J", sequence=9)
    good = make_peer(2, 0, 30, model_name="smollm2", sequence=1)
    assert View.of([evil, good], 30, model_id=model_id).model_name == "smollm2"
    assert View.of([evil], 30, model_id=model_id).model_name == model_id.short
    assert View.of([good], 30, model_id=model_id, model_name="mine").model_name == "mine"


def test_what_a_fetch_misses_stays_until_it_expires(make_peer, model_id):
    """Those that held the records may have died just now: nobody is forgotten for that."""
    one, two = make_peer(1, 0, 15, expires_at=100.0), make_peer(2, 15, 30, expires_at=200.0)
    view = View.of([one, two], 30, model_id=model_id)
    assert view.renewed([], 99.0).peers == (one, two)
    assert view.renewed([], 100.0).peers == (two,)
    assert view.renewed([], 200.0).peers == ()
    moved = make_peer(1, 15, 30, sequence=1, expires_at=300.0)
    assert view.renewed([moved], 99.0).peers == (moved, two)


def test_a_tombstone_ends_what_was_known(make_peer, model_id):
    one = make_peer(1, 0, 15, expires_at=100.0)
    gone = make_peer(1, 0, 15, expires_at=100.0, sequence=1, state=PeerState.GONE)
    view = View.of([one], 30, model_id=model_id).renewed([gone], 50.0)
    assert view.peers == ()
    assert view.renewed([], 60.0).peers == ()


def test_only_so_many_are_remembered(make_peer, model_id):
    many = [make_peer(n, 0, 15, expires_at=1000.0 + n) for n in range(MAX_REMEMBERED + 10)]
    view = View.of(many, 30, model_id=model_id).renewed([], 0.0)
    assert len(view.peers) == MAX_REMEMBERED
    assert min(peer.expires_at for peer in view.peers) == 1010.0
