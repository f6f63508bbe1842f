"""What requests and replies say, checked field by field when they are decoded. Pure.

======  ===========================================  ================================
method  request                                      reply
======  ===========================================  ================================
PING    nonce                                        public key, signature, clock
QUERY   key, want, token, salt, have, part, parts    nodes, token, total, digest,
                                                     left, records, more
PUT     key, token, record                           status, total, held (if STALE)
======  ===========================================  ================================

A request's body is `[method, sender id, arguments]`, a reply's is `[sender id, values]`. A client
sends an empty id: nobody then tries to verify it.
"""

from __future__ import annotations

import enum
import hashlib
from collections.abc import Iterable
from dataclasses import dataclass

from swarmd.dht.addresses import unpack_nodes
from swarmd.dht.envelope import MAX_BODY_BYTES
from swarmd.dht.records import MAX_RECORD_BYTES, Record
from swarmd.dht.storage import PutStatus
from swarmd.dht.tokens import TOKEN_BYTES
from swarmd.identity import PEER_ID_BYTES, PUBLIC_KEY_BYTES, PeerId, verify

__all__ = [
    "HAVE_BYTES",
    "KEY_BYTES",
    "MAX_HAVE",
    "MAX_PARTS",
    "NONCE_BYTES",
    "SALT_BYTES",
    "Method",
    "PingReply",
    "PutReply",
    "PutRequest",
    "QueryReply",
    "QueryRequest",
    "Want",
    "have_hash",
    "is_sender",
    "ping_message",
]

KEY_BYTES = 20
NONCE_BYTES = 16
SALT_BYTES = 8
HAVE_BYTES = 4
MAX_HAVE = 256
"""Hashes in one request: 1 KiB, so that the request fits into a datagram."""
MAX_PARTS = 32
_MAX_TOTAL = 2**32 - 1
_REPLY_OVERHEAD = 80
"""Bytes of a QUERY's reply beside nodes and records: ids, token, numbers, msgpack heads."""
_RECORD_HEAD = 3


class Method(enum.IntEnum):
    """What is asked."""

    PING = 1
    QUERY = 2
    PUT = 3


class Want(enum.IntFlag):
    """What a QUERY asks for beside the token and the key's status."""

    STATUS = 0
    NODES = 1
    RECORDS = 2
    """With NODES: only if all that are missing fit beside them. Alone: a full page of them."""


def ping_message(swarm_id: bytes, nonce: bytes, clock_ms: int) -> bytes:
    """What the answer to a PING signs; `clock_ms` is its clock, in milliseconds of the epoch."""
    return b"swarmd-ping-v2\0" + swarm_id + nonce + clock_ms.to_bytes(8, "big")


def have_hash(record: Record, salt: bytes) -> bytes:
    """4 bytes that say "I have this record". Salted anew in each request, so that nobody can
    make a record whose hash hides another's."""
    return hashlib.blake2b(record.raw, key=salt, digest_size=HAVE_BYTES).digest()


def _is_bytes(value: object, *lengths: int) -> bool:
    return type(value) is bytes and len(value) in lengths


def _is_int(value: object, low: int, high: int) -> bool:
    return type(value) is int and low <= value <= high


@dataclass(frozen=True, slots=True)
class PingReply:
    """Who a peer is, by the private key that it proved to hold, and what its clock shows."""

    peer_id: PeerId
    clock: float
    """Seconds since the epoch. A claim."""

    @classmethod
    def parse(cls, values: object, swarm_ids: Iterable[bytes], nonce: bytes) -> PingReply | None:
        """None for a wrong shape, or a signature that is good for none of the `swarm_ids`."""
        if type(values) is not tuple or len(values) != 3:
            return None
        public_key, signature, clock_ms = values
        if not _is_int(clock_ms, 0, 2**53):
            return None
        if not _is_bytes(public_key, PUBLIC_KEY_BYTES) or not _is_bytes(signature, 64):
            return None
        for swarm_id in swarm_ids:
            if verify(public_key, signature, ping_message(swarm_id, nonce, clock_ms)):
                return cls(PeerId.of_public_key(public_key), clock_ms / 1000)
        return None


