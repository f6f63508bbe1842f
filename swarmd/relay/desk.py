"""A relay's desk: control links of the nodes that it relays, clients that wait, streams that pass.

The ledger (:mod:`swarmd.relay.ledger`) decides; this object holds the transports. A client dials
the relay's address and knocks for the relayed node; the node is told over its control link, dials
the relay with a ticket, and the two streams are joined. From then on the relay passes bytes that it
cannot read: TLS and the greeting run between the client and the node.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from dataclasses import dataclass

from swarmd.clock import Clock, SystemClock
from swarmd.errors import BadRequest, Busy
from swarmd.identity import PeerId
from swarmd.relay.ledger import Call, Ledger, RelayLimits
from swarmd.relay.splice import Splice
from swarmd.swarm_key import KeyRing
from swarmd.tasks import TaskOwner
from swarmd.wire.connection import Connection
from swarmd.wire.knock import KNOCK_BYTES, Porter
from swarmd.wire.messages import TICKET_BYTES, Incoming, Ping, Pong, Reserved
from swarmd.wire.secure_link import Detour

__all__ = ["RelayDesk"]

log = logging.getLogger(__name__)

CONTROL_TIMEOUT = 60.0
"""Seconds without a word on a control link; its node pings three times as often."""


@dataclass(frozen=True, slots=True)
class _Meant:
    peer_id: PeerId


@dataclass(frozen=True, slots=True)
class _Ticket:
    ticket: bytes


class RelayDesk:
    """One node's relaying. `recognise` and `take` are called by the listener, `hold` by the server
    of a connection that said `reserve`. `close` at the end."""

    def __init__(
        self, keys: KeyRing, limits: RelayLimits | None = None, clock: Clock | None = None
    ) -> None:
        self.limits = limits or RelayLimits()
        self._porter = Porter(keys)
        self._clock = clock or SystemClock()
        self._ledger = Ledger(self.limits, lambda: secrets.token_bytes(TICKET_BYTES))
        self._all: set[_Waiting | _Passing] = set()

    @property
    def relayed(self) -> int:
        """Nodes that are relayed here."""
        return len(self._ledger.relayed)

    @property
    def streams(self) -> int:
        """Streams that pass."""
        return self._ledger.streams

    def close(self) -> None:
        """Drop all that waits and passes. Idempotent."""
        for one in list(self._all):
            one.abort()

    # ---- links of clients, and of nodes that come for them -----------------------------------

    def recognise(self, knock: bytes) -> object | None:
        """For whom a knock is that was not for this node."""
        now = self._clock.wall()
        peer_id = self._porter.meant(knock, self._ledger.relayed, now)
        if peer_id is not None:
            return _Meant(peer_id)
        ticket = self._porter.ticket(knock, now)
        return None if ticket is None else _Ticket(ticket)

    def take(self, transport: asyncio.Transport, detour: Detour) -> None:
        """A link whose knock was recognised."""
        if isinstance(detour.to, _Meant):
            self._call(transport, detour.to.peer_id, detour.first)
        elif isinstance(detour.to, _Ticket):
            self._join(transport, detour.to.ticket, detour.first)

    def _call(self, transport: asyncio.Transport, peer_id: PeerId, first: bytes) -> None:
        waiting = _Waiting(self, transport, first)
        try:
            link, call = self._ledger.call(peer_id, waiting, self._clock.monotonic())
        except (Busy, KeyError) as error:
            log.info("a client of %s is turned away: %s", peer_id.short, error)
            transport.abort()
            return
        assert isinstance(link, _Control)
        waiting.begin(call, self.limits.call_timeout)
        self._all.add(waiting)
        link.tickets.put_nowait(call.ticket)

    def _join(self, transport: asyncio.Transport, ticket: bytes, first: bytes) -> None:
        passing = _Passing(self)
        answered = self._ledger.answer(ticket, passing, self._clock.monotonic())
        if answered is None:
            transport.abort()
            return
        call, bucket = answered
        assert isinstance(call.waiter, _Waiting)
        waiting = call.waiter
        self._all.discard(waiting)
        self._all.add(passing)
        waiting.stop()
        passing.peer_id = call.peer_id
        transport.write(waiting.first)
        waiting.transport.write(first[KNOCK_BYTES:])
        passing.splice = Splice(
            waiting.transport,
            transport,
            bucket=bucket,
            idle_timeout=self.limits.idle_timeout,
            on_end=passing.ended,
        )

    def gone(self, waiting: _Waiting) -> None:
        """A client that waited hung up, or waited for too long."""
        self._all.discard(waiting)
        if waiting.call is not None:
            self._ledger.forget(waiting.call)

    def ended(self, passing: _Passing) -> None:
        """A stream ended."""
        self._all.discard(passing)
        if passing.peer_id is not None:
            self._ledger.end(passing.peer_id, passing)

    # ---- control links -----------------------------------------------------------------------

    async def hold(self, connection: Connection) -> None:
        """Grant a reservation to the node at the other end, which has just asked, and keep it as
        long as the connection lives. Raises Busy, BadRequest, ConnectionLost, TimeoutError."""
        peer_id = connection.peer_id
        if peer_id is None:
            raise BadRequest("only a node that proved its key can be relayed")
        control = _Control(connection)
        before = self._ledger.reserve(peer_id, control, self._clock.monotonic())
        if isinstance(before, _Control):
            before.connection.abort()
        log.info("relaying node %s", peer_id.short)
        try:
            rate = min(0xFFFFFFFF, max(1, round(self.limits.bytes_per_second)))
            await connection.send(Reserved(self.limits.streams, rate))
            async with TaskOwner("control link") as owner:
                owner.spawn(control.tell(), name="tickets")
                await control.listen()
        finally:
            for one in self._ledger.release(peer_id, control):
                if isinstance(one, _Waiting | _Passing):
                    one.abort()
            log.info("node %s is relayed no more", peer_id.short)


class _Control:
    """The connection over which a relayed node is told of its clients."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self.tickets: asyncio.Queue[bytes] = asyncio.Queue()  # the ledger bounds the calls

    async def tell(self) -> None:
        while True:
            await self.connection.send(Incoming(await self.tickets.get()))

    async def listen(self) -> None:
        while True:
            async with asyncio.timeout(CONTROL_TIMEOUT):
                message, _ = await self.connection.receive()
            if not isinstance(message, Ping):  # the protocol lets nothing else through
                raise BadRequest(f"{message.TYPE} is not expected here")
            await self.connection.send(Pong(message.nonce))


class _Waiting(asyncio.Protocol):
    """A client until the node that it called comes; nothing is read from it meanwhile."""

    def __init__(self, desk: RelayDesk, transport: asyncio.Transport, first: bytes) -> None:
        self.transport = transport
        self.first = first
        self.call: Call | None = None
        self._desk = desk
        self._timer: asyncio.TimerHandle | None = None
        transport.set_protocol(self)

    def begin(self, call: Call, timeout: float) -> None:
        self.call = call
        self._timer = asyncio.get_running_loop().call_later(timeout, self.abort)

    def stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def abort(self) -> None:
        self.stop()
        self._desk.gone(self)
        self.transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        self.stop()
        self._desk.gone(self)


class _Passing:
    """A stream that passes."""

    def __init__(self, desk: RelayDesk) -> None:
        self.splice: Splice | None = None
        self.peer_id: PeerId | None = None
        self._desk = desk

    def ended(self) -> None:
        self._desk.ended(self)

    def abort(self) -> None:
        if self.splice is not None:
            self.splice.abort()
        self.ended()
