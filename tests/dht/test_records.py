"""Records: what is accepted, what is refused, and the laws of merging."""

from __future__ import annotations

import dataclasses
import random
from typing import Any

import msgpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from swarmd.blocks import Span
from swarmd.dht import records
from swarmd.dht.records import (
    CLOCK_SKEW,
    INDEX_KEY,
    MAX_RECORD_BYTES,
    Record,
    RecordReader,
    Refusal,
    Slot,
    belongs,
    keys_of,
    merge,
    newer,
    pack,
    parse,
)
from swarmd.dht.shards import MAX_DEPTH, Shard
from swarmd.identity import PeerId, verify
from swarmd.peers import Address, Capability, PeerInfo, PeerState
from swarmd.swarm_key import SwarmKey
from tests.dht.swarm import CONFIG, MODEL, NOW, OTHER, identity_of, info_of, record_of

ME = identity_of(1)
SWARM = CONFIG.swarm_id
FULL = info_of(
    ME.peer_id,
    address=Address("2001:db8:ffff:ffff:ffff:ffff:ffff:ffff", 65535),
    model_name="ü" * 32,
    n_blocks=65535,
    span=Span(65533, 65535),
    decode_us=2**32 - 1,
    prefill_us=2**32 - 1,
    kv_free=2**32 - 1,
    queue=2**32 - 1,
    dtype="d" * 16,
    quantization="q" * 16,
    capabilities=Capability(2**16 - 1),
    version="v" * 24,
    sequence=2**64 - 1,
    announced_at=NOW,
    expires_at=NOW + 300,
    rtts={PeerId(bytes([n]) * 20): 59.9 for n in range(5)},
)


def stamped(info: PeerInfo) -> PeerInfo:
    return dataclasses.replace(
        info, sequence=int(NOW * 1000), announced_at=NOW, expires_at=NOW + 150
    )


def signed(fields: list[Any]) -> bytes:
    """A record with any fields, with a good signature: what an evil insider can send."""
    body = msgpack.packb(fields)
    raw: bytes = msgpack.packb([body, ME.sign(b"swarmd-ann-v1\0" + SWARM + body)])
    return raw


def fields_of(info: PeerInfo) -> list[Any]:
    body, _ = msgpack.unpackb(pack(info, ME, SWARM))
    fields: list[Any] = msgpack.unpackb(body)
    return fields


def test_round_trip() -> None:
    info = stamped(info_of(ME.peer_id))
    record = parse(pack(info, ME, SWARM), SWARM, NOW)
    assert isinstance(record, Record)
    assert record.info == info
    assert len(record.raw) < 280


def test_fields_that_are_missing_are_those_of_a_peer_that_does_not_know_them() -> None:
    known = Capability.SHARED_PREFIXES
    info = stamped(info_of(ME.peer_id, quantization="int8", capabilities=known))
    fields = fields_of(info)
    for value, read in ((1, {"capabilities": Capability(0)}), ("int8", {"quantization": "none"})):
        assert fields.pop() == value
        info = dataclasses.replace(info, **read)  # type: ignore[arg-type]
        record = parse(signed(fields), SWARM, NOW)
        assert isinstance(record, Record)
        assert record.info == info
    assert parse(signed(fields[:-1]), SWARM, NOW) is Refusal.MALFORMED


def test_the_largest_record_fits() -> None:
    raw = pack(FULL, ME, SWARM)
    assert len(raw) <= MAX_RECORD_BYTES
    record = parse(raw, SWARM, NOW)
    assert isinstance(record, Record)
    assert record.info == FULL


def test_only_the_five_shortest_rtts_travel() -> None:
    rtts = {PeerId(bytes([n]) * 20): n / 100 for n in range(1, 9)}
    record = parse(pack(stamped(info_of(ME.peer_id, rtts=rtts)), ME, SWARM), SWARM, NOW)
    assert isinstance(record, Record)
    assert sorted(record.info.rtts.values()) == [0.01, 0.02, 0.03, 0.04, 0.05]


