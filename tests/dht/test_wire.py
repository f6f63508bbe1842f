"""Envelope, messages, tokens, addresses: whatever comes in, nothing raises."""

from __future__ import annotations

import random
from typing import Any

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from swarmd.dht.addresses import NODE_BYTES, is_sendable, pack_nodes, unpack_nodes
from swarmd.dht.envelope import (
    MAX_DATAGRAM_BYTES,
    Drop,
    Kind,
    Message,
    datagram_keys,
    seal,
    unseal,
)
from swarmd.dht.messages import (
    MAX_HAVE,
    PingReply,
    PutReply,
    PutRequest,
    QueryReply,
    QueryRequest,
    Want,
    have_hash,
    ping_message,
)
from swarmd.dht.patience import Memory, Patience
from swarmd.dht.records import MAX_RECORD_BYTES
from swarmd.dht.storage import PutStatus
from swarmd.dht.tokens import TokenMint
from tests.dht.swarm import CONFIG, identity_of, record_of

(KEY,) = datagram_keys(CONFIG.keys)
ID = b"12345678"
POISON: list[tuple[Any, Any]] = [
    ("127.0.0.1", 70000),
    ("127.0.0.1", -1),
    ("127.0.0.1", 0),
    ("127.0.0.1", "x"),
    ("127.0.0.1", 5.5),
    ("127.0.0.1", True),
    (None, 5000),
    (5, 5000),
    ("127.0.0.1\0", 5000),
    ("localhost", 5000),
    ("::1", 5000),
    ("", 5000),
    ("0.0.0.0", 5000),
    ("255.255.255.255", 5000),
    ("224.0.0.1", 5000),
]


def test_round_trip_and_every_flipped_bit() -> None:
    datagram = seal(KEY, Kind.REQUEST, ID, [1, b"x", "y"])
    assert unseal([KEY], datagram) == Message(Kind.REQUEST, ID, (1, b"x", "y"), 0)
    for at in range(len(datagram)):
        broken = datagram[:at] + bytes([datagram[at] ^ 1]) + datagram[at + 1 :]
        assert unseal([KEY], broken) is Drop.TAG
    assert unseal([bytes(32)], datagram) is Drop.TAG


def test_sizes() -> None:
    assert unseal([KEY], b"") is Drop.SIZE
    assert unseal([KEY], b"x" * (MAX_DATAGRAM_BYTES + 1)) is Drop.SIZE
    assert isinstance(unseal([KEY], seal(KEY, Kind.REPLY, ID, [])), Message)  # the least there is
    with pytest.raises(ValueError):
        seal(KEY, Kind.REPLY, ID, [b"x" * MAX_DATAGRAM_BYTES])


def sealed_raw(body: bytes, kind: int = 1) -> bytes:
    """What an insider can send: any bytes with a good tag."""
    from swarmd.dht import envelope

    data = bytes([kind]) + ID + body
    return data + envelope._tag(KEY, data)


@given(st.binary(max_size=1300))
def test_garbage(data: bytes) -> None:
    assert isinstance(unseal([KEY], data), Drop)
    assert isinstance(unseal([KEY], sealed_raw(data[:1200])), Drop | Message)


def test_insiders_garbage() -> None:
    assert unseal([KEY], sealed_raw(b"\x90", kind=7)) is Drop.KIND
    for body in (
        b"\x91" * 1000,
        b"\x81\x01\x02",
        b"\xc7\x01\x01\x01",
        b"\x05",
        b"\x90\x90",
        b"\xa1",
    ):
        assert unseal([KEY], sealed_raw(body)) is Drop.BODY


@pytest.mark.parametrize(("host", "port"), POISON)
def test_poisonous_addresses_are_not_sendable(host: object, port: object) -> None:
    assert not is_sendable(host, port, 4)


def test_nodes_round_trip_without_the_poisonous() -> None:
    nodes = [(bytes([n]) * 20, f"10.0.0.{n}", 4000 + n) for n in range(20)]
    assert unpack_nodes(pack_nodes(nodes), 20) == nodes
    assert unpack_nodes(pack_nodes(nodes), 19) is None
    for bad in (b"x", "x", None, [b"x" * 26]):
        assert unpack_nodes(bad, 20) is None
    poison = pack_nodes([(bytes(20), "0.0.0.0", 1), (bytes(20), "1.2.3.4", 0), nodes[3]])
    assert unpack_nodes(poison, 20) == [nodes[3]]


