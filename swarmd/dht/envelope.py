"""The outer form of every datagram, and which addresses a datagram may be sent to. Pure.

::

    kind (1 byte) | message id (8) | msgpack body | tag (16)

The tag is BLAKE2b-128 over all that stands before it, keyed with the swarm key. Size and tag are
checked before anything is parsed. No datagram is larger than 1,250 bytes, so none is fragmented
on any path that carries IPv6's minimum of 1,280.
"""

from __future__ import annotations

import enum
import functools
import hashlib
import hmac
import ipaddress
import socket
import struct
from collections.abc import Iterable
from dataclasses import dataclass

import msgpack

from swarmd.identity import PEER_ID_BYTES, PeerId

__all__ = [
    "MAX_BODY_BYTES",
    "MAX_DATAGRAM_BYTES",
    "MESSAGE_ID_BYTES",
    "NODE_BYTES",
    "Drop",
    "Kind",
    "Message",
    "is_sendable",
    "pack_nodes",
    "seal",
    "unpack_nodes",
    "unseal",
]

MAX_DATAGRAM_BYTES = 1250
MESSAGE_ID_BYTES = 8
TAG_BYTES = 16
NODE_BYTES = PEER_ID_BYTES + 6
"""A contact in a reply: id, IPv4 address, port."""
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


def _tag(key: bytes, data: bytes) -> bytes:
    return hashlib.blake2b(data, key=key, digest_size=TAG_BYTES).digest()


def seal(key: bytes, kind: Kind, message_id: bytes, body: object) -> bytes:
    """A datagram. Raises ValueError when it would be too large: a bug of the caller."""
    data: bytes = bytes([kind]) + message_id + msgpack.packb(body)
    if len(data) + TAG_BYTES > MAX_DATAGRAM_BYTES:
        raise ValueError(f"a datagram of {len(data) + TAG_BYTES} B, above {MAX_DATAGRAM_BYTES} B")
    return data + _tag(key, data)


def unseal(key: bytes, datagram: bytes) -> Message | Drop:
    """The message in a datagram, or why it is dropped. Never raises."""
    if not _MIN_DATAGRAM_BYTES <= len(datagram) <= MAX_DATAGRAM_BYTES:
        return Drop.SIZE
    data, tag = datagram[:-TAG_BYTES], datagram[-TAG_BYTES:]
    if not hmac.compare_digest(tag, _tag(key, data)):
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
    return Message(Kind(data[0]), data[1 : 1 + MESSAGE_ID_BYTES], body)


@functools.lru_cache(maxsize=4096)
def _is_unicast(host: str) -> bool:
    try:
        ip = ipaddress.IPv4Address(host)
    except ValueError:
        return False
    return not (ip.is_unspecified or ip.is_multicast or ip.packed == b"\xff\xff\xff\xff")


def is_sendable(host: object, port: object) -> bool:
    """Whether a datagram may go there: an IPv4 literal of one machine, a port in 1..65535.

    Must be asked before every `sendto`: asyncio closes the socket for good when `sendto` raises
    anything but OSError, and it resolves host names by blocking.
    """
    return type(host) is str and type(port) is int and 1 <= port <= 65535 and _is_unicast(str(host))


def pack_nodes(nodes: Iterable[tuple[bytes, str, int]]) -> bytes:
    """Contacts, 26 bytes each. They must be sendable."""
    return b"".join(i + socket.inet_aton(host) + struct.pack("!H", port) for i, host, port in nodes)


def unpack_nodes(data: object, limit: int) -> list[tuple[PeerId, str, int]] | None:
    """At most `limit` contacts, without those that are not sendable; None for wrong bytes."""
    if type(data) is not bytes or len(data) % NODE_BYTES or len(data) > limit * NODE_BYTES:
        return None
    nodes = []
    for at in range(0, len(data), NODE_BYTES):
        host = socket.inet_ntoa(data[at + PEER_ID_BYTES : at + PEER_ID_BYTES + 4])
        (port,) = struct.unpack_from("!H", data, at + PEER_ID_BYTES + 4)
        if is_sendable(host, port):
            nodes.append((PeerId(data[at : at + PEER_ID_BYTES]), host, port))
    return nodes
