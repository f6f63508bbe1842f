"""The messages of the session protocol, and their strict encoding as msgpack maps.

A header is a map: `t` is the type, the other keys are the fields of the dataclass. A missing, an
unknown or a mistyped field is refused (:class:`BadRequest`): both sides speak exactly one
version, agreed on in `hello`, so nothing is accepted and then ignored. `docs/protocol.md` has the
table.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, TypeAlias

import msgpack

from swarmd.errors import REMOTE_ERRORS, BadRequest, InternalError, RemoteError, UnknownMessage
from swarmd.identity import PEER_ID_BYTES, PUBLIC_KEY_BYTES
from swarmd.peers import MODEL_ID_BYTES
from swarmd.printable import printable
from swarmd.wire.fields import MAX_TEXT, U32, boolean, byte_string, integer, ip_literal, text
from swarmd.wire.proofs import CHALLENGE_BYTES, PROOF_BYTES, SIGNATURE_BYTES
from swarmd.wire.session_messages import (
    FEED_BYTES,
    SESSION_ID_BYTES,
    Close,
    Closed,
    Fed,
    Feed,
    Link,
    Linked,
    Open,
    Opened,
    Output,
    Step,
    Unlinked,
)
from swarmd.wire.tensors import TensorMeta

__all__ = [
    "FEED_BYTES",
    "MESSAGES",
    "PROTOCOL_VERSION",
    "SESSION_ID_BYTES",
    "TICKET_BYTES",
    "Challenge",
    "Close",
    "Closed",
    "Dialback",
    "Dialled",
    "ErrorMessage",
    "Fed",
    "Feed",
    "Hello",
    "Incoming",
    "Link",
    "Linked",
    "Message",
    "Open",
    "Opened",
    "Output",
    "Ping",
    "Pong",
    "Reserve",
    "Reserved",
    "Step",
    "Unlinked",
    "Welcome",
    "decode_header",
    "encode_header",
]

PROTOCOL_VERSION = 4
TICKET_BYTES = 16
MAX_ERROR_TEXT = 500
"""Characters kept of a peer's sentence, which ends in logs and on terminals."""


_block = integer(0, 1 << 16)
_number = integer(0, U32)


@dataclass(frozen=True, slots=True)
class Challenge:
    """Listener to dialler, first: a fresh nonce to sign, and proof that it holds the swarm key."""

    TYPE: ClassVar[str] = "challenge"
    FIELDS: ClassVar[dict[str, Callable[[Any], Any]]] = {
        "nonce": byte_string(CHALLENGE_BYTES),
        "proof": byte_string(PROOF_BYTES),
    }
    nonce: bytes
    proof: bytes


@dataclass(frozen=True, slots=True)
class Hello:
    """Dialler to listener: who it is, proven (:mod:`swarmd.wire.proofs`), and the model meant."""

    TYPE: ClassVar[str] = "hello"
    FIELDS: ClassVar[dict[str, Callable[[Any], Any]]] = {
        "version": _number,
        "agent": text,
        "model_id": byte_string(MODEL_ID_BYTES, or_empty=True),
        "public_key": byte_string(PUBLIC_KEY_BYTES),
        "proof": byte_string(PROOF_BYTES),
        "signature": byte_string(SIGNATURE_BYTES),
    }
    version: int
    agent: str
    model_id: bytes
    public_key: bytes
    proof: bytes
    signature: bytes


@dataclass(frozen=True, slots=True)
class Welcome:
    """Listener to dialler: who it is and what it serves now. `max_payload` in bytes."""

    TYPE: ClassVar[str] = "welcome"
    FIELDS: ClassVar[dict[str, Callable[[Any], Any]]] = {
        "version": _number,
        "agent": text,
        "peer_id": byte_string(PEER_ID_BYTES),
        "model_id": byte_string(MODEL_ID_BYTES),
        "start": _block,
        "end": _block,
        "dtype": text,
        "quantization": text,
        "max_payload": _number,
    }
    version: int
    agent: str
    peer_id: bytes
    model_id: bytes
    start: int
    end: int
    dtype: str
    quantization: str
    max_payload: int


@dataclass(frozen=True, slots=True)
class Reserve:
    """Dialler to listener: pass links on to me, as long as this connection lives."""

    TYPE: ClassVar[str] = "reserve"
    FIELDS: ClassVar[dict[str, Callable[[Any], Any]]] = {}


@dataclass(frozen=True, slots=True)
class Reserved:
    """Granted: so many streams at a time, and so many bytes a second in all."""

    TYPE: ClassVar[str] = "reserved"
    FIELDS: ClassVar[dict[str, Callable[[Any], Any]]] = {
        "streams": integer(1, 0xFFFF),
        "bytes_per_second": integer(1, U32),
    }
    streams: int
    bytes_per_second: int


@dataclass(frozen=True, slots=True)
class Incoming:
    """Listener to dialler: a client waits for you; dial me and knock with this ticket."""

    TYPE: ClassVar[str] = "incoming"
    FIELDS: ClassVar[dict[str, Callable[[Any], Any]]] = {"ticket": byte_string(TICKET_BYTES)}
    ticket: bytes


