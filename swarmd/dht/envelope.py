"""The outer form of every datagram. Pure.

::

    kind (1 byte) | message id (8) | msgpack body | tag (16)

The tag is BLAKE2b-128 over all that stands before it, under a key that follows from the swarm's
(`datagram_keys`). Size and tag are checked before anything is parsed. No datagram is larger than
1,250 bytes, so none is fragmented on any path that carries IPv6's minimum of 1,280.
"""

from __future__ import annotations

import enum
import hashlib
import hmac
from collections.abc import Sequence
from dataclasses import dataclass

import msgpack

from swarmd.swarm_key import KeyRing

__all__ = [
    "MAX_BODY_BYTES",
    "MAX_DATAGRAM_BYTES",
    "MESSAGE_ID_BYTES",
    "Drop",
    "Kind",
    "Message",
    "datagram_keys",
    "seal",
    "unseal",
]

MAX_DATAGRAM_BYTES = 1250
MESSAGE_ID_BYTES = 8
TAG_BYTES = 16
MAX_BODY_BYTES = MAX_DATAGRAM_BYTES - 1 - MESSAGE_ID_BYTES - TAG_BYTES
_MIN_DATAGRAM_BYTES = MAX_DATAGRAM_BYTES - MAX_BODY_BYTES + 1


class Kind(enum.IntEnum):
    """What a datagram is."""

    REQUEST = 1
    REPLY = 2


class Drop(enum.StrEnum):
    """Why a datagram was dropped, inbound or outbound. Each has its own counter."""

    SIZE = "size"
    TAG = "tag"
    KIND = "kind"
    BODY = "body"
    SHAPE = "shape"
    CLIENT = "client"
    RATE = "rate"
    UNASKED = "unasked"
    SOURCE = "source"
    UNSENDABLE = "unsendable"
    CLOSED = "closed"
    BUG = "bug"


@dataclass(frozen=True, slots=True)
class Message:
    """A datagram whose tag is good. `body` was parsed, but its shape is not checked yet."""

    kind: Kind
    message_id: bytes
    body: tuple[object, ...]
    key: int
    """Which of the accepted keys it was made with, the one in use being 0."""


def datagram_keys(ring: KeyRing) -> tuple[bytes, ...]:
    """The keys of all datagrams that are accepted, the one in use first."""
    return tuple(key.derive(b"datagram") for key in ring.accepted)


def _tag(key: bytes, data: bytes) -> bytes:
    return hashlib.blake2b(data, key=key, digest_size=TAG_BYTES).digest()


def seal(key: bytes, kind: Kind, message_id: bytes, body: object) -> bytes:
    """A datagram. Raises ValueError when it would be too large: a bug of the caller."""
    data: bytes = bytes([kind]) + message_id + msgpack.packb(body)
    if len(data) + TAG_BYTES > MAX_DATAGRAM_BYTES:
        raise ValueError(f"a datagram of {len(data) + TAG_BYTES} B, above {MAX_DATAGRAM_BYTES} B")
    return data + _tag(key, data)


def unseal(keys: Sequence[bytes], datagram: bytes) -> Message | Drop:
    """The message in a datagram made with one of `keys`, or why it is dropped. Never raises."""
    if not _MIN_DATAGRAM_BYTES <= len(datagram) <= MAX_DATAGRAM_BYTES:
        return Drop.SIZE
    data, tag = datagram[:-TAG_BYTES], datagram[-TAG_BYTES:]
    matches = (n for n, key in enumerate(keys) if hmac.compare_digest(tag, _tag(key, data)))
    number = next(matches, None)
    if number is None:
        return Drop.TAG
    if data[0] not in (Kind.REQUEST, Kind.REPLY):
        return Drop.KIND
    try:
        body = msgpack.unpackb(
            data[1 + MESSAGE_ID_BYTES :], use_list=False, max_map_len=0, max_ext_len=0
        )
    except Exception:  # msgpack raises many kinds, ValueError and UnicodeDecodeError among them
        return Drop.BODY
    if type(body) is not tuple:
        return Drop.BODY
    return Message(Kind(data[0]), data[1 : 1 + MESSAGE_ID_BYTES], body, number)