values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats() | st.text()
    | st.binary(max_size=40) | st.sampled_from([b"k" * 20, b"t" * 8, b"", 1, 3]),
    lambda inner: st.lists(inner, max_size=8).map(tuple),
    max_leaves=12,
)  # fmt: skip


def test_nodes_of_ipv6_have_38_bytes() -> None:
    nodes = [(bytes([n]) * 20, f"2001:db8::{n:x}", 4000 + n) for n in range(1, 21)]
    assert unpack_nodes(pack_nodes(nodes), 20, 6) == nodes
    assert len(pack_nodes(nodes)) == 20 * NODE_BYTES[6]
    unusable = [(bytes(20), host, 5) for host in ("::", "ff02::1", "fe80::1", "::ffff:1.2.3.4")]
    assert unpack_nodes(pack_nodes([*unusable, nodes[0]]), 20, 6) == [nodes[0]]
    assert not is_sendable("::1", 5000, 4)
    assert not is_sendable("127.0.0.1", 5000, 6)
    assert not is_sendable("fe80::1%eth0", 5000)
    assert is_sendable("::1", 5000, 6)
    assert is_sendable("::1", 5000)


@given(values)
def test_messages_of_any_shape_are_refused_or_read(value: object) -> None:
    for parse in (QueryRequest.parse, PutRequest.parse, PutReply.parse):
        parse(value)
    QueryReply.parse(value, 20)
    assert PingReply.parse(value, [CONFIG.swarm_id], b"n" * 16) is None


GOOD: list[tuple[Any, list[Any]]] = [
    (QueryRequest.parse, [b"k" * 20, 3, b"t" * 8, b"s" * 8, b"h" * 8, 1, 2]),
    (PutRequest.parse, [b"k" * 20, b"t" * 8, b"record"]),
    (PutReply.parse, [1, 5, b"record"]),
    (lambda v: QueryReply.parse(v, 20), [b"", b"t" * 8, 1, 2, 3, (b"record",), False]),
]


@pytest.mark.parametrize(("parse", "good"), GOOD)
def test_every_field_wrong_typed_once(parse: Any, good: list[Any]) -> None:
    assert parse(tuple(good)) is not None
    for at in range(len(good)):
        for wrong in (None, 7.5, -1, 2**64, 1.5, "text", b"b" * 2000, (None,), (b"x" * 600,)):
            assert parse((*good[:at], wrong, *good[at + 1 :])) is None, (at, wrong)
    assert parse(tuple(good[:-1])) is None
    assert parse((*good, 1)) is None


def test_the_largest_messages_fit_into_a_datagram() -> None:
    sender = b"i" * 20
    query = QueryRequest(b"k" * 20, Want(3), b"t" * 8, b"s" * 8, b"h" * 4 * MAX_HAVE, 31, 32)
    seal(KEY, Kind.REQUEST, ID, [2, sender, query.pack()])
    put = PutRequest(b"k" * 20, b"t" * 8, b"r" * MAX_RECORD_BYTES)
    seal(KEY, Kind.REQUEST, ID, [3, sender, put.pack()])
    reply = PutReply(PutStatus.STALE, 2**32 - 1, b"r" * MAX_RECORD_BYTES)
    seal(KEY, Kind.REPLY, ID, [sender, reply.pack()])


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("nodes", [0, 20, 28])
def test_pages_fit_and_come_to_an_end(nodes: int, version: int) -> None:
    records = [record_of(seed, model_name="m" * (seed % 60)) for seed in range(40)]
    have, pages = b"", 0
    packed = b"n" * NODE_BYTES[version] * nodes
    while True:
        query = QueryRequest(b"k" * 20, Want.RECORDS, b"t" * 8, b"s" * 8, have)
        chosen, left = query.choose(records, len(packed))
        total = 2**32 - 1
        body = [packed, b"t" * 8, total, 2**64 - 1, total, [record.raw for record in chosen], True]
        seal(KEY, Kind.REPLY, ID, [b"i" * 20, body])
        have += b"".join(have_hash(record, b"s" * 8) for record in chosen)
        pages += 1
        if left == 0:
            break
        if not chosen:  # 28 contacts of 38 bytes leave no room: a page is asked for without them
            assert (nodes, version) == (28, 6)
            return
    assert len(have) // 4 == 40
    assert pages <= 40


