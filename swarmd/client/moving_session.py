"""A session that leaves its chain when a clearly better one appears, in the middle of an answer.

It has the interface of :class:`ChainSession`, and holds one. Now and then, after a step, it looks
in the background what else there is, and :mod:`swarmd.routing.replanning` decides. A move opens a
second session over the better chain, feeds it what the first one was fed (`Migration`), and when
little is missing the next step goes there. The first one is kept until that step has succeeded: so
whatever fails, the answer goes on where it was.

No token differs but by the rounding of a replay, as after the loss of a hop; so the new chain
always computes in the arithmetic of the old one. A session stays where it is if its hops differ in
arithmetic, if its outputs are spot-checked (what was checked of a hop says nothing of another),
and, unless `SessionConfig.replan` says so, in the half precisions.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import time
from collections.abc import Callable
from dataclasses import replace

from swarmd.client.chain_session import ChainSession
from swarmd.client.migration import Migration, NotWorthIt
from swarmd.client.router import Router
from swarmd.client.session_config import Move, SessionConfig, SessionStatistics
from swarmd.client.spot_checks import SpotChecks
from swarmd.errors import NoRoute, SwarmdError
from swarmd.peers import Arithmetic
from swarmd.routing.chain import Chain, Hop
from swarmd.routing.precopy import Precopy, PrecopyConfig
from swarmd.routing.price import Price, chain_price
from swarmd.routing.replanning import Offer, ReplanConfig, Replanning
from swarmd.tasks import TaskOwner
from swarmd.wire.pool import Pool

__all__ = ["MovingSession"]

log = logging.getLogger(__name__)

DECODE_TOKENS = 8
"""Steps of up to so many positions say how fast a chain decodes."""
IDLE_SECONDS = 1.0
"""Without a step for so long a session does not wait for the next one to move."""


class MovingSession:
    """As :class:`ChainSession`: `async with session:`, then `open_links`, then steps."""

    def __init__(
        self,
        router: Router,
        pool: Pool,
        chain: Chain,
        *,
        hidden_size: int,
        max_length: int,
        config: SessionConfig | None = None,
        on_story: Callable[[str], None] | None = None,
        replanning: ReplanConfig | None = None,
    ) -> None:
        self.config = config or SessionConfig()
        self.max_length = max_length
        self._router = router
        self._pool = pool
        self._hidden_size = hidden_size
        self._on_story = on_story
        self._story: list[str] = []
        self._past = SessionStatistics()  # of the chains before this one
        self._owner = TaskOwner("moving")
        self._owned: set[ChainSession] = set()  # those that are to be closed at the end
        self._background: asyncio.Task[None] | None = None
        self._migration: Migration | None = None
        self._replan_config = replanning or ReplanConfig()
        self._replanning = Replanning(
            self._replan_config, router.clock.monotonic(), random.Random()
        )
        self._held = 0
        self._used = 0  # calls under way
        self._used_at = time.monotonic()
        self._session = self._new(chain, self.config)
        self.dtype = self._session.dtype

    def _new(self, chain: Chain, config: SessionConfig) -> ChainSession:
        def heard(line: str) -> None:
            if session is self._session:
                self._tell(line)
            elif self._migration is not None and self._migration.session is session:
                self._migration.failed(line)

        session = ChainSession(
            self._router, self._pool, chain,
            hidden_size=self._hidden_size, max_length=self.max_length, config=config,
            on_story=heard,
        )  # fmt: skip
        return session

    # ---- as of one chain ----------------------------------------------------------------------

    @property
    def chain(self) -> tuple[Hop, ...]:
        """The hops as they are now."""
        return self._session.chain

    @property
    def story(self) -> tuple[str, ...]:
        """What went wrong so far, and the moves, in order."""
        return tuple(self._story)

    @property
    def statistics(self) -> SessionStatistics:
        """What the session did on all of its chains."""
        return self._past + self._session.statistics

    @property
    def checks(self) -> SpotChecks | None:
        """The spot checks, if there are any; then the session never moves."""
        return self._session.checks

    async def __aenter__(self) -> MovingSession:
        await self._owner.__aenter__()
        self._owned.add(await self._session.__aenter__())
        return self

    async def __aexit__(self, *exc: object) -> None:
        try:
            await self._owner.close()
        finally:
            owned, self._owned = self._owned, set()
            await asyncio.gather(*(session.__aexit__(*exc) for session in owned))

    async def open_links(self) -> None:
        """As :meth:`ChainSession.open_links`."""
        with _Use(self):
            await self._session.open_links()

    async def wait_for_links(self, seconds: float) -> bool:
        """As :meth:`ChainSession.wait_for_links`."""
        with _Use(self):
            return await self._session.wait_for_links(seconds)

    async def settle(self, end: int | None = None) -> None:
        """As :meth:`ChainSession.settle`."""
        with _Use(self):
            await self._session.settle(end)

    async def boundaries(self, start: int, end: int) -> tuple[tuple[int, bytes], ...]:
        """As :meth:`ChainSession.boundaries`, of the chain as it is now: it has run all positions,
        so that those from before a move have its boundaries too."""
        with _Use(self):
            return await self._session.boundaries(start, end)

    def stage_seconds(self, tokens: int) -> float:
        """As :meth:`ChainSession.stage_seconds`."""
        return self._session.stage_seconds(tokens)

    def ahead(self, start: int, data: bytes, tokens: int) -> bool:
        """As :meth:`ChainSession.ahead`. A step that goes to another chain takes all along."""
        return self._session.ahead(start, data, tokens)

    async def step(self, start: int, data: bytes, tokens: int) -> bytes:
        """As :meth:`ChainSession.step`, and raises what that raises."""
        with _Use(self):
            output = await self._step(start, data, tokens)
        now = self._router.clock.monotonic()
        if self._background is None and self._replanning.due(now):
            self._replanning.postpone(now)
            arithmetic = self._arithmetic()
            if arithmetic is not None:
                look = self._replan(arithmetic)
                self._background = self._owner.spawn(look, name="replan", errors="log")
        return output

    async def _step(self, start: int, data: bytes, tokens: int) -> bytes:
        self._held = min(self._held, start)
        migration = self._migration
        if migration is not None:
            migration.begin_step(start)
            if migration.is_ready and start == self._held and tokens > 0:
                output = await self._cross(migration, start, data, tokens)
                if output is not None:
                    self._held = start + tokens
                    return output
        lost = len(self._session.statistics.recoveries)
        began = time.perf_counter()
        output = await self._session.step(start, data, tokens)
        seconds = time.perf_counter() - began
        self._held = start + tokens
        undisturbed = len(self._session.statistics.recoveries) == lost
        decoded = undisturbed and tokens <= DECODE_TOKENS and not self._session.went_on
        if not undisturbed:
            if self._migration is not None:  # it was to be better than another chain
                self._drop(self._migration, "a hop was replaced meanwhile")
            self._replanning.disturbed(self._router.clock.monotonic())
        elif self._migration is not None:
            self._migration.end_step(self._held, seconds if decoded else None)
        elif decoded:
            self._replanning.stepped(tokens, seconds)
        return output

    # ---- looking ------------------------------------------------------------------------------

    def _arithmetic(self) -> Arithmetic | None:
        """What a chain must compute in to be moved to; None if the session is to stay."""
        every = {hop.peer.arithmetic for hop in self.chain}
        wanted = self.dtype == "float32" if self.config.replan is None else self.config.replan
        return next(iter(every)) if wanted and len(every) == 1 and self.checks is None else None

    async def _replan(self, arithmetic: Arithmetic) -> None:
        """Look for a better chain; prepare the move there, if it pays."""
        try:
            if self._router.moving.locked():  # another session: its steps will tell
                return
            async with self._router.moving:
                better = await self._look(arithmetic)
                if better is not None:
                    await self._prepare(*better)
        finally:
            if self._background is asyncio.current_task():
                self._background = None

    async def _look(self, arithmetic: Arithmetic) -> tuple[Chain, float] | None:
        """The chain to move to, and the seconds that the replay will take; None to stay."""
        router = self._router
        try:
            age = self._replan_config.view_age
            await router.refresh(newer_than=router.clock.monotonic() - age)
        except SwarmdError as error:
            log.info("the announcements cannot be read now: %s", error)
        found = None
        try:
            chain = router.choose(
                arithmetic=arithmetic, mixed=False, kv_needed=self.max_length, jitter=False
            )
        except NoRoute:
            chain = None
        if chain is not None and _hops(chain.hops) != _hops(self.chain):
            tokens = self._replanning.step_tokens
            other = self._price(chain.hops, tokens)
            size = PrecopyConfig().chunk
            chunks = 1 + self._held // size
            replay = 2 * chunks * self._price(chain.hops, size).seconds  # half of it are pauses
            if not other.penalty:
                found = Offer(self._price(self.chain, tokens).seconds, other.seconds, replay)
        log.debug("a step takes %.1f ms; what else there is: %s",
                  1e3 * self._replanning.step_seconds, found)  # fmt: skip
        left, now = self.max_length - self._held, router.clock.monotonic()
        if not self._replanning.looked(found, left, now):
            return None
        assert chain is not None and found is not None
        return chain, found.replay

    def _price(self, hops: tuple[Hop, ...], tokens: int) -> Price:
        router = self._router
        avoid = router.health.avoid(router.clock.monotonic())
        prices = chain_price(
            hops, router.costs,
            avoid=avoid, tokens=tokens, kv_needed=self.max_length, mode=router.mode,
        )  # fmt: skip
        return sum(prices, Price())

    # ---- moving -------------------------------------------------------------------------------

    async def _prepare(self, chain: Chain, replay: float) -> None:
        """Make the chain ready. What goes wrong with that ends the move, and nothing else."""
        session = self._new(chain, replace(self.config, standby=False))  # until it is the session's
        self._owned.add(session)
        migration = self._migration = Migration(
            session,
            Precopy(self._held, self._replanning.step_seconds),
            inputs=lambda start, end: self._session.inputs(start, end),
            confirms=self._replanning.confirms,
            is_idle=self._is_idle,
        )
        try:
            await migration.run(60.0 + 8 * replay)
        except Exception as error:
            self._drop(migration, str(error))
            if not isinstance(error, NotWorthIt | SwarmdError):
                raise  # a bug, which the owner logs
        else:
            self._arrive(migration)

    def _is_idle(self) -> bool:
        return not self._used and time.monotonic() - self._used_at > IDLE_SECONDS

    async def _cross(
        self, migration: Migration, start: int, data: bytes, tokens: int
    ) -> bytes | None:
        """Run a step on the new chain, which is the session's from then on. None if that failed:
        then the step has to be run on the old one."""
        self._stop_preparing()
        first = migration.precopy.done
        missing = self._session.inputs(first, start)
        limit = 1.0 + 8 * self._price(migration.session.chain, start - first + tokens).seconds
        try:
            output = await migration.cross(first, missing + data, start - first + tokens, limit)
        except (NotWorthIt, SwarmdError) as error:
            self._drop(migration, str(error))
            return None
        except BaseException:
            self._drop(migration, "the step was cancelled")
            raise
        migration.replayed += start - first
        self._arrive(migration)
        return output[len(output) // (start - first + tokens) * (start - first) :]

    def _arrive(self, migration: Migration) -> None:
        """The session goes on with the new chain."""
        old, new = self._session, migration.session
        move = Move(
            old.chain, new.chain, self._held, migration.replayed,
            self._replanning.step_seconds, migration.step_seconds,
        )  # fmt: skip
        self._past += old.statistics
        self._past.moves.append(move)
        new.statistics = replace(  # steps in the background are none of the answer's
            new.statistics,
            decode_steps=0, decode_seconds=0.0, compute_seconds=0.0, queue_seconds=0.0,
        )  # fmt: skip
        self._session = new
        new.stand_by(self.config.standby)
        self._migration = None
        self._replanning.ended(self._router.clock.monotonic(), moved=True)
        log.info("%s", move)
        self._tell(str(move))
        self._close(old)

    def _drop(self, migration: Migration, reason: str) -> None:
        """The session stays where it is."""
        self._migration = None
        self._past.wire_bytes += migration.session.statistics.wire_bytes
        self._replanning.ended(self._router.clock.monotonic(), moved=False)
        line = f"stayed, though {' '.join(map(str, migration.hops))} seemed better: {reason}"
        log.info("%s", line)
        self._tell(line)
        self._close(migration.session, after=self._stop_preparing())

    def _stop_preparing(self) -> asyncio.Task[None] | None:
        """Cancel the task that prepares the move, unless it is this one; returns it."""
        task, self._background = self._background, None
        if task is None or task is asyncio.current_task():
            return None
        task.cancel()
        return task

    def _close(self, session: ChainSession, after: asyncio.Task[None] | None = None) -> None:
        """Close a session in the background, when the task that uses it has ended."""

        async def close() -> None:
            if after is not None:
                await asyncio.wait([after])
            await session.__aexit__(None, None, None)
            self._owned.discard(session)

        with contextlib.suppress(RuntimeError):  # all are being closed
            self._owner.spawn(close(), name="close", errors="log")

    def _tell(self, line: str) -> None:
        self._story.append(line)
        if self._on_story is not None:
            self._on_story(line)


class _Use:
    """A call of the session's is under way."""

    def __init__(self, session: MovingSession) -> None:
        self._session = session

    def __enter__(self) -> None:
        self._session._used += 1

    def __exit__(self, *_exc: object) -> None:
        self._session._used -= 1
        self._session._used_at = time.monotonic()


def _hops(hops: tuple[Hop, ...]) -> list[tuple[object, object]]:
    return [(hop.peer.peer_id, hop.span) for hop in hops]
