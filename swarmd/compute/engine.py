"""One thread that owns a device: it runs the waiting steps of all sessions, turn by turn.

The event loop hands steps in and awaits results; the thread owns the blocks and all caches, so
neither needs a lock. A cancelled step leaves no trace but a cache that the next step cuts back.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import queue
import threading
import time
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch

from swarmd.blocks import Span
from swarmd.compute.block_span import BlockSpan
from swarmd.compute.kv_cache import KvBudget, SessionCache
from swarmd.compute.scheduler import Scheduler, Work
from swarmd.errors import DeadlineExceeded, InternalError, SwarmdError

__all__ = ["Engine", "EngineSession", "StepResult"]

T = TypeVar("T")
log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class StepResult:
    """Hidden states `(1, tokens, hidden size)` on the CPU, and where the time went (seconds)."""

    hidden: torch.Tensor
    queue_seconds: float
    compute_seconds: float


@dataclass(slots=True, eq=False)
class EngineSession:
    """A session's blocks and cache. Opaque to the event loop's side, but for `position`."""

    blocks: Span
    cache: SessionCache

    @property
    def position(self) -> int:
        return self.cache.position


@dataclass(slots=True, eq=False)
class _Job:
    work: Work
    session: EngineSession
    start: int
    hidden: torch.Tensor
    future: asyncio.Future[StepResult]
    submitted: float
    outputs: list[torch.Tensor] = field(default_factory=list)
    compute_seconds: float = 0.0


class Engine:
    """`async with Engine(blocks, kv_tokens=...) as engine:`; the thread ends with the block."""

    def __init__(
        self, blocks: BlockSpan, *, kv_tokens: int, scheduler: Scheduler | None = None
    ) -> None:
        self.blocks = blocks
        self.budget = KvBudget(kv_tokens)
        self._scheduler = scheduler or Scheduler()
        self._inbox: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._jobs: dict[int, _Job] = {}
        self._keys = itertools.count()
        self._pending = 0
        self._thread: threading.Thread | None = None

    async def __aenter__(self) -> Engine:
        self._loop = asyncio.get_running_loop()
        self._thread = threading.Thread(target=self._run, name="swarmd-engine", daemon=True)
        self._thread.start()
        return self

    async def __aexit__(self, *_exc: object) -> None:
        self._inbox.put(None)
        assert self._thread is not None
        while self._thread.is_alive():  # a turn in progress ends first; it cannot be interrupted
            await asyncio.sleep(0.005)

    @property
    def queue_length(self) -> int:
        """Steps that wait or run now."""
        return self._pending

    @property
    def kv_free(self) -> int:
        """Tokens for which every block has cache room left."""
        return self.budget.free

    def open(self, blocks: Span, limit: int, *, budget: KvBudget | None = None) -> EngineSession:
        """A new session over `blocks` of at most `limit` tokens, whose room is taken from `budget`
        (a part of the engine's own, which is the default). Raises BlocksNotHeld."""
        return EngineSession(blocks, self.blocks.new_cache(blocks, limit, budget or self.budget))

    def close(self, session: EngineSession) -> None:
        """Free a session's cache as soon as the running turn is over."""
        self._inbox.put(session.cache.close)

    async def step(
        self,
        session: EngineSession,
        start: int,
        hidden: torch.Tensor,
        *,
        deadline: float | None = None,
        client: Hashable | None = None,
    ) -> StepResult:
        """Cut the session back to `start`, append `hidden` (1, tokens, hidden size), return the
        output. `deadline` is a time of `time.monotonic`; `client` names who shares the engine
        fairly with others, by default this session alone.

        Raises PositionOutOfRange, Busy, DeadlineExceeded, InternalError.
        """
        future: asyncio.Future[StepResult] = self._loop.create_future()
        work = Work(next(self._keys), id(session), hidden.shape[1], deadline, client=client)
        job = _Job(work, session, start, hidden, future, time.monotonic())
        self._pending += 1
        self._inbox.put(lambda: self._add(job))
        try:
            return await future
        except asyncio.CancelledError:
            self._inbox.put(lambda: self._forget(work.key))
            raise
        finally:
            self._pending -= 1

    async def call(self, function: Callable[[], T]) -> T:
        """Run a function on the engine's thread (measurements use this)."""
        future: asyncio.Future[T] = self._loop.create_future()

        def run() -> None:
            try:
                result = function()
            except Exception as error:  # handed to the awaiting side, whatever it is
                self._reply(future.set_exception, future, error)
            else:
                self._reply(future.set_result, future, result)

        self._inbox.put(run)
        return await future

    # ---- from here on: the engine's thread ------------------------------------------------

    def _run(self) -> None:
        while True:
            try:
                if not self._take_messages():
                    return
                self._turn()
            except Exception:  # a bug of ours: the steps under way fail, the engine goes on
                log.exception("the engine failed in a turn")
                for key in list(self._jobs):
                    self._scheduler.remove(key)
                    self._finish(key, InternalError("the engine failed"))

    def _take_messages(self) -> bool:
        """Carry out what the loop asked for; waits only if no step is queued. False: end."""
        with contextlib.suppress(queue.Empty):
            while True:
                message = self._inbox.get(block=len(self._scheduler) == 0)
                if message is None:
                    return False
                message()
        return True

    def _turn(self) -> None:
        turn = self._scheduler.next_turn(time.monotonic())
        for work in turn.expired:
            self._finish(work.key, DeadlineExceeded("the step's deadline passed in the queue"))
        for work, tokens in turn.pieces:
            job = self._jobs[work.key]
            began = time.monotonic()
            try:
                if work.done == 0:
                    job.session.cache.prepare(job.start, work.tokens)
                piece = job.hidden[:, work.done : work.done + tokens]
                output = self.blocks.run(job.session.blocks, piece, job.session.cache)
                job.outputs.append(output.to("cpu"))
            except SwarmdError as error:
                self._scheduler.remove(work.key)
                self._finish(work.key, error)
                continue
            except Exception as error:  # one session's trouble never stops the engine
                log.exception("a step of %d tokens at %d failed", work.tokens, job.start)
                self._scheduler.remove(work.key)
                self._finish(work.key, InternalError(f"{type(error).__name__} in a block"))
                continue
            spent = time.monotonic() - began
            job.compute_seconds += spent
            if self._scheduler.advance(work, tokens, spent):
                self._finish(work.key, None)

    def _add(self, job: _Job) -> None:
        self._jobs[job.work.key] = job
        self._scheduler.add(job.work)

    def _forget(self, key: int) -> None:
        self._scheduler.remove(key)
        self._jobs.pop(key, None)

    def _finish(self, key: int, error: SwarmdError | None) -> None:
        job = self._jobs.pop(key)
        if error is not None:
            self._reply(job.future.set_exception, job.future, error)
            return
        total = time.monotonic() - job.submitted
        hidden = job.outputs[0] if len(job.outputs) == 1 else torch.cat(job.outputs, dim=1)
        result = StepResult(hidden, max(0.0, total - job.compute_seconds), job.compute_seconds)
        self._reply(job.future.set_result, job.future, result)

    def _reply(
        self, setter: Callable[[Any], None], future: asyncio.Future[Any], value: object
    ) -> None:
        def deliver() -> None:
            if not future.done():
                setter(value)

        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
            self._loop.call_soon_threadsafe(deliver)
