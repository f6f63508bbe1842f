"""One thread that owns a device: it runs the waiting steps of all sessions together, turn by turn.

The event loop hands steps in and awaits results; the thread owns the blocks and the cache, so
neither needs a lock. A cancelled step leaves no trace but positions that the next step cuts back.
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
from swarmd.compute.gathering import Gathering
from swarmd.compute.kv_arena import KvArena
from swarmd.compute.kv_cache import KvBudget, SessionCache
from swarmd.compute.pages import PAGE_TOKENS
from swarmd.compute.prefix_sharing import PrefixSharing
from swarmd.compute.ragged_batch import Piece
from swarmd.compute.scheduler import Refused, Scheduler, Work
from swarmd.compute.turn_cost import TurnCost
from swarmd.errors import Busy, DeadlineExceeded, InternalError, SwarmdError

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
    begun: bool = False
    names: list[bytes] = field(default_factory=list)
    outputs: list[torch.Tensor] = field(default_factory=list)
    compute_seconds: float = 0.0

    @property
    def output(self) -> torch.Tensor:
        return self.outputs[0] if len(self.outputs) == 1 else torch.cat(self.outputs, dim=1)


class Engine:
    """`async with Engine(blocks, kv_tokens=...) as engine:`; the thread ends with the block.

    All memory for the attention caches, of `kv_tokens` positions in each block, is taken here. With
    `share_prefixes`, sessions whose inputs begin alike hold the same pages.
    """

    def __init__(
        self,
        blocks: BlockSpan,
        *,
        kv_tokens: int,
        scheduler: Scheduler | None = None,
        share_prefixes: bool = True,
        arena: KvArena | None = None,
    ) -> None:
        self.blocks = blocks
        self.arena = arena or blocks.new_arena(kv_tokens)
        self.prefixes = PrefixSharing(self.arena) if share_prefixes else None
        self._scheduler = scheduler or Scheduler()
        self._inbox: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._jobs: dict[int, _Job] = {}
        self._gathering = Gathering()
        self._keys = itertools.count()
        self._pending = 0
        self._stalled_until: float | None = None
        self._replies: list[tuple[Callable[[Any], None], asyncio.Future[Any], object]] = []
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
    def kv_tokens(self) -> int:
        """Tokens for which every block has cache room."""
        return self.arena.tokens

    @property
    def kv_free(self) -> int:
        """Tokens for which every block has cache room left."""
        return self.arena.free

    def reckon_with(self, cost: TurnCost) -> None:
        """Let the scheduler know what turns cost, as was measured."""
        self._scheduler.cost = cost

    def open(self, blocks: Span, limit: int, *, budget: KvBudget | None = None) -> EngineSession:
        """A new session over `blocks` of at most `limit` tokens; what it holds counts in `budget`,
        its client's share. Raises BlocksNotHeld."""
        self.blocks.check(blocks)
        return EngineSession(blocks, self.arena.new_cache(blocks, limit, budget))

    def close(self, session: EngineSession) -> None:
        """Free a session's cache as soon as the running turn is over."""

        def close() -> None:
            session.cache.close()
            self._gathering.forget(id(session))

        self._inbox.put(close)

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

        Without room in the cache it waits until the deadline; without a deadline it does not.

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
                if not self._take_messages() or not self._gather():
                    return
                self._turn()
                self._deliver()
            except Exception:  # a bug of ours: the steps under way fail, the engine goes on
                log.exception("the engine failed in a turn")
                for key in list(self._jobs):
                    self._scheduler.remove(key)
                    self._finish(key, InternalError("the engine failed"))
                self._deliver()

    def _take_messages(self) -> bool:
        """Carry out what the loop asked for; waits only if no step can run. False: end."""
        idle = len(self._scheduler) == 0
        wait = None if idle or self._stalled_until is None else self._stalled_until
        with contextlib.suppress(queue.Empty):
            block = idle or wait is not None
            while True:
                timeout = None if wait is None else max(0.0, wait - time.monotonic())
                message = self._inbox.get(block=block, timeout=timeout if block else None)
                if message is None:
                    return False
                message()
                self._deliver()
                block = len(self._scheduler) == 0
                wait = None
        return True

    def _gather(self) -> bool:
        """Wait a moment for those whose next step is due (see `gathering`). False: end."""
        since = time.monotonic()
        while self.blocks.batched and len(self._scheduler):
            now = time.monotonic()
            until = self._gathering.until(now, since)
            if until is None:
                break
            try:
                message = self._inbox.get(timeout=until - now)
            except queue.Empty:
                break
            if message is None:
                return False
            message()
            self._deliver()
        return True

    def _turn(self) -> None:
        turn = self._scheduler.next_turn(
            time.monotonic(), free_pages=self.arena.pool.available, needs=self._missing_pages
        )
        for refused in turn.expired:
            self._finish(refused.work.key, self._too_late(refused))
        self._stalled_until = None if turn.pieces else self._scheduler.next_deadline()
        if not turn.pieces:
            self._refuse_who_cannot_wait()
            return
        running = []
        for work, tokens in turn.pieces:
            job = self._jobs[work.key]
            try:
                if self._begin(job):
                    running.append((job, min(tokens, work.remaining)))
            except SwarmdError as error:
                self._fail(job, error)
        if running:
            self._run_together(running)

    def _begin(self, job: _Job) -> bool:
        """Prepare the session for the job's first piece. False if nothing is left to compute."""
        if job.begun:
            return True
        cache, start, tokens = job.session.cache, job.start, job.hidden.shape[1]
        cache.check(start, tokens)
        if self.prefixes is not None:
            job.names = self.prefixes.names_of(cache, start, job.hidden)
            known = self.prefixes.adopt(cache, start, job.names)
            if known is not None:
                start += known.shape[1]
                job.outputs.append(known)
        done = start - job.start
        if done < tokens:
            copies = cache.prepare(start, tokens - done)
            self.arena.copy_pages(copies, cache.blocks)
        job.begun = True
        if done:
            self._advance(job, done, 0.0)
        return done < tokens

    def _run_together(self, running: list[tuple[_Job, int]]) -> None:
        pieces = [
            Piece(
                job.session.cache,
                job.session.cache.position,
                job.hidden[:, job.work.done : job.work.done + tokens],
            )
            for job, tokens in running
        ]
        began = time.monotonic()
        try:
            outputs = _on_cpu(self.blocks.run(self.arena, pieces))
        except Exception as error:  # one session's trouble never stops the others
            if len(running) > 1:
                for one in running:
                    self._run_together([one])
                return
            job = running[0][0]
            log.exception("a step of %d tokens at %d failed", job.work.tokens, job.start)
            self._fail(job, InternalError(f"{type(error).__name__} in a block"))
            return
        ended = time.monotonic()
        spent, total = ended - began, sum(tokens for _, tokens in running)
        if all(tokens <= self._scheduler.decode_tokens for _, tokens in running):
            self._gathering.ran(ended, spent, total)
        else:
            self._gathering.ran_other()
        for (job, tokens), output in zip(running, outputs, strict=True):
            job.outputs.append(output)
            job.compute_seconds += spent
            self._advance(job, tokens, spent * tokens / total)

    def _advance(self, job: _Job, tokens: int, cost: float) -> None:
        if self._scheduler.advance(job.work, tokens, cost):
            if self.prefixes is not None:
                self.prefixes.keep(job.session.cache, job.start, job.names, job.output)
            self._finish(job.work.key, None)

    def _missing_pages(self, work: Work) -> int:
        job = self._jobs[work.key]
        return job.session.cache.missing_pages(job.start, job.hidden.shape[1])

    def _too_late(self, refused: Refused) -> SwarmdError:
        if refused.for_pages:
            return self._full(refused.work)
        return DeadlineExceeded("the step's deadline passed in the queue")

    def _full(self, work: Work) -> Busy:
        return Busy(
            f"the attention cache is full: {self.kv_free} of {self.kv_tokens} tokens are free, "
            f"{self._missing_pages(work) * PAGE_TOKENS} more are needed",
            retry_after=1.0,
        )

    def _refuse_who_cannot_wait(self) -> None:
        """Nothing can run for want of pages: who set no deadline did not ask to wait for them."""
        for job in list(self._jobs.values()):
            if job.work.lacks_pages and job.work.deadline is None:
                self._fail(job, self._full(job.work))

    def _fail(self, job: _Job, error: SwarmdError) -> None:
        self._scheduler.remove(job.work.key)
        self._finish(job.work.key, error)

    def _add(self, job: _Job) -> None:
        self._jobs[job.work.key] = job
        self._scheduler.add(job.work)
        self._gathering.arrived(job.work.session, job.submitted)

    def _forget(self, key: int) -> None:
        self._scheduler.remove(key)
        if (job := self._jobs.pop(key, None)) is not None:
            self._gathering.finished(job.work.session, time.monotonic())

    def _finish(self, key: int, error: SwarmdError | None) -> None:
        job, now = self._jobs.pop(key), time.monotonic()
        self._gathering.finished(job.work.session, now)
        if error is not None:
            self._reply(job.future.set_exception, job.future, error)
            return
        total = now - job.submitted
        result = StepResult(job.output, max(0.0, total - job.compute_seconds), job.compute_seconds)
        self._reply(job.future.set_result, job.future, result)

    def _reply(
        self, setter: Callable[[Any], None], future: asyncio.Future[Any], value: object
    ) -> None:
        self._replies.append((setter, future, value))

    def _deliver(self) -> None:
        """Hand all replies of a turn to the loop at once: each hand-over wakes it up."""
        if not self._replies:
            return
        replies, self._replies = self._replies, []

        def deliver() -> None:
            for setter, future, value in replies:
                if not future.done():
                    setter(value)

        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
            self._loop.call_soon_threadsafe(deliver)


def _on_cpu(outputs: list[torch.Tensor]) -> list[torch.Tensor]:
    """The tensors (1, tokens, hidden size) on the CPU, brought there by one copy."""
    if outputs[0].device.type == "cpu":
        return outputs
    rows = torch.cat(outputs, dim=1).to("cpu")
    return list(rows.split([output.shape[1] for output in outputs], dim=1))
