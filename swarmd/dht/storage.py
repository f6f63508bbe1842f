"""The records that this node holds for the swarm, by key.

To the `kademlia` package the storage looks empty. Its holders republish old values as fresh ones
and hand everything to newcomers, which resurrects the dead and rolls back the new (measured,
DHT.md section 1): with nothing to iterate over, all of that is off. Records enter by `put` alone.
"""

from __future__ import annotations

import enum
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NoReturn

from kademlia.storage import IStorage

from swarmd.dht.addresses import ip_group
from swarmd.dht.config import MAX_TTL, DhtConfig
from swarmd.dht.patience import Memory
from swarmd.dht.records import CLOCK_SKEW, INDEX_KEY, Record, Slot, belongs, merge

__all__ = ["PutResult", "PutStatus", "RecordStorage", "digest_of"]


class PutStatus(enum.IntEnum):
    """A holder's answer to a write."""

    OK = 0
    STALE = 1
    """A newer record of the same publisher is held; the answer carries it."""
    FULL = 2
    BAD = 3
    """Not a record that may be held under this key at this time."""
    TOKEN = 4
    """The write token is unknown or too old: ask for a new one."""
    FAR = 5
    """So many nodes are nearer to the key that nobody would look here."""


@dataclass(frozen=True, slots=True)
class PutResult:
    """A status; with STALE, the newer record that is held."""

    status: PutStatus
    held: Record | None = None


def digest_of(records: list[Record]) -> int:
    """A 64-bit digest of a set of records, whatever their order. Equal sets, equal digests."""
    digest = 0
    for record in records:
        digest ^= record.hash
    return digest


class RecordStorage(IStorage):  # type: ignore[misc, unused-ignore]
    """Records by key and slot. All methods take `now`, seconds since the epoch; none waits."""

    def __init__(self, config: DhtConfig) -> None:
        self._config = config
        self._records: dict[bytes, dict[Slot, Record]] = {}
        self._groups: dict[bytes, dict[Slot, bytes]] = {}
        self._refused: Memory[bytes, float] = Memory(config.max_remembered)
        self._count = 0

    def __len__(self) -> int:
        """Records held, counted once for each key, expired ones that were not purged included."""
        return self._count

    def put(self, key: bytes, record: Record, now: float, source: str = "") -> PutResult:
        """Hold `record` if it belongs here and is newer than its slot. Else change nothing.

        `source` is the IP address that writes it; in a public swarm one public /24 or /48 gets a
        few places of a key only. A renewal is never FULL.
        """
        if not belongs(key, record.info) or record.refusal(now) is not None:
            return PutResult(PutStatus.BAD)
        if record.info.sequence > (now + CLOCK_SKEW) * 1000:
            return PutResult(PutStatus.BAD)
        self._drop_expired(key, now)
        held = self._records.get(key, {})
        old = held.get(record.slot)
        if old is None:
            group = ip_group(source) if self._config.keys.is_public else None
            if self._is_full(key, held, record) or self._is_crowded(key, group):
                self._refused[key] = now + MAX_TTL
                return PutResult(PutStatus.FULL)
            self._records.setdefault(key, held)[record.slot] = record
            self._count += 1
            if group is not None:
                self._groups.setdefault(key, {})[record.slot] = group
        elif not merge(held, record) and old.raw != record.raw:
            return PutResult(PutStatus.STALE, old)
        return PutResult(PutStatus.OK)

    def live(self, key: bytes, now: float) -> list[Record]:
        """The unexpired records under `key`, tombstones included (a reader must learn of them)."""
        self._drop_expired(key, now)
        return list(self._records.get(key, {}).values())

    def more(self, key: bytes, now: float) -> bool:
        """Whether somebody was refused here for want of room within the longest life of a record.

        It outlives the records, so those who went deeper are still found when the key is empty.
        """
        until = self._refused.get(key)
        return until is not None and now < until

    def purge(self, now: float) -> int:
        """Drop all expired records; returns how many."""
        before = self._count
        for key in list(self._records):
            self._drop_expired(key, now)
        return before - self._count

    def _is_full(self, key: bytes, held: dict[Slot, Record], record: Record) -> bool:
        if self._count >= self._config.max_records:
            return True
        if len(held) >= self._config.max_records_per_key:
            return True
        if key != INDEX_KEY:
            return False
        model_id = record.info.model_id
        same = sum(r.info.model_id == model_id and not r.is_tombstone for r in held.values())
        return same >= self._config.max_index_records_per_model

    def _is_crowded(self, key: bytes, group: bytes | None) -> bool:
        if group is None:
            return False
        same = sum(other == group for other in self._groups.get(key, {}).values())
        return same >= self._config.max_records_per_group

    def _drop_expired(self, key: bytes, now: float) -> None:
        held = self._records.get(key)
        if held is None:
            return
        expired = [slot for slot, record in held.items() if record.info.expires_at <= now]
        for slot in expired:
            del held[slot]
            self._groups.get(key, {}).pop(slot, None)
        self._count -= len(expired)
        if not held:
            del self._records[key]
            self._groups.pop(key, None)

    # What the package sees: nothing, ever.

    def __setitem__(self, key: Any, value: Any) -> NoReturn:
        raise TypeError("records enter by put() alone")

    def __getitem__(self, key: Any) -> NoReturn:
        raise KeyError(key)

    def get(self, key: Any, default: Any = None) -> Any:
        return default

    def iter_older_than(self, seconds_old: float) -> Iterator[tuple[bytes, Record]]:
        return iter(())

    def __iter__(self) -> Iterator[tuple[bytes, Record]]:
        return iter(())
