"""What a node does with one accepted connection: greet, then serve one session at a time.

Nothing here is shared between connections but the engine, so a peer that sends garbage, stops
reading or vanishes touches its own session only. Every wait has a limit, and what each client may
take of the node is decided by `Quotas`.
"""

from __future__ import annotations

import asyncio
import logging
import weakref
from dataclasses import dataclass

from swarmd.blocks import Span
from swarmd.compute.engine import Engine, EngineSession
from swarmd.compute.kv_cache import KvBudget
from swarmd.errors import (
    BadRequest,
    BlocksNotHeld,
    Busy,
    ConnectionLost,
    Draining,
    InternalError,
    ModelMismatch,
    NotRelaying,
    PositionOutOfRange,
    RemoteError,
    SessionTooLong,
)
from swarmd.node.limits import SessionLimits
from swarmd.node.quotas import Guest, Quotas
from swarmd.node.reachability import DialBack
from swarmd.node.served import ServedModel, Statistics
from swarmd.node.step_queue import StepQueue
from swarmd.node.step_tensors import hidden_of, payload_of
from swarmd.relay.desk import RelayDesk
from swarmd.tasks import TaskOwner
from swarmd.wire.connection import Connection
from swarmd.wire.frames import Limits
from swarmd.wire.greeting import AGENT, Door, challenge, check_hello
from swarmd.wire.messages import (
    PROTOCOL_VERSION,
    Close,
    Closed,
    Dialback,
    Message,
    Open,
    Opened,
    Output,
    Ping,
    Pong,
    Reserve,
    Step,
    Welcome,
)
from swarmd.wire.tensors import ITEM_BYTES, TensorMeta
from swarmd.wire.transport import Greeting

__all__ = ["SessionServer"]

log = logging.getLogger(__name__)


REFUSED_PAUSE = 0.25
"""Seconds for which a session is not read after a step of it was refused for want of room: a flood
of steps costs the node four refusals a second, and TCP slows the sender."""


