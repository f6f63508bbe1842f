"""One hop of a session as the client sees it: a connection, an open session, steps on it.

`post` and `receive` are the two directions, each in order; `step` is both, for who runs one step at
a time. In a ring a hop also answers steps that came to it from the hop before: `expect` says which.
"""

from __future__ import annotations

import asyncio
import itertools
import secrets
from dataclasses import dataclass
from typing import TypeAlias

from swarmd.blocks import Span
from swarmd.errors import (
    BadOutput,
    BadRequest,
    BadTensor,
    ConnectionLost,
    ModelMismatch,
    NotFinite,
    PeerTimeout,
    RemoteError,
    UnknownSession,
)
from swarmd.peers import PeerInfo
from swarmd.wire.codecs import Codec
from swarmd.wire.messages import (
    FEED_BYTES,
    SESSION_ID_BYTES,
    Close,
    Closed,
    ErrorMessage,
    Link,
    Linked,
    Open,
    Opened,
    Output,
    Ping,
    Pong,
    Step,
    Unlinked,
)
from swarmd.wire.pool import Pool
from swarmd.wire.tensors import TensorMeta, decode, encode, is_finite
from swarmd.wire.transport import Greeted

__all__ = ["HopEvent", "HopLink", "HopOutput", "Refused"]

IDLE_SECONDS = 60.0
"""A connection that broke after so long without a step is no sign that its peer failed."""
MAX_STRAYS = 1024
"""Answers to steps that were not meant for a hop: a few for each repair."""
PEERS_SHARE = 0.9
"""Of a step's deadline; the rest is for the answer's way back."""


@dataclass(frozen=True, slots=True)
class HopOutput:
    """A step's output as raw bytes, and the seconds that the peer says it took: computing,
    queueing. `wire_bytes` of both payloads; of a fed step, of the output alone."""

    number: int
    data: bytearray
    compute_seconds: float
    queue_seconds: float
    wire_bytes: int


@dataclass(frozen=True, slots=True)
class Refused:
    """The peer refuses a step, or gave a bad output for what another hop fed to it; the session
    goes on."""

    number: int
    error: RemoteError | BadOutput


HopEvent: TypeAlias = HopOutput | Refused | Linked | Unlinked | Pong


@dataclass(frozen=True, slots=True)
class _Expected:
    meta: TensorMeta
    sent_bytes: int
    fed: bool = False


