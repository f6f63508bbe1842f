"""What a node does with one accepted connection: greet, then serve one session at a time.

Nothing here is shared between connections but the engine, so a peer that sends garbage, stops
reading or vanishes touches its own session only. Every wait has a limit, and what each client may
take of the node is decided by `Quotas`.
"""

from __future__ import annotations

import asyncio
import logging
import weakref

from swarmd.blocks import Span
from swarmd.compute.engine import Engine
from swarmd.compute.kv_cache import KvBudget
from swarmd.compute.pages import whole_pages
from swarmd.errors import (
    BadRequest,
    BlocksNotHeld,
    Busy,
    ConnectionLost,
    Draining,
    ModelMismatch,
    NotRelaying,
    PositionOutOfRange,
    RemoteError,
    SessionTooLong,
    UnknownSession,
)
from swarmd.node.edge import Successors
from swarmd.node.limits import SessionLimits
from swarmd.node.outlet import Outlet
from swarmd.node.quotas import Guest, Quotas
from swarmd.node.reachability import DialBack
from swarmd.node.served import ServedModel, Statistics
from swarmd.node.session import Session
from swarmd.relay.desk import RelayDesk
from swarmd.wire.connection import Connection
from swarmd.wire.frames import Limits
from swarmd.wire.greeting import AGENT, Door, challenge, check_hello
from swarmd.wire.messages import (
    PROTOCOL_VERSION,
    Closed,
    Dialback,
    Fed,
    Feed,
    Open,
    Opened,
    Ping,
    Pong,
    Reserve,
    Welcome,
)
from swarmd.wire.tensors import ITEM_BYTES
from swarmd.wire.transport import Greeting

__all__ = ["SessionServer"]

log = logging.getLogger(__name__)


