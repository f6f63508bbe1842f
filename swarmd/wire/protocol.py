"""The session protocol as a pure object: what may be said when, as a table.

Both ends run the same machine; an end that breaks the table itself gets :class:`LocalMisuse`, an
end whose peer breaks it gets a :class:`BadRequest` to send back. A connection is greeted once and
then carries one session at a time, in the manner of HTTP/1.1::

    NEW --challenge--> CHALLENGED --hello--> GREETING --welcome--> IDLE

    IDLE --open--> OPENING --opened--> SESSION
     ^  <--error--/                     |    \\
     |                         close    step/output*
     +---------closed---- CLOSING <-----+

    IDLE --feed--> FEEDING --fed--> FED --step*--> FED

    IDLE --reserve--> RESERVING --reserved--> RESERVED --incoming*

An idle connection may also carry a `dialback`, which `dialled` or an `error` answers (DIALLING).
`ping` and `pong` may be said whenever the connection is greeted and not DIALLING. A fatal `error`
ends it from any state. Several steps may be under way at once; they are answered in order. Sessions
belong to their connection: a session's id means nothing on another one, so it cannot be hijacked by
guessing. What was opened with a `feed` may be fed on another connection by who knows that secret:
steps that come there are answered on the session's own connection, among those of its client. A
session may be linked to the next hop's (`link`, which `linked` or `unlinked` answers, in any order
with all else; `unlinked` may follow `linked`).
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
    Fed,
    Feed,
    Hello,
    Incoming,
    Link,
    Linked,
    Message,
    Open,
    Opened,
    Output,
    Ping,
    Pong,
    Reserve,
    Reserved,
    Step,
    Unlinked,
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
    FEEDING = "feeding"
    FED = "fed"
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
    (State.SESSION, _D, Link): State.SESSION,
    (State.SESSION, _L, Linked): State.SESSION,
    (State.SESSION, _L, Unlinked): State.SESSION,
    (State.SESSION, _D, Close): State.CLOSING,
    (State.CLOSING, _L, Output): State.CLOSING,
    (State.CLOSING, _L, ErrorMessage): State.CLOSING,
    (State.CLOSING, _L, Linked): State.CLOSING,
    (State.CLOSING, _L, Unlinked): State.CLOSING,
    (State.CLOSING, _L, Closed): State.IDLE,
    (State.IDLE, _L, ErrorMessage): State.IDLE,
    (State.IDLE, _D, Feed): State.FEEDING,
    (State.FEEDING, _L, Fed): State.FED,
    (State.FEEDING, _L, ErrorMessage): State.IDLE,
    (State.FED, _D, Step): State.FED,
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
        State.FEEDING,
        State.FED,
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
        self._has_feed = False
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
        if (
            from_dialler
            and isinstance(message, Step | Close | Link)
            and message.session != self.session
        ):
            raise UnknownSession("this connection carries no such session")
        target = TRANSITIONS.get((self.state, sender, type(message)))
        if target is None:
            raise BadRequest(f"{message.TYPE} is not expected in state {self.state.value}")
        self._check(message)
        if isinstance(message, Open | Feed):
            self.session = message.session
            self._has_feed = isinstance(message, Open) and bool(message.feed)
        elif isinstance(message, Step) and target is State.SESSION:
            self._steps.append(message.step)
        elif (
            isinstance(message, Output | ErrorMessage)
            and self._steps
            and self._steps[0] == message.step
        ):
            self._steps.popleft()
        self.state = target
        if target is State.IDLE:
            self.session = None
            self._has_feed = False
            self._steps.clear()

    def _check(self, message: Message) -> None:
        if (
            isinstance(message, Opened | Output | Closed | Linked | Unlinked | Fed)
            and message.session != self.session
        ):
            raise BadRequest(f"{message.TYPE} names another session")
        if isinstance(message, Step) and len(self._steps) >= MAX_STEPS_UNDER_WAY:
            raise BadRequest(f"more than {MAX_STEPS_UNDER_WAY} steps are under way")
        answered = message.step if isinstance(message, Output | ErrorMessage) else None
        if answered is not None and not self._may_answer(answered):
            raise BadRequest(
                f"{message.TYPE} answers no step that is under way, or is out of order"
            )
        if isinstance(message, Open | Welcome) and message.start >= message.end:
            raise BadRequest(f"{message.TYPE}: blocks {message.start}:{message.end} are no span")

    def _may_answer(self, number: int) -> bool:
        """Whether a step of this number may be answered now: the oldest of ours, or, where the
        session has a feed, one that is not of ours."""
        if self._steps and self._steps[0] == number:
            return True
        fed = self._has_feed and self.state in (State.SESSION, State.CLOSING)
        return fed and number not in self._steps