@dataclass(slots=True, eq=False)
class _Live:
    """A session on its connection; `steps` feed its worker, `guest` holds what they take."""

    guest: Guest
    engine_session: EngineSession
    max_length: int
    steps: StepQueue


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
    ) -> None:
        """`desk` relays for others; `dial_back` dials for those who ask whether they can be
        reached."""
        self.door = door
        self._dial_back = dial_back or DialBack(Greeting(None, door.identity, door.keys))
        self.model = model
        self.engine = engine
        self.limits = limits or SessionLimits()
        self.desk = desk
        self.statistics = Statistics()
        self.draining = False
        self.quotas = Quotas(self.limits)
        self._guests: dict[Guest, Connection] = {}
        self._kv_shares: weakref.WeakValueDictionary[object, KvBudget] = (
            weakref.WeakValueDictionary()
        )
        self._live: set[_Live] = set()

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
            await self._refuse(connection, error)
        except ConnectionLost as error:
            log.debug("%s", error)
        except RemoteError as error:
            log.warning("%s: refused: %s", connection.address, error)
            await self._refuse(connection, error)
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
        await self._send(connection, asked)
        async with asyncio.timeout(self.limits.hello_timeout):
            answer, _ = await connection.receive()
        hello = check_hello(connection, self.door, asked, answer)
        if hello.model_id and hello.model_id != self.model.model_id:
            raise ModelMismatch(f"this node serves {self.model.name} ({self.model.model_id})")

    async def _welcome(self, connection: Connection) -> None:
        span = self.engine.blocks.span
        await self._send(
            connection,
            Welcome(
                PROTOCOL_VERSION,
                AGENT,
                self.door.identity.peer_id,
                self.model.model_id,
                span.start,
                span.end,
                self.model.dtype,
                connection.protocol.limits.payload,
            ),
        )

    async def _serve_sessions(self, connection: Connection, guest: Guest) -> None:
        while True:
            async with asyncio.timeout(self.limits.idle_timeout):
                message, _ = await connection.receive()
            if isinstance(message, Ping):
                await self._send(connection, Pong(message.nonce))
            elif isinstance(message, Open):
                try:
                    live = self._open(message, guest)
                except RemoteError as error:
                    await self._refuse(connection, error)
                    continue
                await self._serve_session(connection, message, live)
            elif isinstance(message, Reserve):
                await self._relay(connection)
            elif isinstance(message, Dialback):
                try:
                    source = connection.address.host  # never an address that the asker names
                    answer = await self._dial_back.answer(source, message.port, connection.peer_id)
                except RemoteError as error:
                    await self._refuse(connection, error)
                    continue
                await self._send(connection, answer)
            else:  # a step or close in IDLE is refused by the protocol already
                raise BadRequest(f"{message.TYPE} is not expected here")

    async def _relay(self, connection: Connection) -> None:
        """Hold the reservation of a node as long as its connection lives, or refuse it."""
        try:
            if self.desk is None or self.draining:
                raise NotRelaying("this node passes no links on")
            await self.desk.hold(connection)
        except (Busy, NotRelaying) as error:
            await self._refuse(connection, error)

    def _open(self, message: Open, guest: Guest) -> _Live:
        if self.draining:
            raise Draining("this node is about to leave")
        if message.next is not None:
            raise BadRequest("this node does not forward to a successor; open without `next`")
        if message.max_length > self.model.max_positions:
            raise PositionOutOfRange(
                f"the model has {self.model.max_positions} positions, not {message.max_length}"
            )
        budget = self._kv_share(guest)
        room = min(budget.tokens, self.engine.budget.tokens)
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
        steps = StepQueue(max_bytes=self.frame_limits().payload)
        return _Live(guest, engine_session, message.max_length, steps)

    def _kv_share(self, guest: Guest) -> KvBudget:
        """The cache room of a guest: a share under each of its keys, one within the other."""
        budget = self.engine.budget
        for key in guest.keys:
            share = self._kv_shares.get(key)
            if share is None:  # lives as long as a session holds it
                tokens = int(self.engine.budget.tokens * self.limits.kv_share)
                share = self._kv_shares[key] = KvBudget(tokens, whole=budget)
            budget = share
        return budget

    async def _serve_session(self, connection: Connection, opening: Open, live: _Live) -> None:
        self.statistics.sessions += 1
        self._live.add(live)
        try:
            await self._send(connection, Opened(opening.session, self.engine.kv_free))
            async with TaskOwner(f"session {opening.session.hex()[:8]}") as owner:
                owner.spawn(self._work(connection, opening.session, live), name="steps")
                await self._read(connection, live)
        finally:
            self._live.discard(live)
            live.guest.close_session()
            self.engine.close(live.engine_session)
        await self._send(connection, Closed(opening.session))

    async def _read(self, connection: Connection, live: _Live) -> None:
        """Read until the session is closed; steps go to the worker, in order.

        While there is no room for another step nothing is read, and TCP slows the client. The
        worker makes room within the time of a step and of its answer, or ends the session.
        """
        loop = asyncio.get_running_loop()
        while True:
            await live.steps.wait_for_room()  # our delay: it does not count as the client's silence
            try:
                async with asyncio.timeout(self.limits.idle_timeout):
                    message, payload = await connection.receive()
            except TimeoutError:
                if connection.protocol.steps_under_way:
                    continue  # the client waits for us
                raise
            if isinstance(message, Step):
                delay = live.guest.received(len(payload), loop.time())
                refusal = self._refusal(live, payload)
                live.steps.put(message, payload, loop.time(), refusal)
                if refusal is not None:
                    delay = max(delay, REFUSED_PAUSE)
                if delay:
                    await asyncio.sleep(min(delay, self.limits.idle_timeout))
            elif isinstance(message, Ping):
                await self._send(connection, Pong(message.nonce))
            elif isinstance(message, Close):
                return
            else:
                raise BadRequest(f"{message.TYPE} is not expected here")

    def _refusal(self, live: _Live, payload: bytearray) -> Busy | None:
        """Why a step has no place, which its session's worker says when it is its turn."""
        unread = sum(connection.waiting_bytes for connection in self._guests.values())
        try:
            live.guest.take_step(len(payload), unread)
        except Busy as error:
            return error
        return None

    async def _work(self, connection: Connection, session: bytes, live: _Live) -> None:
        """Run steps one after the other and answer each. Raises ConnectionLost, which ends the
        session also where its reader waits for room."""
        while True:
            step, payload, arrived, refusal = await live.steps.get()
            if refusal is not None:
                await self._refuse(connection, refusal, step=step.step)
                continue
            try:
                await self._answer(connection, session, live, step, payload, arrived)
            finally:
                live.guest.step_done()

    async def _answer(
        self,
        connection: Connection,
        session: bytes,
        live: _Live,
        step: Step,
        payload: bytearray,
        arrived: float,
    ) -> None:
        try:
            result = await self._run(live, step, payload, arrived)
        except RemoteError as error:
            await self._refuse(connection, error, step=step.step)
            return
        except Exception as error:  # a bug of ours: this session's trouble alone
            log.exception("a step failed")
            internal = InternalError(type(error).__name__)
            await self._refuse(connection, internal, step=step.step)
            return
        meta, out, queue_us, compute_us = result
        output = Output(session, step.step, queue_us, compute_us, self.engine.kv_free, meta)
        await self._send(connection, output, out)
        if delay := live.guest.sent(len(out), asyncio.get_running_loop().time()):
            await asyncio.sleep(delay)

    async def _send(
        self, connection: Connection, message: Message, payload: memoryview | bytes = b""
    ) -> None:
        """Raises ConnectionLost, also when the peer does not read for `send_timeout` seconds."""
        try:
            async with asyncio.timeout(self.limits.send_timeout):
                await connection.send(message, payload)
        except TimeoutError as error:
            connection.abort()
            log.warning("%s: does not read its answers; dropped", connection.address)
            raise ConnectionLost(f"{connection.address}: does not read its answers") from error

    async def _refuse(
        self, connection: Connection, error: RemoteError, *, step: int | None = None
    ) -> None:
        """Refuse a step, an open, or the connection; drop who does not read that."""
        self.statistics.refusals += 1
        try:
            async with asyncio.timeout(self.limits.send_timeout):
                await connection.refuse(error, step=step)
        except TimeoutError:
            connection.abort()
            log.warning("%s: does not read its refusals; dropped", connection.address)

    async def _run(
        self, live: _Live, step: Step, payload: bytearray, arrived: float
    ) -> tuple[TensorMeta, memoryview, int, int]:
        hidden = hidden_of(step, payload, self.model, max_tokens=self.limits.step_tokens)
        if step.start + hidden.shape[1] > live.max_length:
            raise PositionOutOfRange(
                f"step ends at {step.start + hidden.shape[1]}; the session was opened for "
                f"{live.max_length}"
            )
        deadline = arrived + step.deadline_ms / 1000 if step.deadline_ms else None
        result = await self.engine.step(
            live.engine_session,
            step.start,
            hidden,
            deadline=deadline,
            client=live.guest.client,
        )
        self.statistics.steps += 1
        self.statistics.tokens += hidden.shape[1]
        return (
            *payload_of(result.hidden, self.model, step.tensor.codec),
            min(round(1e6 * result.queue_seconds), 0xFFFFFFFF),
            min(round(1e6 * result.compute_seconds), 0xFFFFFFFF),
        )
