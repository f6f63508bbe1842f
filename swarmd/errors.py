"""Every error that swarmd raises, in one tree.

::

    SwarmdError
    ├── UsageError                  the command line or the configuration is wrong (exit code 2)
    │   ├── BlocksOutOfRange        `--blocks` names blocks that the model does not have
    │   └── UnsupportedModel        a model or an option of it that swarmd cannot run
    ├── ModelError                  a model folder that is unreadable or incomplete
    ├── DhtError                    the DHT could not do what was asked
    │   └── BootstrapFailed         none of the given contacts answered
    ├── PortInUse                   the address to listen on is taken
    ├── RemoteError                 what a peer answers, and what we answer a peer (`code` travels)
    │   ├── BadRequest              malformed, or against the session protocol
    │   │   ├── FrameTooLarge       a length beyond the negotiated limit
    │   │   ├── UnknownMessage      a message type that this version does not know
    │   │   ├── BadTensor           dtype, shape, codec or byte count are wrong
    │   │   ├── PositionOutOfRange  a step beyond the cache or beyond the session's limit
    │   │   └── BlocksNotHeld       an `open` for blocks that the peer does not serve
    │   ├── VersionMismatch         another protocol version
    │   ├── ModelMismatch           the peer serves other weights
    │   ├── UnknownSession          no such session on this connection (lost, expired, closed)
    │   ├── SessionTooLong          more positions than the peer's whole attention cache has
    │   ├── Busy                    no room now; come back after `retry_after` seconds
    │   ├── Draining                the peer is about to leave
    │   ├── NotRelaying             the peer passes no links on to others
    │   ├── NotAllowed              the peer serves only those on its list
    │   ├── DeadlineExceeded        the step was not done before its deadline
    │   └── InternalError           the peer has a bug, or its hardware failed
    ├── PeerFailure                 the peer did not answer as a live peer does
    │   ├── Unreachable             it cannot be dialled
    │   ├── ConnectionLost          the stream ended or broke
    │   ├── PeerTimeout             no answer before the deadline
    │   ├── PeerMismatch            another peer answers at its address
    │   └── BadOutput               its output has a wrong shape or breaks the protocol
    │       └── NotFinite           its output holds infinity or NaN
    ├── NoRoute                     some blocks are held by no live peer
    ├── ReplayExhausted             a session lost more hops than could be replaced
    ├── GatewayError                the local router maps no port, or gave an answer of no use
    │   └── GatewayRefused          it answered with a `code` of UPnP
    ├── OutputWithdrawn             a spot check found that earlier outputs were wrong
    └── StateError                  the state folder cannot be used

Three properties of a class decide what recovery does, and nothing else of it does:

* `retryable`: the same step may succeed elsewhere or later. A refusal that is not means that the
  request is wrong, or that the peer is: a session believes it when a second peer says the same.
* `blames_peer`: the peer is at fault and is banned for a while.
* `transient`: the peer is well, and may accept the same a moment later.

`code` is the word that travels in an `error` message.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import ClassVar

__all__ = [
    "REMOTE_ERRORS",
    "BadOutput",
    "BadRequest",
    "BadTensor",
    "BlocksNotHeld",
    "BlocksOutOfRange",
    "BootstrapFailed",
    "Busy",
    "ConnectionLost",
    "DeadlineExceeded",
    "DhtError",
    "Draining",
    "FrameTooLarge",
    "GatewayError",
    "GatewayRefused",
    "InternalError",
    "ModelError",
    "ModelMismatch",
    "NoRoute",
    "NotAllowed",
    "NotFinite",
    "NotRelaying",
    "OutputWithdrawn",
    "PeerFailure",
    "PeerMismatch",
    "PeerTimeout",
    "PortInUse",
    "PositionOutOfRange",
    "RemoteError",
    "ReplayExhausted",
    "SessionTooLong",
    "StateError",
    "SwarmdError",
    "UnknownMessage",
    "UnknownSession",
    "Unreachable",
    "UnsupportedModel",
    "UsageError",
    "VersionMismatch",
    "error_classes",
]


class SwarmdError(Exception):
    """Base of all errors of swarmd. `exit_code` is what the command line exits with."""

    exit_code: ClassVar[int] = 1
    retryable: ClassVar[bool] = False
    blames_peer: ClassVar[bool] = False
    transient: ClassVar[bool] = False


class UsageError(SwarmdError):
    """The reader asked for something that cannot be; the sentence says what can."""

    exit_code = 2


class BlocksOutOfRange(UsageError):
    """The blocks asked for are not blocks of this model."""


class UnsupportedModel(UsageError):
    """The model, or an option of it, is one that swarmd cannot run."""


class ModelError(SwarmdError):
    """A model folder is unreadable or incomplete."""


class DhtError(SwarmdError):
    """The DHT could not do what was asked."""


class BootstrapFailed(DhtError):
    """None of the given contacts answered."""


class PortInUse(SwarmdError):
    """The address to listen on is taken by another program."""


class StateError(SwarmdError):
    """The state folder cannot be read or written."""


class GatewayError(SwarmdError):
    """The local router maps no port for us: none answers, or its answers are of no use."""


class GatewayRefused(GatewayError):
    """The local router refused what it was asked; `code` is UPnP's (0 if it gave none)."""

    def __init__(self, message: str, *, code: int) -> None:
        super().__init__(message)
        self.code = code