@pytest.mark.parametrize(
    "changes",
    [
        {"peer_id": identity_of(2).peer_id},
        {"address": Address("example.org", 1)},
        {"address": Address("0.0.0.0", 1)},
        {"address": Address("127.0.0.1", 0)},
        {"model_name": "x" * 65},
        {"model_name": "ü" * 33},
        {"model_name": "red \x1b[31m"},
        {"dtype": "x" * 17},
        {"quantization": "x" * 17},
        {"quantization": "int8\n"},
        {"capabilities": Capability(2**16)},
        {"span": Span(20, 31)},
        {"decode_us": -1},
        {"queue": 2**32},
        {"sequence": -1},
        {"sequence": 2**64},
    ],
)
def test_pack_refuses_what_no_holder_would_accept(changes: dict[str, Any]) -> None:
    with pytest.raises(ValueError):
        pack(dataclasses.replace(stamped(info_of(ME.peer_id)), **changes), ME, SWARM)


def test_signature_covers_the_swarm_and_every_byte() -> None:
    raw = pack(stamped(info_of(ME.peer_id)), ME, SWARM)
    other = SwarmKey(bytes(32)).swarm_id
    assert parse(raw, other, NOW) is Refusal.SIGNATURE
    for at in range(len(raw)):
        broken = raw[:at] + bytes([raw[at] ^ 1]) + raw[at + 1 :]
        assert isinstance(parse(broken, SWARM, NOW), Refusal), at


def test_nobody_extends_a_life() -> None:
    record = record_of(1, ttl=150)
    assert parse(record.raw, SWARM, NOW + 149) == record
    assert parse(record.raw, SWARM, NOW + 150) is Refusal.EXPIRED
    reader = RecordReader([SWARM], parsed=1, checked=10)
    assert reader.parse(record.raw, NOW) == record
    assert reader.parse(record.raw, NOW + 150) is Refusal.EXPIRED
    long = pack(dataclasses.replace(FULL, expires_at=NOW + 86400), ME, SWARM)
    assert parse(long, SWARM, NOW) is Refusal.LIFETIME
    assert parse(pack(FULL, ME, SWARM), SWARM, NOW - CLOCK_SKEW - 1) is Refusal.LIFETIME


GOOD = fields_of(stamped(info_of(ME.peer_id)))
WRONG: list[Any] = [None, True, -1, 2**64 - 1, 1.5, float("nan"), "", "x\0", b"", b"x" * 99, [], {}]


@pytest.mark.parametrize("at", range(len(GOOD)))
def test_every_field_is_checked(at: int) -> None:
    assert isinstance(parse(signed(GOOD), SWARM, NOW), Record)
    fitting: dict[int, object] = {2: "", 4: 2**64 - 1, 15: "", 18: "", 19: [], 20: ""}
    for value in WRONG:
        if at in fitting and value == fitting[at]:
            continue
        result = parse(signed([*GOOD[:at], value, *GOOD[at + 1 :]]), SWARM, NOW)
        assert isinstance(result, Refusal), (at, value)


@pytest.mark.parametrize(
    ("at", "value"),
    [
        (7, 20),
        (8, 31),
        (9, 19),
        (10, 4),
        (16, b"\0" * 4),
        (16, b"\xff" * 4),
        (16, bytes([224, 0, 0, 1])),
        (17, 0),
        (17, 65536),
        (19, [[b"r" * 20, 1]] * 6),
        (19, [[b"r" * 19, 1]]),
        (19, [[b"r" * 20, -1]]),
        (19, [[b"r" * 20, 1.0]]),
        (19, [b"r" * 20]),
    ],
)
def test_ranges(at: int, value: Any) -> None:
    assert parse(signed([*GOOD[:at], value, *GOOD[at + 1 :]]), SWARM, NOW) is Refusal.FIELD


def test_longer_bodies_are_accepted_and_other_formats_are_not() -> None:
    assert isinstance(parse(signed([*GOOD, "a field of the future"]), SWARM, NOW), Record)
    assert parse(signed([2, *GOOD[1:]]), SWARM, NOW) is Refusal.FORMAT
    assert parse(signed(GOOD[:-3]), SWARM, NOW) is Refusal.MALFORMED
    assert parse(signed([*GOOD, b"x" * 300]), SWARM, NOW) is Refusal.TOO_LARGE


@given(st.binary(max_size=600) | st.none() | st.integers() | st.text())
def test_garbage_is_refused(raw: object) -> None:
    assert isinstance(parse(raw, SWARM, NOW), Refusal)


