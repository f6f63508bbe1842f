"""What a holder takes, what it refuses, and what it forgets."""

from __future__ import annotations

import dataclasses

from hypothesis import given
from hypothesis import strategies as st

from swarmd.dht.config import DhtConfig
from swarmd.dht.records import INDEX_KEY
from swarmd.dht.shards import Shard
from swarmd.dht.storage import PutStatus, RecordStorage, digest_of
from swarmd.peers import ModelId, PeerState
from tests.dht.swarm import CONFIG, MODEL, NOW, OTHER, record_of

KEY = Shard(MODEL).key
SMALL = dataclasses.replace(CONFIG, max_records_per_key=3)


def test_peers_never_overwrite_each_other() -> None:
    storage = RecordStorage(CONFIG)
    records = [record_of(seed) for seed in range(20)]
    for record in records:
        assert storage.put(KEY, record, NOW).status is PutStatus.OK
    assert storage.live(KEY, NOW) == records


def test_the_newest_of_a_peer_wins_and_a_refused_write_changes_nothing() -> None:
    storage = RecordStorage(CONFIG)
    old, new = record_of(1, sequence=1), record_of(1, sequence=2)
    assert storage.put(KEY, new, NOW).status is PutStatus.OK
    assert storage.put(KEY, new, NOW).status is PutStatus.OK
    refused = storage.put(KEY, old, NOW)
    assert (refused.status, refused.held) == (PutStatus.STALE, new)
    assert storage.live(KEY, NOW) == [new]
    assert len(storage) == 1


def test_a_record_belongs_under_its_own_keys_alone() -> None:
    storage = RecordStorage(CONFIG)
    for key in (Shard(OTHER).key, bytes(20)):
        assert storage.put(key, record_of(1), NOW).status is PutStatus.BAD
    assert len(storage) == 0


def test_lives_end_and_nothing_prolongs_them() -> None:
    storage = RecordStorage(CONFIG)
    record = record_of(1, ttl=100)
    for later in (0, 50, 99):
        storage.put(KEY, record, NOW + later)
        storage.put(INDEX_KEY, record, NOW + later)
    assert storage.live(KEY, NOW + 99) == [record]
    assert storage.live(KEY, NOW + 100) == []
    assert len(storage) == 1
    assert storage.purge(NOW + 100) == 1
    assert len(storage) == 0
    assert storage.put(KEY, record, NOW + 100).status is PutStatus.BAD


def test_a_sequence_from_the_future_is_refused() -> None:
    record = record_of(1, sequence=int((NOW + 3600) * 1000))
    assert RecordStorage(CONFIG).put(KEY, record, NOW).status is PutStatus.BAD


def test_a_full_key_still_renews_and_expiry_frees_it() -> None:
    storage = RecordStorage(SMALL)
    for seed in range(3):
        storage.put(KEY, record_of(seed, ttl=100), NOW)
    assert storage.put(KEY, record_of(9), NOW).status is PutStatus.FULL
    renewal = record_of(1, now=NOW + 1)
    assert storage.put(KEY, renewal, NOW + 1).status is PutStatus.OK
    assert storage.put(KEY, record_of(9), NOW + 100).status is PutStatus.OK
    assert len(storage.live(KEY, NOW + 100)) == 2


def test_the_index_holds_a_few_of_each_model() -> None:
    storage = RecordStorage(CONFIG)
    status = [storage.put(INDEX_KEY, record_of(seed), NOW).status for seed in range(6)]
    assert status == [PutStatus.OK] * 4 + [PutStatus.FULL] * 2
    gone = record_of(0, now=NOW + 1, state=PeerState.GONE)
    assert storage.put(INDEX_KEY, gone, NOW + 1).status is PutStatus.OK
    assert storage.put(INDEX_KEY, record_of(5), NOW + 1).status is PutStatus.OK  # its place
    for n in range(200):
        storage.put(INDEX_KEY, record_of(n, model_id=ModelId(bytes([n]) * 16)), NOW + 1)
    assert len(storage.live(INDEX_KEY, NOW + 1)) == CONFIG.max_records_per_key


def test_the_whole_store_is_limited() -> None:
    storage = RecordStorage(DhtConfig(max_records=2))
    status = [storage.put(KEY, record_of(seed), NOW).status for seed in range(3)]
    assert status == [PutStatus.OK, PutStatus.OK, PutStatus.FULL]


RECORDS = [record_of(s, sequence=q) for s in range(4) for q in (1, 2, 3)]


@given(st.permutations(RECORDS))
def test_holders_that_saw_the_same_agree(order: list) -> None:  # type: ignore[type-arg]
    storage, plain = RecordStorage(CONFIG), RecordStorage(CONFIG)
    for record in order:
        storage.put(KEY, record, NOW)
    for record in RECORDS:
        plain.put(KEY, record, NOW)
    assert digest_of(storage.live(KEY, NOW)) == digest_of(plain.live(KEY, NOW))
    assert all(record.info.sequence == 3 for record in storage.live(KEY, NOW))