def test_parts_share_out_all_records_and_nodes_come_first() -> None:
    records = [record_of(seed) for seed in range(30)]
    shares = [
        {r.raw for r in records if r.hash % 3 == part} for part in range(3)
    ]  # fmt: skip
    assert set.union(*shares) == {record.raw for record in records}
    for part in range(3):
        query = QueryRequest(b"k" * 20, Want.RECORDS, part=part, parts=3)
        chosen, left = query.choose(records, 0)
        assert {record.raw for record in chosen} <= shares[part]
        assert len(chosen) + left == len(shares[part])
    crowded = QueryRequest(b"k" * 20, Want.NODES | Want.RECORDS).choose(records, 520)
    assert crowded == ([], 30)
    assert QueryRequest(b"k" * 20, Want.NODES | Want.RECORDS).choose(records[:2], 520)[1] == 0


def test_ping_proves_the_id_and_tells_the_time() -> None:
    identity, nonce, mine = identity_of(3), b"n" * 16, [b"o" * 16, CONFIG.swarm_id]
    values = (
        identity.public_key,
        identity.sign(ping_message(CONFIG.swarm_id, nonce, 1500)),
        1500,
    )
    assert PingReply.parse(values, mine, nonce) == PingReply(identity.peer_id, 1.5)
    assert PingReply.parse((identity_of(4).public_key, *values[1:]), mine, nonce) is None
    assert PingReply.parse(values, mine, b"m" * 16) is None
    assert PingReply.parse(values, mine[:1], nonce) is None
    for clock in (1501, -1, 2**53 + 1, 1.5, True, None):
        assert PingReply.parse((*values[:2], clock), mine, nonce) is None


def test_tokens_are_bound_to_an_address_and_age() -> None:
    mint = TokenMint(b"secret", 300)
    token = mint.mint("10.0.0.1", 1000.0)
    assert mint.check(token, "10.0.0.1", 1000.0)
    assert mint.check(token, "10.0.0.1", 1300.0)
    assert not mint.check(token, "10.0.0.1", 1900.0)
    assert not mint.check(token, "10.0.0.2", 1000.0)
    assert not mint.check(b"", "10.0.0.1", 1000.0)
    assert not TokenMint(b"other", 300).check(token, "10.0.0.1", 1000.0)


def test_patience_follows_round_trips() -> None:
    patience, near, far = Patience(CONFIG), ("10.0.0.1", 1), ("10.0.0.2", 1)
    assert patience.rto(near) == pytest.approx(4 * CONFIG.initial_rtt)
    for _ in range(50):
        patience.sample(near, 0.001)
    assert patience.rto(near) == CONFIG.min_rto
    assert patience.soft_timeout(near) == CONFIG.min_soft_timeout
    assert patience.late_after(near) == CONFIG.min_late
    assert patience.rto(far) == CONFIG.min_rto  # a stranger: what is usual here
    patience.sample(far, 0.2)
    assert patience.rto(far) == pytest.approx(0.8)
    patience.sample(far, 60)
    assert patience.rto(far) == CONFIG.max_rto
    assert patience.late_after(far) <= patience.soft_timeout(far) <= patience.rto(far)


def test_failures_are_ignored_longer_and_longer() -> None:
    patience, host = Patience(CONFIG), ("10.0.0.1", 1)
    periods = []
    for _ in range(6):
        patience.failed(host, 0.0)
        periods.append(next(t for t in range(0, 1000, 10) if not patience.is_ignored(host, t)))
    assert periods == [60, 120, 240, 480, 600, 600]
    patience.answered(host)
    assert not patience.is_ignored(host, 0.0)


def test_memory_forgets_the_oldest() -> None:
    memory: Memory[int, int] = Memory(3)
    for n in (1, 2, 3, 1, 4):
        memory[n] = n
    assert [memory.get(n) for n in (1, 2, 3, 4)] == [1, None, 3, 4]


def test_insider_bodies_at_random_never_raise() -> None:
    rng = random.Random(5)
    for _ in range(3000):
        body = msgpack.packb([rng.choice([1, None, b"x" * 20, [], "s"]) for _ in range(4)])
        mutated = bytes(b if rng.random() > 0.1 else rng.randrange(256) for b in body)
        unseal([KEY], sealed_raw(mutated))