class SessionServer:
    """Serves connections from `engine`. The daemon hands each new connection to `serve`."""

    def __init__(
        self,
        door: Door,
        model: ServedModel,
        engine: Engine,
        limits: SessionLimits | None = None,
        *,
        desk: RelayDesk | None = None,
        dial_back: DialBack | None = None,
        successors: Successors | None = None,
    ) -> None:
        """`desk` relays for others; `dial_back` dials for those who ask whether they can be
        reached; `successors` links sessions to their next hops, else this node only answers."""
        self.door = door
        self._dial_back = dial_back or DialBack(Greeting(None, door.identity, door.keys))
        self.model = model
        self.engine = engine
        self.limits = limits or SessionLimits()
        self.desk = desk
        self.statistics = Statistics()
        self.draining = False
        self._outlet = Outlet(self.limits.send_timeout, self.statistics)
        self.quotas = Quotas(self.limits)
        self._guests: dict[Guest, Connection] = {}
        self._kv_shares: weakref.WeakValueDictionary[object, KvBudget] = (
            weakref.WeakValueDictionary()
        )
        self._live: set[Session] = set()
        self._feeds: dict[bytes, Session] = {}
        self.successors = successors

    def frame_limits(self) -> Limits:
        """What a connection may send at a time: the longest step, which zstd may make longer by
        a hair if it is noise."""
        item = ITEM_BYTES[self.model.dtype]
        step = self.limits.step_tokens * self.model.hidden_size * item
        return Limits(payload=step + step // 128 + (64 << 10))

    @property
    def open_sessions(self) -> int:
        return len(self._live)

    @property
    def queued_bytes(self) -> int:
        """Payload bytes of all steps that wait for their session's worker."""
        return sum(live.steps.waiting_bytes for live in self._live)

    async def serve(self, connection: Connection) -> None:
        """Serve one connection until it ends. Never raises but for a cancel or a bug."""
        self.statistics.connections += 1
        guest: Guest | None = None
        try:
            guest = self._admit(connection)
            await self._greet(connection)
            guest.greeted(connection.peer_id)
            await self._welcome(connection)
            await self._serve_sessions(connection, guest)
        except Busy as error:
            log.debug("%s: %s", connection.address, error)
            await self._outlet.refuse(connection, error)
        except ConnectionLost as error:
            log.debug("%s", error)
        except RemoteError as error:
            log.warning("%s: refused: %s", connection.address, error)
            await self._outlet.refuse(connection, error)
        except TimeoutError:
            log.info("%s: silent for too long; closed", connection.address)
        finally:
            if guest is not None:
                guest.leave()
                self._guests.pop(guest, None)
            connection.abort() if connection.is_usable else await connection.close()

    def _admit(self, connection: Connection) -> Guest:
        """Let a connection in; of a full node the oldest one without `hello` then goes. Raises
        Busy."""
        now = asyncio.get_running_loop().time()
        guest, evicted = self.quotas.admit(connection.address.host, now)
        self._guests[guest] = connection
        if evicted is not None and (stranger := self._guests.pop(evicted, None)) is not None:
            log.debug("%s: without hello when the node was full; closed", stranger.address)
            stranger.abort()
        return guest

    async def _greet(self, connection: Connection) -> None:
        asked = challenge(connection, self.door)
        await self._outlet.send(connection, asked)
        async with asyncio.timeout(self.limits.hello_timeout):
            answer, _ = await connection.receive()
        hello = check_hello(connection, self.door, asked, answer)
        if hello.model_id and hello.model_id != self.model.model_id:
            raise ModelMismatch(f"this node serves {self.model.name} ({self.model.model_id})")

    async def _welcome(self, connection: Connection) -> None:
        span = self.engine.blocks.span
        await self._outlet.send(
            connection,
            Welcome(
                PROTOCOL_VERSION,
                AGENT,
                self.door.identity.peer_id,
                self.model.model_id,
                span.start,
                span.end,
                self.model.dtype,
                self.model.quantization,
                connection.protocol.limits.payload,
            ),
        )

    async def _serve_sessions(self, connection: Connection, guest: Guest) -> None:
        while True:
            async with asyncio.timeout(self.limits.idle_timeout):
                message, _ = await connection.receive()
            if isinstance(message, Ping):
                await self._outlet.send(connection, Pong(message.nonce))
            elif isinstance(message, Open):
                try:
                    session = self._open(message, connection, guest)
                except RemoteError as error:
                    await self._outlet.refuse(connection, error)
                    continue
                await self._serve_session(connection, message, session)
            elif isinstance(message, Feed):
                await self._serve_feed(connection, message)
            elif isinstance(message, Reserve):
                await self._relay(connection)
            elif isinstance(message, Dialback):
                try:
                    source = connection.address.host  # never an address that the asker names
                    answer = await self._dial_back.answer(source, message.port, connection.peer_id)
                except RemoteError as error:
                    await self._outlet.refuse(connection, error)
                    continue
                await self._outlet.send(connection, answer)
            else:  # a step or close in IDLE is refused by the protocol already
                raise BadRequest(f"{message.TYPE} is not expected here")

    async def _relay(self, connection: Connection) -> None:
        """Hold the reservation of a node as long as its connection lives, or refuse it."""
        try:
            if self.desk is None or self.draining:
                raise NotRelaying("this node passes no links on")
            await self.desk.hold(connection)
        except (Busy, NotRelaying) as error:
            await self._outlet.refuse(connection, error)

    def _open(self, message: Open, connection: Connection, guest: Guest) -> Session:
        if self.draining:
            raise Draining("this node is about to leave")
        if message.feed in self._feeds:
            raise BadRequest("this feed belongs to another session")
        if message.max_length > self.model.max_positions:
            raise PositionOutOfRange(
                f"the model has {self.model.max_positions} positions, not {message.max_length}"
            )
        budget = self._kv_share(guest)
        room = self.engine.kv_tokens if budget is None else budget.tokens
        if message.max_length > room:
            raise SessionTooLong(
                f"a session of {message.max_length} tokens; the attention cache of this node has "
                f"room for {room} in all sessions of a client"
            )
        try:
            span = Span(message.start, message.end)
        except ValueError as error:
            raise BlocksNotHeld(str(error)) from error
        engine_session = self.engine.open(span, message.max_length, budget=budget)
        guest.open_session()
        return Session(
            connection,
            message,
            guest,
            self.engine,
            engine_session,
            model=self.model,
            limits=self.limits,
            statistics=self.statistics,
            outlet=self._outlet,
            unread=self._unread_bytes,
            queue_bytes=self.frame_limits().payload,
            successors=self.successors,
        )

    def _kv_share(self, guest: Guest) -> KvBudget | None:
        """The cache room of a guest: a share under each of its keys, one within the other. None
        for the owner's own programs, which may fill all of it."""
        budget: KvBudget | None = None
        for key in guest.keys:
            share = self._kv_shares.get(key)
            if share is None:  # lives as long as a session holds it
                tokens = whole_pages(int(self.engine.kv_tokens * self.limits.kv_share))
                share = self._kv_shares[key] = KvBudget(tokens, whole=budget)
            budget = share
        return budget

    def _unread_bytes(self) -> int:
        return sum(connection.waiting_bytes for connection in self._guests.values())

    async def _serve_session(self, connection: Connection, opening: Open, session: Session) -> None:
        self.statistics.sessions += 1
        self._live.add(session)
        if opening.feed:
            self._feeds[opening.feed] = session
        try:
            await self._outlet.send(connection, Opened(opening.session, self.engine.kv_free))
            await session.run()
        finally:
            self._live.discard(session)
            self._feeds.pop(opening.feed, None)
            session.guest.close_session()
            self.engine.close(session.engine_session)
        await self._outlet.send(connection, Closed(opening.session))

    async def _serve_feed(self, connection: Connection, feed: Feed) -> None:
        """Take a session's steps from the hop before this one, or refuse that."""
        session = self._feeds.get(feed.feed)
        if session is None or session.name != feed.session:
            error = UnknownSession("no session that this feed opens")
            await self._outlet.refuse(connection, error)
            return
        await self._outlet.send(connection, Fed(feed.session))
        await session.read_feed(connection)