class RemoteError(SwarmdError):
    """A typed refusal: what travels in an `error` message. Only its subclasses are raised.

    `code` is unique to the class. `retry_after` (seconds) is only meant with :class:`Busy`.
    """

    code: ClassVar[str]

    def __init__(self, message: str = "", *, retry_after: float | None = None) -> None:
        super().__init__(message or self.code)
        self.retry_after = retry_after


class BadRequest(RemoteError):
    """The message is malformed, or against the session protocol: our bug, or the peer's."""

    code = "bad_request"


class FrameTooLarge(BadRequest):
    """A frame whose stated length is beyond the limit; refused before anything is allocated."""

    code = "frame_too_large"


class UnknownMessage(BadRequest):
    """A message type that this protocol version does not have."""

    code = "unknown_message"


class BadTensor(BadRequest):
    """A tensor whose dtype, shape, codec or byte count is wrong."""

    code = "bad_tensor"


class PositionOutOfRange(BadRequest):
    """A step that starts beyond the cache's end, or ends beyond the session's limit."""

    code = "position_out_of_range"


class BlocksNotHeld(BadRequest):
    """The peer does not serve these blocks (any more): refresh the view and go elsewhere."""

    code = "blocks_not_held"
    retryable = True


class VersionMismatch(RemoteError):
    """The other side speaks another protocol version."""

    code = "version_mismatch"
    retryable = True


class ModelMismatch(RemoteError):
    """The peer serves a model with another fingerprint."""

    code = "model_mismatch"
    retryable = True


class UnknownSession(RemoteError):
    """No such session on this connection: it expired or was closed. Opened anew, then replayed."""

    code = "unknown_session"
    retryable = True
    transient = True


class SessionTooLong(RemoteError):
    """The session asks for more positions than the peer's whole attention cache has room for."""

    code = "session_too_long"
    retryable = True


class Busy(RemoteError):
    """No room now. Retried elsewhere, or here after `retry_after` seconds; nobody is banned."""

    code = "busy"
    retryable = True
    transient = True


class Draining(RemoteError):
    """The peer is about to leave; its session goes elsewhere, and nobody is banned."""

    code = "draining"
    retryable = True


class NotAllowed(RemoteError):
    """The peer serves an allow-list of dialler PeerIds, and ours is not on it; others may serve."""

    code = "not_allowed"
    retryable = True


class NotRelaying(RemoteError):
    """The peer passes no links on: it was told not to, or cannot be dialled itself."""

    code = "not_relaying"
    retryable = True


class DeadlineExceeded(RemoteError):
    """The peer dropped the step because its deadline had passed: it is overloaded, not hung."""

    code = "deadline_exceeded"
    retryable = True
    transient = True


class InternalError(RemoteError):
    """The peer failed in a way that it did not foresee."""

    code = "internal_error"
    retryable = True
    blames_peer = True


class PeerFailure(SwarmdError):
    """The peer did not answer as a live peer does. `peer` names it where it is known."""

    retryable = True
    blames_peer = True

    def __init__(self, message: str, *, peer: object = None) -> None:
        super().__init__(message)
        self.peer = peer


class Unreachable(PeerFailure):
    """The peer's address refuses connections or does not answer."""


class ConnectionLost(PeerFailure):
    """The stream ended or broke, also in the middle of a frame."""


class PeerTimeout(PeerFailure):
    """No answer before the deadline; a hung peer is treated like a dead one."""


class PeerMismatch(PeerFailure):
    """Another peer answers at the address."""


class BadOutput(PeerFailure):
    """The peer's output has a wrong shape or dtype, or breaks the protocol."""


class NotFinite(BadOutput):
    """The peer's output holds infinity or NaN: its fault, unless a second peer's does as well."""


class NoRoute(SwarmdError):
    """No chain of live peers covers the model. `missing` are the ranges that nobody holds."""

    retryable = True

    def __init__(self, message: str, *, missing: Iterable[object] = ()) -> None:
        super().__init__(message)
        self.missing = tuple(missing)


class ReplayExhausted(SwarmdError):
    """A session lost more hops than could be replaced; `story` lists what happened, in order."""

    def __init__(self, message: str, *, story: Iterable[str] = ()) -> None:
        self.story = tuple(story)
        super().__init__("\n  ".join([message, *self.story]))


class OutputWithdrawn(SwarmdError):
    """Outputs from `position` on were proven wrong after they had been returned. The session is
    well: go on with a step at `position` or before."""

    def __init__(self, position: int) -> None:
        super().__init__(f"the outputs from position {position} on were wrong; repeat from there")
        self.position = position


def error_classes(root: type[SwarmdError] = SwarmdError) -> list[type[SwarmdError]]:
    """All classes of the tree, `root` first, depth first."""
    found = [root]
    for child in root.__subclasses__():
        found += error_classes(child)
    return found


REMOTE_ERRORS: dict[str, type[RemoteError]] = {
    cls.code: cls
    for cls in error_classes(RemoteError)
    if issubclass(cls, RemoteError) and cls is not RemoteError
}
"""Wire code to class. A code that is not here is decoded as :class:`InternalError`."""