class HopLink:
    """A session over `span` at `peer`."""

    def __init__(
        self, peer: PeerInfo, span: Span, greeted: Greeted, pool: Pool, *, feed: bytes
    ) -> None:
        self.peer = peer
        self.span = span
        self._greeted = greeted
        self._pool = pool
        self._session = secrets.token_bytes(SESSION_ID_BYTES)
        self._feed = feed
        self._numbers = itertools.count(1)
        self._links = itertools.count(1)
        self._expected: dict[int, _Expected] = {}
        self._strays = 0
        self._used = asyncio.get_running_loop().time()

    @classmethod
    async def open(
        cls,
        peer: PeerInfo,
        span: Span,
        pool: Pool,
        *,
        max_length: int,
        timeout: float,
        fed: bool = False,
    ) -> HopLink:
        """Connect (or take a pooled connection) and open a session, within `timeout` seconds;
        `fed`: another hop may be linked to it.

        Raises PeerFailure of some kind, or the RemoteError that the peer refuses with.
        """
        greeted: Greeted | None = None
        try:
            async with asyncio.timeout(timeout):
                greeted = await pool.acquire(peer.peer_id, peer.address)
                if greeted.arithmetic != peer.arithmetic or not greeted.span.covers(span):
                    raise ModelMismatch(
                        f"{peer.peer_id.short} now serves {greeted.span} in {greeted.arithmetic}, "
                        f"not {span} in {peer.arithmetic}"
                    )
                feed = secrets.token_bytes(FEED_BYTES) if fed else b""
                link = cls(peer, span, greeted, pool, feed=feed)
                await greeted.connection.send(
                    Open(link._session, span.start, span.end, max_length, feed)
                )
                message, _ = await greeted.connection.receive()
        except TimeoutError as error:
            if greeted is not None:
                greeted.connection.abort()
            raise PeerTimeout(
                f"{peer.peer_id.short} at {peer.address}: did not open a session within "
                f"{timeout:.1f} s",
                peer=peer.peer_id,
            ) from error
        except BadRequest as error:
            raise _broken(peer, greeted, error) from error
        except BaseException:
            if greeted is not None:
                greeted.connection.abort()
            raise
        if isinstance(message, ErrorMessage):
            pool.release(greeted)
            raise message.to_error()
        if not isinstance(message, Opened):  # a pong may come at any time
            raise _broken(peer, greeted, BadRequest(f"{message.TYPE} instead of opened"))
        return link

    async def step(
        self, start: int, data: bytes, meta: TensorMeta, *, codec: Codec, deadline: float
    ) -> HopOutput:
        """Run positions from `start` on; `meta` describes the raw bytes `data`. Within
        `deadline` seconds. Raises PeerFailure or RemoteError; after a PeerFailure the link is
        dead."""
        number = next(self._numbers) & 0xFFFFFFFF
        self.post(number, start, data, meta, codec=codec, deadline=deadline)
        try:
            async with asyncio.timeout(deadline):
                event = await self.receive()
        except TimeoutError as error:
            self.abort()
            raise PeerTimeout(
                f"{self.peer.peer_id.short} at {self.peer.address}: no answer within "
                f"{deadline:.1f} s",
                peer=self.peer.peer_id,
            ) from error
        except asyncio.CancelledError:
            self.abort()  # the answer would be taken for the next step's
            raise
        if isinstance(event, Refused):
            raise event.error
        if not isinstance(event, HopOutput):
            raise self._broke_protocol(f"{event.TYPE} instead of an output")
        return event

    def post(
        self,
        number: int,
        start: int,
        data: bytes,
        meta: TensorMeta,
        *,
        codec: Codec,
        deadline: float,
        forward: int = 0,
    ) -> None:
        """Send step `number` (they rise): positions from `start` on, of which `meta` describes the
        raw bytes `data`. Its answer is of no use after `deadline` seconds; `forward`: how many
        hops are to run the output in turn. Does not wait.

        Raises ConnectionLost, and UnknownSession where the connection ended unused.
        """
        connection = self._greeted.connection
        if not connection.is_open and self.rested:
            raise self.ended_idle()
        meta = TensorMeta(meta.dtype, meta.shape, codec)
        payload = encode(data, meta)
        # The peer is to say that it is overloaded before we take it for dead.
        deadline_ms = max(1, round(1000 * PEERS_SHARE * deadline))
        connection.post(Step(self._session, number, start, deadline_ms, meta, forward), payload)
        self._expected[number] = _Expected(meta, len(payload))
        self._used = asyncio.get_running_loop().time()

    def expect(self, number: int, meta: TensorMeta) -> None:
        """The hop before is to feed a step of this number; it is answered like one of ours."""
        self._expected[number] = _Expected(meta, 0, fed=True)

    @property
    def is_open(self) -> bool:
        """Whether the connection has not ended, as far as is known here."""
        return self._greeted.connection.is_open

    @property
    def rested(self) -> bool:
        """Unused for so long that it may have ended for that."""
        return asyncio.get_running_loop().time() - self._used > IDLE_SECONDS

    def ended_idle(self) -> UnknownSession:
        """The session ended, which is nobody's fault: it waited too long, perhaps for another
        hop."""
        self.abort()
        return UnknownSession(f"{self.peer.peer_id.short}: the session ended while it was idle")

    def link_to(self, successor: HopLink) -> int:
        """Ask the peer to link this session to that one; an earlier link ends. Returns the number
        that its `linked` or `unlinked` will name. Raises ConnectionLost."""
        number = next(self._links)
        self._greeted.connection.post(
            Link(
                self._session,
                number,
                bytes(successor.peer.peer_id),
                successor._session,
                successor._feed,
            )
        )
        return number

    def ping(self) -> None:
        """Ask for a `pong`, whatever the engine does. Raises ConnectionLost."""
        self._greeted.connection.post(Ping(0))

    async def receive(self) -> HopEvent:
        """What the peer says next. Raises PeerFailure, or the RemoteError with which the peer ends
        the session; the link is then dead."""
        while (event := await self._receive()) is None:
            pass
        return event

    async def _receive(self) -> HopEvent | None:
        """None for the answer to a step that another hop fed to this one unasked: one that was
        meant for the hop in whose place this one stands."""
        try:
            message, answer = await self._greeted.connection.receive()
        except RemoteError as error:
            raise _broken(self.peer, self._greeted, error) from error
        self._used = asyncio.get_running_loop().time()
        if isinstance(message, Linked | Unlinked | Pong):
            return message
        if isinstance(message, ErrorMessage) and message.step is None:
            self.abort()
            raise message.to_error()
        if not isinstance(message, ErrorMessage | Output):
            raise self._broke_protocol(f"{message.TYPE} instead of an output")
        assert message.step is not None
        expected = self._expected.pop(message.step, None)
        if expected is None:
            self._strays += 1
            if not self._feed or self._strays > MAX_STRAYS:
                raise self._broke_protocol(f"{message.TYPE} answers no step that is under way")
            return None
        # Answers rise as well: what was not answered before will not be.
        for number in [one for one in self._expected if one < message.step]:
            del self._expected[number]
        if isinstance(message, ErrorMessage):
            return Refused(message.step, message.to_error())
        try:
            data = self._checked(message, answer, expected.meta)
        except BadOutput as error:
            if expected.fed:  # perhaps for a bad input
                return Refused(message.step, error)
            self.abort()
            raise
        return HopOutput(
            message.step,
            data,
            message.compute_us / 1e6,
            message.queue_us / 1e6,
            expected.sent_bytes + len(answer),
        )

    def _broke_protocol(self, reason: str) -> BadOutput:
        return _broken(self.peer, self._greeted, BadRequest(reason))

    def _checked(self, message: Output, answer: bytearray, meta: TensorMeta) -> bytearray:
        """The raw bytes of an output that is what was asked for. Raises BadOutput, NotFinite."""
        name, peer_id = self.peer.peer_id.short, self.peer.peer_id
        tensor = message.tensor
        if tensor.dtype != meta.dtype or tensor.shape != meta.shape:
            raise BadOutput(
                f"{name}: output {tensor.dtype} {list(tensor.shape)}, "
                f"expected {meta.dtype} {list(meta.shape)}",
                peer=peer_id,
            )
        try:
            raw = decode(answer, tensor, max_bytes=meta.n_bytes)
        except BadTensor as error:
            raise BadOutput(f"{name}: {error}", peer=peer_id) from error
        if not is_finite(raw, meta.dtype):
            raise NotFinite(
                f"{name}: its output holds values that are not finite in {meta.dtype}",
                peer=peer_id,
            )
        return raw

    async def close(self, timeout: float = 1.0) -> None:
        """Close the session and give the connection back; drop it if that does not work. Nobody
        may be receiving."""
        connection = self._greeted.connection
        try:
            async with asyncio.timeout(timeout):
                await connection.send(Close(self._session))
                while True:
                    message, _ = await connection.receive()
                    if isinstance(message, Closed):
                        break
        except (TimeoutError, RemoteError, ConnectionLost, AssertionError):
            connection.abort()
            return
        except BaseException:
            connection.abort()
            raise
        self._pool.release(self._greeted)

    def abort(self) -> None:
        """Drop the connection; the peer frees the session."""
        self._greeted.connection.abort()


def _broken(peer: PeerInfo, greeted: Greeted | None, error: RemoteError) -> BadOutput:
    """The peer answered against the protocol: drop the connection, blame the peer."""
    if greeted is not None:
        greeted.connection.abort()
    return BadOutput(f"{peer.peer_id.short} broke the protocol: {error}", peer=peer.peer_id)
