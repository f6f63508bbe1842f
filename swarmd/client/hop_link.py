"""One hop of a session as the client sees it: a connection, an open session, steps on it."""

from __future__ import annotations

import asyncio
import itertools
import secrets
from dataclasses import dataclass

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
from swarmd.wire.messages import (
    SESSION_ID_BYTES,
    Close,
    Closed,
    ErrorMessage,
    Open,
    Opened,
    Output,
    Step,
)
from swarmd.wire.pool import Pool
from swarmd.wire.tensors import Codec, TensorMeta, decode, encode, is_finite
from swarmd.wire.transport import Greeted

__all__ = ["HopLink", "HopOutput"]

IDLE_SECONDS = 60.0
"""A connection that broke after so long without a step is no sign that its peer failed."""
PEERS_SHARE = 0.9
"""Of a step's deadline; the rest is for the answer's way back."""


@dataclass(frozen=True, slots=True)
class HopOutput:
    """A step's output as raw bytes, and the seconds that it took: in all, computing, queueing."""

    data: bytearray
    seconds: float
    compute_seconds: float
    queue_seconds: float
    wire_bytes: int


class HopLink:
    """A session over `span` at `peer`. Steps are run one at a time."""

    def __init__(self, peer: PeerInfo, span: Span, greeted: Greeted, pool: Pool) -> None:
        self.peer = peer
        self.span = span
        self._greeted = greeted
        self._pool = pool
        self._session = secrets.token_bytes(SESSION_ID_BYTES)
        self._numbers = itertools.count(1)
        self._used = asyncio.get_running_loop().time()

    @classmethod
    async def open(
        cls, peer: PeerInfo, span: Span, pool: Pool, *, max_length: int, timeout: float
    ) -> HopLink:
        """Connect (or take a pooled connection) and open a session, within `timeout` seconds.

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
                link = cls(peer, span, greeted, pool)
                await greeted.connection.send(Open(link._session, span.start, span.end, max_length))
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
        connection = self._greeted.connection
        loop = asyncio.get_running_loop()
        began = loop.time()
        if not connection.is_usable and began - self._used > IDLE_SECONDS:
            connection.abort()  # nobody's fault: it waited too long, perhaps for another hop
            raise UnknownSession(f"{self.peer.peer_id.short}: the session ended while it was idle")
        number = next(self._numbers) & 0xFFFFFFFF
        meta = TensorMeta(meta.dtype, meta.shape, codec)
        payload = encode(data, meta)
        # The peer is to say that it is overloaded before we take it for dead.
        deadline_ms = max(1, round(1000 * PEERS_SHARE * deadline))
        step = Step(self._session, number, start, deadline_ms, meta)
        try:
            async with asyncio.timeout(deadline):
                await connection.send(step, payload)
                message, answer = await connection.receive()
        except TimeoutError as error:
            connection.abort()
            raise PeerTimeout(
                f"{self.peer.peer_id.short} at {self.peer.address}: no answer within "
                f"{deadline:.1f} s",
                peer=self.peer.peer_id,
            ) from error
        except RemoteError as error:
            raise _broken(self.peer, self._greeted, error) from error
        except asyncio.CancelledError:
            connection.abort()  # the answer would be taken for the next step's
            raise
        if isinstance(message, ErrorMessage):
            if message.step != number:
                connection.abort()  # this step's own answer would be taken for the next step's
            raise message.to_error()
        if not isinstance(message, Output):
            wrong = BadRequest(f"{message.TYPE} instead of an output")
            raise _broken(self.peer, self._greeted, wrong)
        raw = self._checked(message, answer, meta)
        self._used = loop.time()
        return HopOutput(
            raw,
            loop.time() - began,
            message.compute_us / 1e6,
            message.queue_us / 1e6,
            len(payload) + len(answer),
        )

    def _checked(self, message: Output, answer: bytearray, meta: TensorMeta) -> bytearray:
        """The raw bytes of an output that is what was asked for. Raises BadOutput, NotFinite."""
        name, peer_id = self.peer.peer_id.short, self.peer.peer_id
        tensor = message.tensor
        try:
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
        except BadOutput:
            self.abort()
            raise
        return raw

    async def close(self, timeout: float = 1.0) -> None:
        """Close the session and give the connection back; drop it if that does not work."""
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