@dataclass(frozen=True, slots=True)
class Ping:
    """Asks for a `pong` at once, whatever the engine does: measures the link."""

    TYPE: ClassVar[str] = "ping"
    FIELDS: ClassVar[dict[str, Callable[[Any], Any]]] = {"nonce": _number}
    nonce: int


@dataclass(frozen=True, slots=True)
class Pong:
    """Answer to the ping of the same nonce."""

    TYPE: ClassVar[str] = "pong"
    FIELDS: ClassVar[dict[str, Callable[[Any], Any]]] = {"nonce": _number}
    nonce: int


@dataclass(frozen=True, slots=True)
class Dialback:
    """Asks the listener to dial `port` at the address from which this connection came."""

    TYPE: ClassVar[str] = "dialback"
    FIELDS: ClassVar[dict[str, Callable[[Any], Any]]] = {"port": integer(1, 65535)}
    port: int


@dataclass(frozen=True, slots=True)
class Dialled:
    """Answer to `dialback`: whether the asker was greeted there, and the IP address dialled."""

    TYPE: ClassVar[str] = "dialled"
    FIELDS: ClassVar[dict[str, Callable[[Any], Any]]] = {
        "reachable": boolean,
        "host": ip_literal,
    }
    reachable: bool
    host: str


@dataclass(frozen=True, slots=True)
class ErrorMessage:
    """A typed refusal. `step` is set where it answers a step. `fatal`: the connection ends."""

    TYPE: ClassVar[str] = "error"
    FIELDS: ClassVar[dict[str, Callable[[Any], Any]]] = {
        "code": text,
        "message": text,
        "retry_after_ms": lambda value: None if value is None else _number(value),
        "step": lambda value: None if value is None else _number(value),
        "fatal": boolean,
    }
    code: str
    message: str
    retry_after_ms: int | None = None
    step: int | None = None
    fatal: bool = False

    @classmethod
    def of(cls, error: RemoteError, *, step: int | None = None, fatal: bool) -> ErrorMessage:
        retry_ms = None if error.retry_after is None else round(1000 * error.retry_after)
        return cls(error.code, str(error)[:MAX_TEXT], retry_ms, step, fatal)

    def to_error(self) -> RemoteError:
        """The error that it stands for, its text printable; an unknown code is the peer's bug."""
        retry_after = None if self.retry_after_ms is None else self.retry_after_ms / 1000
        cls = REMOTE_ERRORS.get(self.code, InternalError)
        return cls(printable(self.message, MAX_ERROR_TEXT), retry_after=retry_after)


Message: TypeAlias = (
    Challenge
    | Hello
    | Welcome
    | Open
    | Opened
    | Link
    | Linked
    | Unlinked
    | Feed
    | Fed
    | Step
    | Output
    | Close
    | Closed
    | Reserve
    | Reserved
    | Incoming
    | Ping
    | Pong
    | Dialback
    | Dialled
    | ErrorMessage
)

MESSAGES: dict[str, type[Any]] = {
    cls.TYPE: cls
    for cls in (
        Challenge, Hello, Welcome, Open, Opened, Link, Linked, Unlinked, Feed, Fed, Step, Output,
        Close, Closed, Reserve, Reserved, Incoming, Ping, Pong, Dialback, Dialled, ErrorMessage,
    )
}  # fmt: skip

WITH_PAYLOAD = (Step, Output)


def encode_header(message: Message) -> bytes:
    """The msgpack header of a message."""
    header: dict[str, Any] = {"t": message.TYPE}
    for name in message.FIELDS:
        value = getattr(message, name)
        if isinstance(value, TensorMeta):
            value = value.to_wire()
        header[name] = value
    packed: bytes = msgpack.packb(header)
    return packed


def decode_header(header: bytes, payload_bytes: int) -> Message:
    """The message of a header. Raises UnknownMessage, BadTensor, BadRequest."""
    try:
        raw = msgpack.unpackb(
            header, raw=False, strict_map_key=True, max_ext_len=0, max_array_len=64, max_map_len=64
        )
    except Exception as error:  # msgpack raises ValueError, its own and Unicode errors
        raise BadRequest(f"a header that is not msgpack: {type(error).__name__}") from error
    if not isinstance(raw, dict) or not isinstance(raw.get("t"), str):
        raise BadRequest("a header is a map with a type")
    cls = MESSAGES.get(raw.pop("t"))
    if cls is None:
        raise UnknownMessage("a message type that this version does not have")
    if raw.keys() != cls.FIELDS.keys():
        wrong = ", ".join(sorted(map(str, raw.keys() ^ cls.FIELDS.keys())))[:100]
        raise BadRequest(f"{cls.TYPE}: missing or unknown fields: {wrong}")
    values = {}
    for name, check in cls.FIELDS.items():
        try:
            values[name] = check(raw[name])
        except ValueError as error:
            raise BadRequest(f"{cls.TYPE}.{name}: {error}") from error
    if payload_bytes and cls not in WITH_PAYLOAD:
        raise BadRequest(f"{cls.TYPE} carries no payload")
    message: Message = cls(**values)
    return message
