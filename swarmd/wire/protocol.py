"""The session protocol as a pure object: what may be said when, as a table.

Both ends run the same machine; an end that breaks the table itself gets :class:`LocalMisuse`, an
end whose peer breaks it gets a :class:`BadRequest` to send back. A connection is greeted once and
then carries one session at a time, in the manner of HTTP/1.1::

    NEW --challenge--> CHALLENGED --hello--> GREETING --welcome--> IDLE

    IDLE --open--> OPENING --opened--> SESSION
     ^  <--error--/                     |    \\
     |                         close    step/output*
     +---------closed---- CLOSING <-----+

    IDLE --reserve--> RESERVING --reserved--> RESERVED --incoming*

An idle connection may also carry a `dialback`, which `dialled` or an `error` answers (DIALLING).
`ping` and `pong` may be said whenever the connection is greeted and not DIALLING. A fatal `error`
ends it from any state. Several steps may be under way at once; they are answered in order. Sessions
belong to their connection: a session's id means nothing on another one, so it cannot be hijacked by
guessing.
"""

from __future__ import annotations

import enum
from collections import deque
from typing import TypeAlias

from swarmd.errors import BadRequest, BadTensor, UnknownSession
from swarmd.wire.frames import DEFAULT_LIMITS, Frame, Limits
from swarmd.wire.messages import (
    Challenge,
    Close,
    Closed,
    Dialback,
    Dialled,
    ErrorMessage,
    Hello,
    Incoming,
    Message,
    Open,
    Opened,
    Output,
    Ping,
    Pong,
    Reserve,
    Reserved,
    Step,
    Welcome,
    decode_header,
    encode_header,
)

__all__ = ["MAX_STEPS_UNDER_WAY", "TRANSITIONS", "LocalMisuse", "Protocol", "Role", "State"]

MAX_STEPS_UNDER_WAY = 64
"""A pipelined prefill has a few dozen chunks under way; more would be a flood."""


class LocalMisuse(AssertionError):
    """Our own side tried to say something out of turn: a bug of ours, never the peer's."""


class Role(enum.Enum):
    DIALLER = "dialler"
    LISTENER = "listener"

    @property
    def other(self) -> Role:
        return Role.LISTENER if self is Role.DIALLER else Role.DIALLER


class State(enum.Enum):
    NEW = "new"
    CHALLENGED = "challenged"
    GREETING = "greeting"
    IDLE = "idle"
    OPENING = "opening"
    SESSION = "session"
    CLOSING = "closing"
    RESERVING = "reserving"
    RESERVED = "reserved"
    DIALLING = "dialling"
    ENDED = "ended"


Key: TypeAlias = tuple[State, Role, type]

_D, _L = Role.DIALLER, Role.LISTENER

TRANSITIONS: dict[Key, State] = {
    (State.NEW, _L, Challenge): State.CHALLENGED,
    (State.CHALLENGED, _D, Hello): State.GREETING,
    (State.GREETING, _L, Welcome): State.IDLE,
    (State.IDLE, _D, Open): State.OPENING,
    (State.OPENING, _L, Opened): State.SESSION,
    (State.OPENING, _L, ErrorMessage): State.IDLE,
    (State.SESSION, _D, Step): State.SESSION,
    (State.SESSION, _L, Output): State.SESSION,
    (State.SESSION, _L, ErrorMessage): State.SESSION,
    (State.SESSION, _D, Close): State.CLOSING,
    (State.CLOSING, _L, Output): State.CLOSING,
    (State.CLOSING, _L, ErrorMessage): State.CLOSING,
    (State.CLOSING, _L, Closed): State.IDLE,
    (State.IDLE, _L, ErrorMessage): State.IDLE,
    (State.IDLE, _D, Reserve): State.RESERVING,
    (State.RESERVING, _L, Reserved): State.RESERVED,
    (State.RESERVING, _L, ErrorMessage): State.IDLE,
    (State.RESERVED, _L, Incoming): State.RESERVED,
    (State.IDLE, _D, Dialback): State.DIALLING,
    (State.DIALLING, _L, Dialled): State.IDLE,
    (State.DIALLING, _L, ErrorMessage): State.IDLE,
} | {
    (state, sender, message): state
    for state in (
        State.IDLE,
        State.OPENING,
        State.SESSION,
        State.CLOSING,
        State.RESERVING,
        State.RESERVED,
    )
    for sender, message in ((_D, Ping), (_L, Pong))
}
"""(state, sender, message type) to the next state. What is not here is against the protocol,
except a fatal `error`, which leads from every state to ENDED."""