@dataclass(frozen=True, slots=True)
class QueryRequest:
    """Ask a node what it knows of a key. `have` are concatenated `have_hash`es with `salt`.

    Records travel only against a token. Only those with `record.hash % parts == part` are meant,
    so that several pages can be under way at once.
    """

    key: bytes
    want: Want
    token: bytes = b""
    salt: bytes = bytes(SALT_BYTES)
    have: bytes = b""
    part: int = 0
    parts: int = 1

    def pack(self) -> list[object]:
        return [
            self.key, int(self.want), self.token, self.salt, self.have, self.part, self.parts
        ]  # fmt: skip

    @classmethod
    def parse(cls, values: object) -> QueryRequest | None:
        if type(values) is not tuple or len(values) != 7:
            return None
        key, want, token, salt, have, part, parts = values
        good = (
            _is_bytes(key, KEY_BYTES)
            and _is_int(want, 0, 3)
            and _is_bytes(token, 0, TOKEN_BYTES)
            and _is_bytes(salt, SALT_BYTES)
            and type(have) is bytes
            and len(have) % HAVE_BYTES == 0
            and len(have) <= MAX_HAVE * HAVE_BYTES
            and _is_int(parts, 1, MAX_PARTS)
            and _is_int(part, 0, parts - 1)
        )
        return cls(key, Want(want), token, salt, have, part, parts) if good else None

    def choose(self, records: Iterable[Record], nodes_bytes: int) -> tuple[list[Record], int]:
        """Of what a holder has: the records to send, and how many more are left to ask for."""
        known = {self.have[i : i + HAVE_BYTES] for i in range(0, len(self.have), HAVE_BYTES)}
        missing = [
            record
            for record in records
            if record.hash % self.parts == self.part and have_hash(record, self.salt) not in known
        ]
        room = MAX_BODY_BYTES - _REPLY_OVERHEAD - nodes_bytes
        chosen: list[Record] = []
        for record in missing:
            room -= len(record.raw) + _RECORD_HEAD
            if room < 0:
                break
            chosen.append(record)
        if Want.NODES in self.want and len(chosen) < len(missing):
            chosen = []
        return chosen, len(missing) - len(chosen)


@dataclass(frozen=True, slots=True)
class QueryReply:
    """What a node knows of a key: `nodes` nearer to it, and the state of the records it holds.

    `left` counts the records asked for that did not fit; `records` are raw and unchecked. `more`
    says that this holder refused somebody for want of room, who then went deeper.
    """

    nodes: list[tuple[PeerId, str, int]]
    token: bytes
    total: int
    digest: int
    left: int
    records: tuple[bytes, ...]
    more: bool = False

    @classmethod
    def parse(cls, values: object, max_nodes: int, version: int = 4) -> QueryReply | None:
        if type(values) is not tuple or len(values) != 7:
            return None
        packed, token, total, digest, left, records, more = values
        good = (
            _is_bytes(token, TOKEN_BYTES)
            and _is_int(total, 0, _MAX_TOTAL)
            and _is_int(digest, 0, 2**64 - 1)
            and _is_int(left, 0, _MAX_TOTAL)
            and type(more) is bool
            and type(records) is tuple
            and all(type(raw) is bytes and len(raw) <= MAX_RECORD_BYTES for raw in records)
        )
        nodes = unpack_nodes(packed, max_nodes, version) if good else None
        return None if nodes is None else cls(nodes, token, total, digest, left, records, more)


@dataclass(frozen=True, slots=True)
class PutRequest:
    """Ask a node to hold a record under a key."""

    key: bytes
    token: bytes
    record: bytes

    def pack(self) -> list[object]:
        return [self.key, self.token, self.record]

    @classmethod
    def parse(cls, values: object) -> PutRequest | None:
        if type(values) is not tuple or len(values) != 3:
            return None
        key, token, record = values
        good = (
            _is_bytes(key, KEY_BYTES)
            and _is_bytes(token, TOKEN_BYTES)
            and type(record) is bytes
            and len(record) <= MAX_RECORD_BYTES
        )
        return cls(key, token, record) if good else None


@dataclass(frozen=True, slots=True)
class PutReply:
    """A holder's answer; with STALE, `held` is the newer record, raw and unchecked."""

    status: PutStatus
    total: int
    held: bytes = b""

    def pack(self) -> list[object]:
        return [int(self.status), self.total, self.held]

    @classmethod
    def parse(cls, values: object) -> PutReply | None:
        if type(values) is not tuple or len(values) != 3:
            return None
        status, total, held = values
        good = (
            _is_int(status, min(PutStatus), max(PutStatus))
            and _is_int(total, 0, _MAX_TOTAL)
            and type(held) is bytes
            and len(held) <= MAX_RECORD_BYTES
        )
        return cls(PutStatus(status), total, held) if good else None


def is_sender(value: object) -> bool:
    """Whether `value` may stand as a sender's id: empty for a client."""
    return _is_bytes(value, 0, PEER_ID_BYTES)
