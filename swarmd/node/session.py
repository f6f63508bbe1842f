"""One open session of a node: a reader that queues its steps, and a worker that answers them."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from swarmd.compute.engine import Engine, EngineSession
from swarmd.errors import BadRequest, Busy, InternalError, PositionOutOfRange, RemoteError
from swarmd.node.limits import SessionLimits
from swarmd.node.outlet import Outlet
from swarmd.node.quotas import Guest
from swarmd.node.served import ServedModel, Statistics
from swarmd.node.session_story import SessionStory
from swarmd.node.step_queue import StepQueue
from swarmd.node.step_tensors import hidden_of, payload_of
from swarmd.tasks import TaskOwner
from swarmd.wire.connection import Connection
from swarmd.wire.messages import Close, Open, Output, Ping, Pong, Step
from swarmd.wire.tensors import TensorMeta

__all__ = ["Session"]

log = logging.getLogger(__name__)

REFUSED_PAUSE = 0.25
"""Seconds for which a session is not read after a step of it was refused for want of room: a flood
of steps costs the node four refusals a second, and TCP slows the sender."""


class Session:
    """A session on its connection; `steps` feed its worker, `guest` holds what they take."""

    def __init__(
        self,
        connection: Connection,
        opening: Open,
        guest: Guest,
        engine: Engine,
        engine_session: EngineSession,
        *,
        model: ServedModel,
        limits: SessionLimits,
        statistics: Statistics,
        outlet: Outlet,
        unread: Callable[[], int],
        queue_bytes: int,
    ) -> None:
        """`unread` says how many bytes have arrived on all connections and were not read yet;
        beyond `queue_bytes` of payloads that wait nothing more is read."""
        self.guest = guest
        self.engine_session = engine_session
        self.steps = StepQueue(max_bytes=queue_bytes)
        self._connection = connection
        self._opening = opening
        self._engine = engine
        self._model = model
        self._limits = limits
        self._statistics = statistics
        self._outlet = outlet
        client = connection.peer_id
        self.story = SessionStory(
            opening.session.hex()[:8],
            client.short if client is not None else str(connection.address),
            str(engine_session.blocks),
        )
        self._unread = unread

    async def run(self) -> None:
        """Answer steps until the client closes the session, and log its story. Raises
        ConnectionLost, BadRequest, and TimeoutError for a client that went silent."""
        end: BaseException | None = None
        try:
            async with TaskOwner(f"session {self._opening.session.hex()[:8]}") as owner:
                owner.spawn(self._work(), name="steps")
                await self._read()
        except BaseException as error:
            end = error
            raise
        finally:
            log.info("%s", self.story.told(end))

    async def _read(self) -> None:
        """Read until the session is closed; steps go to the worker, in order.

        While there is no room for another step nothing is read, and TCP slows the client. The
        worker makes room within the time of a step and of its answer, or ends the session.
        """
        loop = asyncio.get_running_loop()
        while True:
            await self.steps.wait_for_room()  # our delay: it does not count as the client's silence
            try:
                async with asyncio.timeout(self._limits.idle_timeout):
                    message, payload = await self._connection.receive()
            except TimeoutError:
                if self._connection.protocol.steps_under_way:
                    continue  # the client waits for us
                raise
            if isinstance(message, Step):
                delay = self.guest.received(len(payload), loop.time())
                refusal = self._refusal(payload)
                self.steps.put(message, payload, loop.time(), refusal)
                if refusal is not None:
                    delay = max(delay, REFUSED_PAUSE)
                if delay:
                    await asyncio.sleep(min(delay, self._limits.idle_timeout))
            elif isinstance(message, Ping):
                await self._outlet.send(self._connection, Pong(message.nonce))
            elif isinstance(message, Close):
                return
            else:
                raise BadRequest(f"{message.TYPE} is not expected here")

    def _refusal(self, payload: bytearray) -> Busy | None:
        """Counts a step that came, and says why it has no place, which its session's worker tells
        when it is its turn."""
        self._statistics.bytes_in += len(payload)
        try:
            self.guest.take_step(len(payload), self._unread())
        except Busy as error:
            return error
        return None

    async def _work(self) -> None:
        """Run steps one after the other and answer each. Raises ConnectionLost, which ends the
        session also where its reader waits for room."""
        while True:
            step, payload, arrived, refusal = await self.steps.get()
            if refusal is not None:
                self.story.refused()
                await self._outlet.refuse(self._connection, refusal, step=step.step)
                continue
            try:
                await self._answer(step, payload, arrived)
            finally:
                self.guest.step_done()

    async def _answer(self, step: Step, payload: bytearray, arrived: float) -> None:
        try:
            result = await self._run(step, payload, arrived)
        except RemoteError as error:
            self.story.refused()
            await self._outlet.refuse(self._connection, error, step=step.step)
            return
        except Exception as error:  # a bug of ours: this session's trouble alone
            log.exception("a step failed")
            internal = InternalError(type(error).__name__)
            await self._outlet.refuse(self._connection, internal, step=step.step)
            return
        meta, out, queue_us, compute_us = result
        output = Output(
            self._opening.session, step.step, queue_us, compute_us, self._engine.kv_free, meta
        )
        await self._outlet.send(self._connection, output, out)
        if delay := self.guest.sent(len(out), asyncio.get_running_loop().time()):
            await asyncio.sleep(delay)

    async def _run(
        self, step: Step, payload: bytearray, arrived: float
    ) -> tuple[TensorMeta, memoryview, int, int]:
        hidden = hidden_of(step, payload, self._model, max_tokens=self._limits.step_tokens)
        if step.start + hidden.shape[1] > self._opening.max_length:
            raise PositionOutOfRange(
                f"step ends at {step.start + hidden.shape[1]}; the session was opened for "
                f"{self._opening.max_length}"
            )
        deadline = arrived + step.deadline_ms / 1000 if step.deadline_ms else None
        result = await self._engine.step(
            self.engine_session,
            step.start,
            hidden,
            deadline=deadline,
            client=self.guest.client,
        )
        self._statistics.ran(hidden.shape[1], result.queue_seconds, result.compute_seconds)
        self.story.ran(step.start, hidden.shape[1], result.queue_seconds, result.compute_seconds)
        return (
            *payload_of(result.hidden, self._model, step.tensor.codec),
            min(round(1e6 * result.queue_seconds), 0xFFFFFFFF),
            min(round(1e6 * result.compute_seconds), 0xFFFFFFFF),
        )