class Protocol:
    """One end of one connection. Not thread-safe; does no I/O."""

    def __init__(self, role: Role, limits: Limits = DEFAULT_LIMITS) -> None:
        self.role = role
        self.state = State.NEW
        self.limits = limits
        self.session: bytes | None = None
        self._steps: deque[int] = deque()

    @property
    def steps_under_way(self) -> int:
        return len(self._steps)

    def send(self, message: Message) -> bytes:
        """The header to send. Raises LocalMisuse when it is not our turn to say this."""
        try:
            self._apply(self.role, message)
        except (BadRequest, UnknownSession) as error:
            raise LocalMisuse(f"{message.TYPE} in state {self.state.value}: {error}") from error
        return encode_header(message)

    def receive(self, frame: Frame) -> Message:
        """The message of a frame that the other end sent.

        Raises BadRequest (or a kind of it) when the frame breaks the protocol, and
        UnknownSession for a step or a close of a session that this connection does not carry;
        the state is then unchanged.
        """
        message = decode_header(frame.header, len(frame.payload))
        if isinstance(message, Step | Output):
            if message.tensor.codec == "raw" and len(frame.payload) != message.tensor.n_bytes:
                raise BadTensor(
                    f"{len(frame.payload)} bytes for a tensor of {message.tensor.n_bytes}"
                )
            if message.tensor.n_bytes > self.limits.payload:
                raise BadTensor(f"a tensor of {message.tensor.n_bytes} bytes is too large")
        self._apply(self.role.other, message)
        return message

    def _apply(self, sender: Role, message: Message) -> None:
        if isinstance(message, ErrorMessage) and message.fatal and self.state is not State.ENDED:
            self.state = State.ENDED
            return
        from_dialler = sender is Role.DIALLER
        if from_dialler and isinstance(message, Step | Close) and message.session != self.session:
            raise UnknownSession("this connection carries no such session")
        target = TRANSITIONS.get((self.state, sender, type(message)))
        if target is None:
            raise BadRequest(f"{message.TYPE} is not expected in state {self.state.value}")
        self._check(message)
        if isinstance(message, Open):
            self.session = message.session
        elif isinstance(message, Step):
            self._steps.append(message.step)
        elif isinstance(message, Output | ErrorMessage) and message.step is not None:
            self._steps.popleft()
        self.state = target
        if target is State.IDLE:
            self.session = None
            self._steps.clear()

    def _check(self, message: Message) -> None:
        if isinstance(message, Opened | Output | Closed) and message.session != self.session:
            raise BadRequest(f"{message.TYPE} names another session")
        if isinstance(message, Step) and len(self._steps) >= MAX_STEPS_UNDER_WAY:
            raise BadRequest(f"more than {MAX_STEPS_UNDER_WAY} steps are under way")
        answered = message.step if isinstance(message, Output | ErrorMessage) else None
        if answered is not None and (not self._steps or self._steps[0] != answered):
            raise BadRequest(
                f"{message.TYPE} answers no step that is under way, or is out of order"
            )
        if isinstance(message, Open | Welcome) and message.start >= message.end:
            raise BadRequest(f"{message.TYPE}: blocks {message.start}:{message.end} are no span")
