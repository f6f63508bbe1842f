"""The messages of one session: open it, link it to the next hop's, step it, close it.

:mod:`swarmd.wire.messages` has all messages.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

from swarmd.identity import PEER_ID_BYTES
from swarmd.wire.fields import U32, byte_string, integer, text
from swarmd.wire.tensors import TensorMeta

__all__ = [
    "FEED_BYTES",
    "MAX_FORWARDS",
    "SESSION_ID_BYTES",
    "Close",
    "Closed",
    "Fed",
    "Feed",
    "Link",
    "Linked",
    "Open",
    "Opened",
    "Output",
    "Step",
    "Unlinked",
]

SESSION_ID_BYTES = 16
FEED_BYTES = 16
MAX_FORWARDS = 1 << 10
"""Hops after the first one that a step may pass: more than any model has blocks worth a hop."""
MAX_POSITION = 1 << 24


_block = integer(0, 1 << 16)
_session = byte_string(SESSION_ID_BYTES)
_feed = byte_string(FEED_BYTES)
_number = integer(0, U32)
_position = integer(0, MAX_POSITION)
_tokens = integer(1, MAX_POSITION)


@dataclass(frozen=True, slots=True)
class Open:
    """Open a session over blocks `[start, end)` of at most `max_length` positions.

    `feed` is a secret of the client: who shows it (:class:`Feed`) may send steps to this session;
    empty: nobody else may.
    """

    TYPE: ClassVar[str] = "open"
    FIELDS: ClassVar[dict[str, Callable[[Any], Any]]] = {
        "session": _session,
        "start": _block,
        "end": _block,
        "max_length": _tokens,
        "feed": byte_string(FEED_BYTES, or_empty=True),
    }
    session: bytes
    start: int
    end: int
    max_length: int
    feed: bytes = b""


@dataclass(frozen=True, slots=True)
class Opened:
    """The session is open; `kv_free` tokens of cache room are left on the peer."""

    TYPE: ClassVar[str] = "opened"
    FIELDS: ClassVar[dict[str, Callable[[Any], Any]]] = {"session": _session, "kv_free": _number}
    session: bytes
    kv_free: int


@dataclass(frozen=True, slots=True)
class Link:
    """Connect this session to `target`, the client's session at `peer_id`, which `feed` opens.

    A later link takes the place of an earlier one; `link` numbers them.
    """

    TYPE: ClassVar[str] = "link"
    FIELDS: ClassVar[dict[str, Callable[[Any], Any]]] = {
        "session": _session,
        "link": _number,
        "peer_id": byte_string(PEER_ID_BYTES),
        "target": _session,
        "feed": _feed,
    }
    session: bytes
    link: int
    peer_id: bytes
    target: bytes
    feed: bytes


@dataclass(frozen=True, slots=True)
class Linked:
    """Steps of this session may be forwarded; a round trip to the next hop takes `rtt_us`."""

    TYPE: ClassVar[str] = "linked"
    FIELDS: ClassVar[dict[str, Callable[[Any], Any]]] = {
        "session": _session,
        "link": _number,
        "rtt_us": _number,
    }
    session: bytes
    link: int
    rtt_us: int


@dataclass(frozen=True, slots=True)
class Unlinked:
    """The link of this number could not be made, or broke; `reason` is for people."""

    TYPE: ClassVar[str] = "unlinked"
    FIELDS: ClassVar[dict[str, Callable[[Any], Any]]] = {
        "session": _session,
        "link": _number,
        "reason": text,
    }
    session: bytes
    link: int
    reason: str


@dataclass(frozen=True, slots=True)
class Feed:
    """Hop to next hop: the steps on this connection are for `session`, which `feed` opens."""

    TYPE: ClassVar[str] = "feed"
    FIELDS: ClassVar[dict[str, Callable[[Any], Any]]] = {"session": _session, "feed": _feed}
    session: bytes
    feed: bytes


@dataclass(frozen=True, slots=True)
class Fed:
    """Answer to `feed`: steps may come. They are answered to the session's client."""

    TYPE: ClassVar[str] = "fed"
    FIELDS: ClassVar[dict[str, Callable[[Any], Any]]] = {"session": _session}
    session: bytes


@dataclass(frozen=True, slots=True)
class Step:
    """Cut the session back to `start`, then append the payload's positions.

    `deadline_ms`: after this long the answer is of no use; 0 means no deadline. `forward`: the
    number of hops that are to run the output in turn; 0 means that it only goes to the client.
    """

    TYPE: ClassVar[str] = "step"
    FIELDS: ClassVar[dict[str, Callable[[Any], Any]]] = {
        "session": _session,
        "step": _number,
        "start": _position,
        "deadline_ms": _number,
        "tensor": TensorMeta.from_wire,
        "forward": integer(0, MAX_FORWARDS),
    }
    session: bytes
    step: int
    start: int
    deadline_ms: int
    tensor: TensorMeta
    forward: int = 0


@dataclass(frozen=True, slots=True)
class Output:
    """The answer to the step of the same number; times in microseconds."""

    TYPE: ClassVar[str] = "output"
    FIELDS: ClassVar[dict[str, Callable[[Any], Any]]] = {
        "session": _session,
        "step": _number,
        "queue_us": _number,
        "compute_us": _number,
        "kv_free": _number,
        "tensor": TensorMeta.from_wire,
    }
    session: bytes
    step: int
    queue_us: int
    compute_us: int
    kv_free: int
    tensor: TensorMeta


@dataclass(frozen=True, slots=True)
class Close:
    """End the session; its cache is freed."""

    TYPE: ClassVar[str] = "close"
    FIELDS: ClassVar[dict[str, Callable[[Any], Any]]] = {"session": _session}
    session: bytes


@dataclass(frozen=True, slots=True)
class Closed:
    """The session is gone; the connection may carry the next one."""

    TYPE: ClassVar[str] = "closed"
    FIELDS: ClassVar[dict[str, Callable[[Any], Any]]] = {"session": _session}
    session: bytes
