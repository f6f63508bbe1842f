"""The messages of one session: open it, step it, close it. :mod:`swarmd.wire.messages` has all."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

from swarmd.identity import PEER_ID_BYTES
from swarmd.wire.fields import U32, byte_string, integer, text
from swarmd.wire.tensors import TensorMeta

__all__ = [
    "SESSION_ID_BYTES",
    "Close",
    "Closed",
    "Open",
    "Opened",
    "Output",
    "Step",
    "Successor",
]

SESSION_ID_BYTES = 16
MAX_POSITION = 1 << 24


@dataclass(frozen=True, slots=True)
class Successor:
    """Where a hop forwards its output in a ring: the next peer and its blocks."""

    peer_id: bytes
    host: str
    port: int
    start: int
    end: int


def _successor(value: object) -> Successor | None:
    if value is None:
        return None
    if not isinstance(value, list) or len(value) != 5:
        raise ValueError("not a successor")
    peer_id, host, port, start, end = value
    return Successor(
        byte_string(PEER_ID_BYTES)(peer_id),
        text(host),
        integer(1, 65535)(port),
        _block(start),
        _block(end),
    )


_block = integer(0, 1 << 16)
_session = byte_string(SESSION_ID_BYTES)
_number = integer(0, U32)
_position = integer(0, MAX_POSITION)
_tokens = integer(1, MAX_POSITION)


@dataclass(frozen=True, slots=True)
class Open:
    """Open a session over blocks `[start, end)` of at most `max_length` positions.

    `next` is nil in a hub; in a ring it names the successor. A peer that cannot forward refuses.
    """

    TYPE: ClassVar[str] = "open"
    FIELDS: ClassVar[dict[str, Callable[[Any], Any]]] = {
        "session": _session,
        "start": _block,
        "end": _block,
        "max_length": _tokens,
        "next": _successor,
    }
    session: bytes
    start: int
    end: int
    max_length: int
    next: Successor | None = None


@dataclass(frozen=True, slots=True)
class Opened:
    """The session is open; `kv_free` tokens of cache room are left on the peer."""

    TYPE: ClassVar[str] = "opened"
    FIELDS: ClassVar[dict[str, Callable[[Any], Any]]] = {"session": _session, "kv_free": _number}
    session: bytes
    kv_free: int


@dataclass(frozen=True, slots=True)
class Step:
    """Cut the session back to `start`, then append the payload's positions.

    `deadline_ms`: after this long the answer is of no use; 0 means no deadline.
    """

    TYPE: ClassVar[str] = "step"
    FIELDS: ClassVar[dict[str, Callable[[Any], Any]]] = {
        "session": _session,
        "step": _number,
        "start": _position,
        "deadline_ms": _number,
        "tensor": TensorMeta.from_wire,
    }
    session: bytes
    step: int
    start: int
    deadline_ms: int
    tensor: TensorMeta


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