def test_mutations_never_raise() -> None:
    rng = random.Random(7)
    raw = pack(stamped(info_of(ME.peer_id)), ME, SWARM)
    for _ in range(5_000):
        broken = bytearray(raw)
        for _ in range(rng.randint(1, 4)):
            broken[rng.randrange(len(broken))] = rng.randrange(256)
        cut = bytes(broken[: rng.randint(0, len(broken))]) if rng.random() < 0.3 else bytes(broken)
        if cut != raw:
            assert isinstance(parse(cut, SWARM, NOW), Refusal)
        parse(signed([rng.choice([*WRONG, good]) for good in GOOD]), SWARM, NOW)


def test_deep_nesting_is_refused() -> None:
    for depth in (100, 511):
        assert parse(b"\x91" * depth + b"\x01", SWARM, NOW) is Refusal.MALFORMED


# --- merging ---

POOL = [
    record_of(
        seed,
        sequence=sequence,
        model_id=model,
        state=state,
        kv_free=kv_free,
    )
    for seed in (1, 2, 3)
    for sequence in (1, 2)
    for model in (MODEL, OTHER)
    for state, kv_free in ((PeerState.ONLINE, 1), (PeerState.ONLINE, 2), (PeerState.GONE, 1))
]
histories = st.lists(st.sampled_from(POOL), max_size=30)


def merged(*records: Record) -> dict[Slot, Record]:
    held: dict[Slot, Record] = {}
    for record in records:
        merge(held, record)
    return held


@given(histories, st.randoms(use_true_random=False))
@settings(max_examples=200)
def test_any_order_and_any_repetition_give_the_same_state(
    history: list[Record], rng: random.Random
) -> None:
    other = history + rng.choices(history, k=5) if history else []
    rng.shuffle(other)
    assert merged(*history) == merged(*other)


@given(histories, histories, histories)
def test_merging_partitions(a: list[Record], b: list[Record], c: list[Record]) -> None:
    left = merged(*merged(*merged(*a).values(), *merged(*b).values()).values(), *c)
    right = merged(*a, *merged(*merged(*c).values(), *merged(*b).values()).values())
    assert left == right == merged(*a, *b, *c)


@given(histories, st.sampled_from(POOL))
def test_a_rejected_record_changes_nothing(history: list[Record], record: Record) -> None:
    held = merged(*history)
    before = dict(held)
    if not merge(held, record):
        assert held == before
        assert not newer(record, held[record.slot])
    else:
        assert held == before | {record.slot: record}


@given(st.sampled_from(POOL), st.sampled_from(POOL))
def test_newer_is_a_total_order(a: Record, b: Record) -> None:
    assert newer(a, b) + newer(b, a) == (a.raw != b.raw)


def test_a_tombstone_beats_a_replay() -> None:
    alive = record_of(1, sequence=5)
    gone = record_of(1, sequence=6, state=PeerState.GONE)
    assert merged(alive, gone, alive) == {gone.slot: gone}


def test_keys() -> None:
    info = info_of(ME.peer_id)
    assert keys_of(info) == (Shard(MODEL).key, INDEX_KEY)
    assert len({Shard(MODEL).key, Shard(OTHER).key, INDEX_KEY}) == 3
    for depth in range(MAX_DEPTH + 1):
        for key in keys_of(info, depth):
            assert len(key) == 20
            assert belongs(key, info)
    assert not belongs(Shard(OTHER).key, info)
    assert not belongs(Shard(MODEL, 1, 7).key, info)


def test_a_signature_is_checked_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a good record as of a forged one, also when its parsed form is forgotten."""
    checks = []

    def counted(*args: bytes) -> bool:
        checks.append(args)
        return verify(*args)

    monkeypatch.setattr(records, "verify", counted)
    reader = RecordReader([SWARM], parsed=1, checked=3)
    good, other = record_of(1).raw, record_of(2).raw
    checks.clear()
    forged = good[:-1] + bytes([good[-1] ^ 1])
    for _ in range(3):
        assert isinstance(reader.parse(good, NOW), Record)
        assert isinstance(reader.parse(other, NOW), Record)
        assert reader.parse(forged, NOW) is Refusal.SIGNATURE
    assert len(checks) == 3


def test_while_keys_change_records_of_both_swarm_ids_are_read() -> None:
    old, new = SwarmKey(b"o" * 32), SwarmKey(b"n" * 32)
    reader = RecordReader([new.swarm_id, old.swarm_id], parsed=9, checked=9)
    info = stamped(info_of(ME.peer_id))
    for key in (old, new):
        assert isinstance(reader.parse(pack(info, ME, key.swarm_id), NOW), Record)
    assert reader.parse(pack(info, ME, b"x" * 16), NOW) is Refusal.SIGNATURE
