"""Reading all records of one key: what was read so far, and the paging of what is missing."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterable

from kademlia.node import Node

from swarmd.clock import Clock
from swarmd.dht.messages import (
    HAVE_BYTES,
    MAX_HAVE,
    MAX_PARTS,
    SALT_BYTES,
    QueryReply,
    QueryRequest,
    Want,
    have_hash,
)
from swarmd.dht.protocol import SwarmProtocol
from swarmd.dht.records import Record, RecordReader, Slot, belongs, merge
from swarmd.dht.storage import digest_of

__all__ = ["Reading", "read_pages"]

RECORDS_PER_PART = 16
"""Records that are paged one after another; parts are paged at once."""
MAX_PAGES = 32
"""Pages taken from one holder in one part: many times what an honest one needs."""


class Reading:
    """The merged set of one key's records. Pure.

    All that was seen is remembered, also what lost against newer records, so that a holder is
    not asked for it again.
    """

    def __init__(self, key: bytes, reader: RecordReader, clock: Clock) -> None:
        self.key = key
        self._reader = reader
        self._clock = clock
        self._newest: dict[Slot, Record] = {}
        self._seen: dict[bytes, Record] = {}

    @property
    def records(self) -> list[Record]:
        """The newest record of each slot, tombstones included."""
        return list(self._newest.values())

    @property
    def digest(self) -> int:
        return digest_of(self.records)

    def take(self, raws: Iterable[bytes]) -> int:
        """Merge what a holder sent; returns how many records were news (0: it wastes our time)."""
        now = self._clock.wall()
        news = 0
        for raw in raws:
            record = self._reader.parse(raw, now)
            if not isinstance(record, Record) or not belongs(self.key, record.info):
                continue
            if raw not in self._seen:
                self._seen[raw] = record
                news += 1
                merge(self._newest, record)
        return news

    def parts_for(self, total: int) -> int:
        """In how many parts to page a holder of `total` records, so that `have` always fits."""
        missing = max(0, total - len(self._newest))
        wanted = max(-(-missing // RECORDS_PER_PART), -(-2 * len(self._seen) // MAX_HAVE), 1)
        return min(wanted, MAX_PARTS)

    def request(self, want: Want, token: bytes, part: int = 0, parts: int = 1) -> QueryRequest:
        """Ask for what was not seen yet."""
        salt = os.urandom(SALT_BYTES)
        mine = (record for record in self._seen.values() if record.hash % parts == part)
        known = itertools.islice(mine, MAX_HAVE)
        have = b"".join(have_hash(record, salt) for record in known)
        assert len(have) <= MAX_HAVE * HAVE_BYTES
        return QueryRequest(self.key, want, token, salt, have, part, parts)


async def read_pages(
    protocol: SwarmProtocol, reading: Reading, holders: list[tuple[Node, QueryReply]]
) -> None:
    """Fetch from `holders` what `reading` lacks: the fullest first, then those that differ.

    Most often all holders agree, and the fullest is the only one that sends records.
    """
    holders = sorted(holders, key=lambda holder: -holder[1].total)
    for batch in (holders[:1], holders[1:]):
        coros = []
        for node, status in batch:
            if status.total == 0 or status.digest == reading.digest:
                continue
            parts = reading.parts_for(status.total)
            coros += [_read_part(protocol, reading, node, p, parts) for p in range(parts)]
        await protocol.together(coros, "page")


async def _read_part(
    protocol: SwarmProtocol, reading: Reading, node: Node, part: int, parts: int
) -> None:
    for _ in range(MAX_PAGES):
        token = protocol.token_of(node) or b""
        request = reading.request(Want.RECORDS, token, part, parts)
        reply = await protocol.call_query(node, request)
        if reply is None:
            return
        news = reading.take(reply.records)
        if reply.left == 0 or (not news and token):
            return
