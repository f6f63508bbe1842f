"""A hop's link to the next hop of a ring: steps go over it, and nothing comes back."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence

from swarmd.clock import Clock, SystemClock
from swarmd.errors import ConnectionLost, PeerTimeout, RemoteError, UnknownSession
from swarmd.identity import PeerId
from swarmd.peers import Address, PeerInfo
from swarmd.wire.messages import ErrorMessage, Fed, Feed, Link, Ping, Pong, Step
from swarmd.wire.pool import Pool
from swarmd.wire.tensors import TensorMeta
from swarmd.wire.transport import Greeted

__all__ = ["Edge", "KnownPeers", "Successors"]

OPEN_SECONDS = 5.0
"""To find, dial and greet the next hop; the client goes on as a hub meanwhile."""
STALLED_SECONDS = 10.0
"""For which a next hop may not read before its edge is dropped."""


class Edge:
    """Steps to the session `target` of one client at another peer. `rtt`: seconds there and back.

    Who is at the other end is proven by its key, as on every link; that it is to have these steps
    is the word of the client, whose secret opened the session.
    """

    def __init__(self, greeted: Greeted, target: bytes, rtt: float) -> None:
        self.rtt = rtt
        self._greeted = greeted
        self._target = target

    @classmethod
    async def open(
        cls, peer_id: PeerId, address: Address, pool: Pool, *, target: bytes, feed: bytes
    ) -> Edge:
        """Raises PeerFailure of some kind, or the refusal."""
        greeted = await pool.acquire(peer_id, address)
        connection = greeted.connection
        try:
            began = time.perf_counter()
            await connection.send(Feed(target, feed))
            message, _ = await connection.receive()
            if isinstance(message, ErrorMessage):
                pool.release(greeted)
                raise message.to_error()
            rtt = time.perf_counter() - began
            if not isinstance(message, Fed):
                raise ConnectionLost(f"{peer_id.short}: {message.TYPE} instead of fed")
            began = time.perf_counter()
            await connection.send(Ping(0))
            message, _ = await connection.receive()
            if not isinstance(message, Pong):
                raise ConnectionLost(f"{peer_id.short}: {message.TYPE} instead of pong")
            return cls(greeted, target, min(rtt, time.perf_counter() - began))
        except RemoteError:
            raise
        except BaseException:
            connection.abort()
            raise

    async def forward(
        self, step: Step, tensor: TensorMeta, payload: memoryview, *, deadline_ms: int
    ) -> None:
        """Send an output on: that of `step`, described by `tensor`. Raises ConnectionLost, also
        when the next hop does not read for a while: an edge is worth less than the answer."""
        onward = Step(self._target, step.step, step.start, deadline_ms, tensor, step.forward - 1)
        try:
            async with asyncio.timeout(STALLED_SECONDS):
                await self._greeted.connection.send(onward, payload)
        except TimeoutError as error:
            self._greeted.connection.abort()
            raise ConnectionLost("the next hop does not read") from error

    async def watch(self) -> str:
        """Wait until the edge breaks; returns why."""
        try:
            message, _ = await self._greeted.connection.receive()
        except (ConnectionLost, RemoteError) as error:
            return str(error)
        if isinstance(message, ErrorMessage):
            return str(message.to_error())
        return f"{message.TYPE} is not expected here"

    def close(self) -> None:
        """Drop the connection: steps may be on their way, so it is of no use to another session."""
        self._greeted.connection.abort()


class KnownPeers:
    """Addresses of the peers that announce blocks of this node's model. A client names a next hop
    by its PeerId alone: a node dials nobody whom it does not find announced."""

    KEPT = 60.0
    """Seconds for which a list is believed."""
    ASKED_AGAIN = 2.0
    """Seconds after which one who is not on it is looked up again."""

    def __init__(
        self, fetch: Callable[[], Awaitable[Sequence[PeerInfo]]], clock: Clock | None = None
    ) -> None:
        self._fetch = fetch
        self._clock = clock or SystemClock()
        self._addresses: dict[PeerId, Address] = {}
        self._fetched_at: float | None = None
        self._fetching = asyncio.Lock()

    async def whereis(self, peer_id: PeerId) -> Address | None:
        """None for who announces nothing. Raises DhtError."""
        async with self._fetching:
            now = self._clock.monotonic()
            age = now - self._fetched_at if self._fetched_at is not None else self.KEPT
            if age >= (self.KEPT if peer_id in self._addresses else self.ASKED_AGAIN):
                peers = await self._fetch()
                self._addresses = {peer.peer_id: peer.address for peer in peers}
                self._fetched_at = now
            return self._addresses.get(peer_id)


class Successors:
    """Opens the edges that clients ask for."""

    def __init__(self, pool: Pool, whereis: Callable[[PeerId], Awaitable[Address | None]]) -> None:
        self._pool = pool
        self._whereis = whereis

    async def open(self, link: Link) -> Edge:
        """The edge of a `link` message. Raises PeerFailure, RemoteError, DhtError."""
        peer_id = PeerId(link.peer_id)
        try:
            async with asyncio.timeout(OPEN_SECONDS):
                address = await self._whereis(peer_id)
                if address is None:
                    raise UnknownSession(f"{peer_id.short} announces no blocks of this model")
                return await Edge.open(
                    peer_id, address, self._pool, target=link.target, feed=link.feed
                )
        except TimeoutError as error:
            raise PeerTimeout(
                f"{peer_id.short} did not answer within {OPEN_SECONDS:g} s", peer=peer_id
            ) from error
