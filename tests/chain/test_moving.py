"""A session that leaves its chain for a better one, in the middle of an answer."""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
import torch

from swarmd.blocks import Span
from swarmd.client.forward import forward
from swarmd.client.generate import decode_tokens
from swarmd.client.migration import Migration
from swarmd.client.moving_session import MovingSession
from swarmd.client.sampling import Sampler, SamplingConfig
from swarmd.client.session import Session
from swarmd.client.session_config import SessionConfig
from swarmd.client.spot_checks import CheckConfig
from swarmd.compute.block_span import BlockSpan
from swarmd.compute.ends import ModelEnds
from swarmd.compute.model_folder import ModelFolder
from swarmd.routing.chain import Chain, Hop
from swarmd.routing.precopy import Precopy
from swarmd.routing.replanning import ReplanConfig
from tests.chain.answers import PROMPT, SPANS
from tests.conftest import Runner
from tests.local_swarm import LocalSwarm

TOKENS = 28
SLOW = 0.008
"""Seconds more that a slow peer takes for a step."""
QUICK = ReplanConfig(
    look_every=0.0, look_steps=3, window=3, view_age=0.0, rest=60.0, least_gain=0.003
)
SAMPLING = SamplingConfig(temperature=1.0, seed=11)


class Scene:
    """Three slow peers, and fast ones that are announced when a test says so."""

    def __init__(self, swarm: LocalSwarm, ends: ModelEnds) -> None:
        self.swarm = swarm
        self.ends = ends
        self.slow = swarm.peers[:3]
        self.fast = swarm.peers[3:]
        swarm.peers = list(self.slow)

    def announce(self) -> None:
        """The fast ones join. Who joins hears of those that are there, and the other way round."""
        self.swarm.peers += self.fast
        for peer in self.swarm.peers:
            peer.peers = self.swarm.peers

    @contextlib.asynccontextmanager
    async def session(
        self, config: SessionConfig | None = None, replanning: ReplanConfig = QUICK
    ) -> AsyncIterator[MovingSession]:
        """Over the slow peers."""
        swarm = self.swarm
        await swarm.router.refresh()
        chain = Chain(tuple(Hop(peer.info, peer.info.span) for peer in self.slow), 0.0)
        session = MovingSession(
            swarm.router, swarm.pool, chain,
            hidden_size=swarm.folder.hidden_size, max_length=len(PROMPT) + TOKENS,
            config=config, replanning=replanning,
        )  # fmt: skip
        async with session:
            yield session

    async def no_sessions(self) -> None:
        """Wait until every session of every peer is closed."""
        async with asyncio.timeout(5):
            while any(peer.server._live for peer in [*self.slow, *self.fast]):
                await asyncio.sleep(0.01)

    async def answer(
        self, session: MovingSession, before: Callable[[int], None] = lambda token: None
    ) -> list[int]:
        tokens: list[int] = []
        async for token in decode_tokens(
            self.ends, session, PROMPT, Sampler(SAMPLING),
            max_new_tokens=TOKENS, eos_token_ids=frozenset(),
        ):  # fmt: skip
            tokens.append(token)
            before(len(tokens))
            await asyncio.sleep(0)
        return tokens


def slow_down(blocks: BlockSpan, seconds: float) -> None:
    """Let each step through these blocks take so many seconds more."""
    run = blocks.run

    def run_slowly(*args: Any, **options: Any) -> Any:
        time.sleep(seconds)
        return run(*args, **options)

    blocks.run = run_slowly  # type: ignore[method-assign]


def watch(
    scene: Scene, session: MovingSession, then: Callable[[], None], at: str
) -> Callable[..., None]:
    """For `answer`: announce the fast ones after 6 tokens, and call `then` once the move is so far:
    `replay`, when some positions are there; `ready`, when a step is about to go there."""
    called: list[int] = []

    def call(token: int = 0) -> None:
        if not called:
            called.append(token)
            then()

    def before(token: int) -> None:
        if token == 6:
            scene.announce()
        migration = session._migration
        if at == "replay" and migration is not None and migration.precopy.done:
            call(token)

    if at == "ready":
        cross = session._cross

        async def crossing(*arguments: Any) -> bytes | None:
            call()
            return await cross(*arguments)

        session._cross = crossing  # type: ignore[method-assign]
    return before


@pytest.fixture(scope="module")
def slow_swarm(folder: ModelFolder) -> LocalSwarm:
    """Three peers that are slow by spans of their own, and as many fast ones as a test wants."""
    swarm = LocalSwarm(folder)
    for span in SPANS:
        slow_down(swarm._load(span, "none"), SLOW)
    return swarm


@pytest.fixture(scope="module")
def expected(folder: ModelFolder, ends: ModelEnds) -> list[int]:
    async def work() -> list[int]:
        async with scene(LocalSwarm(folder), ends, fast=0) as here:
            async with here.session(SessionConfig(replan=False)) as session:
                return await here.answer(session)

    return asyncio.run(work())


@contextlib.asynccontextmanager
async def scene(swarm: LocalSwarm, ends: ModelEnds, fast: int = 1) -> AsyncIterator[Scene]:
    async with swarm.running([*SPANS, *[Span(0, 6)] * fast]):
        here = Scene(swarm, ends)
        for peer in here.fast:
            peer.decode_us, peer.prefill_us = 300, 50
        yield here
        await here.no_sessions()


def test_an_answer_moves_to_a_faster_chain(
    slow_swarm: LocalSwarm, ends: ModelEnds, expected: list[int], run_either: Runner
) -> None:
    async def work() -> None:
        async with scene(slow_swarm, ends) as here, here.session() as session:
            tokens = await here.answer(
                session, lambda token: here.announce() if token == 6 else None
            )
            assert tokens == expected
            (move,) = session.statistics.moves
            assert [hop.peer.peer_id for hop in session.chain] == [here.fast[0].info.peer_id]
            assert move.seconds_after < move.seconds_before / 2
            assert move.replayed >= len(PROMPT) + 6
            assert session.story == (str(move),)
            # what ran in the background is none of the answer's own steps
            assert TOKENS - 3 <= session.statistics.decode_steps < TOKENS
            assert not session.statistics.recoveries
            end = len(PROMPT) + TOKENS - 1
            ((first, states),) = await session.boundaries(0, end)
            assert (first, len(states)) == (0, end * here.swarm.folder.hidden_size * 4)

    run_either(work())


@pytest.mark.parametrize(
    ("config", "dtype", "moves"),
    [
        (SessionConfig(replan=False), "float32", False),
        (SessionConfig(replan=True, checks=CheckConfig(0.01)), "float32", False),
        (SessionConfig(), "bfloat16", False),
        (SessionConfig(replan=True), "bfloat16", True),
    ],
)
def test_who_may_move(
    folder: ModelFolder, run_async: Runner, config: SessionConfig, dtype: str, moves: bool
) -> None:
    ends = ModelEnds(folder, dtype=dtype)

    async def work() -> None:
        swarm = LocalSwarm(folder, dtype=dtype)
        for span in SPANS:
            slow_down(swarm._load(span, "none"), SLOW)
        async with scene(swarm, ends) as here, here.session(config) as session:
            here.announce()
            for position in range(14):
                await forward(ends, session, [5], position)
                await asyncio.sleep(0)
            assert bool(session.statistics.moves) is moves

    run_async(work())


@pytest.mark.parametrize("at", ["replay", "ready"])
@pytest.mark.parametrize("who", ["new", "old"])
def test_a_peer_that_dies_during_the_move_costs_no_token(
    slow_swarm: LocalSwarm,
    ends: ModelEnds,
    expected: list[int],
    run_async: Runner,
    at: str,
    who: str,
) -> None:
    async def work() -> None:
        async with scene(slow_swarm, ends, fast=2) as here:
            spare = here.fast.pop()
            async with here.session() as session:
                victims = here.fast if who == "new" else here.slow[1:2]
                killed: list[int] = []

                def kill() -> None:
                    killed.append(1)
                    if who == "old":  # somebody has to be left who holds its blocks
                        here.swarm.peers.append(spare)
                    for victim in victims:
                        victim.kill()

                tokens = await here.answer(session, watch(here, session, kill, at))
                assert killed
                assert tokens == expected
                if who == "new":
                    (line,) = [line for line in session.story if "stayed, though" in line]
                    assert here.fast[0].info.peer_id.short in line
                    assert not session.statistics.moves
            here.fast.append(spare)
            await here.no_sessions()

    run_async(work())


def test_others_stand_by_on_the_new_chain_as_well(
    slow_swarm: LocalSwarm, ends: ModelEnds, expected: list[int], run_async: Runner
) -> None:
    """Not while it is made ready, but once it is the session's."""

    async def work() -> None:
        async with scene(slow_swarm, ends) as here:
            async with here.session(SessionConfig(standby=True)) as session:

                def before(token: int) -> None:
                    if token == 6:
                        here.announce()
                    if session._migration is not None:
                        assert not session._migration.session._spares.standby

                assert await here.answer(session, before) == expected
                assert len(session.statistics.moves) == 1, session.story
                assert session._session._spares.standby
            await here.no_sessions()

    run_async(work())


def test_who_is_slower_than_announced_is_found_out_before_the_move(
    folder: ModelFolder, ends: ModelEnds, expected: list[int], run_async: Runner
) -> None:
    async def work() -> None:
        swarm = LocalSwarm(folder)
        for span in (*SPANS, Span(0, 6)):
            slow_down(swarm._load(span, "none"), SLOW * 40 if len(span) == 6 else SLOW)
        async with scene(swarm, ends) as here, here.session() as session:
            here.announce()
            tokens: list[int] = []
            async for token in decode_tokens(
                ends, session, PROMPT, Sampler(SAMPLING),
                max_new_tokens=TOKENS, eos_token_ids=frozenset(),
            ):  # fmt: skip
                tokens.append(token)
                async with asyncio.timeout(30):  # the answer must not end before the move does
                    while session._migration is not None and len(tokens) > TOKENS - 4:
                        await asyncio.sleep(0.01)
            assert tokens == expected
            (line,) = session.story
            assert "ms there" in line
            assert not session.statistics.moves

    run_async(work())


def test_cut_backs_during_the_move_change_nothing(
    slow_swarm: LocalSwarm, ends: ModelEnds, run_async: Runner
) -> None:
    """Steps of one to four tokens that begin anywhere, as of wrong drafts and of beams."""
    rng = random.Random(5)
    steps, held = [], 0
    for _ in range(38):
        start = max(0, held - (40 if held > 60 else rng.choice([0, 0, 0, 1, 3, 9])))
        held = start + rng.randint(1, 4)
        steps.append((start, [rng.randrange(3, 60) for _ in range(held - start)]))

    async def run(session: Session, before: Callable[[int], None]) -> list[torch.Tensor]:
        found = []
        for number, (start, tokens) in enumerate(steps):
            before(number)
            found.append(await forward(ends, session, tokens, start))
            await asyncio.sleep(0)
        return found

    async def work() -> None:
        async with scene(slow_swarm, ends) as here:
            async with here.session(SessionConfig(replan=False)) as session:
                wanted = await run(session, lambda number: None)
            async with here.session() as session:
                found = await run(session, lambda number: here.announce() if number == 6 else None)
                assert len(session.statistics.moves) == 1
            for one, other in zip(found, wanted, strict=True):
                torch.testing.assert_close(one, other, rtol=0, atol=1e-5)

    run_async(work())


def test_a_cancelled_step_leaves_the_session_where_it_was(
    slow_swarm: LocalSwarm, ends: ModelEnds, run_async: Runner
) -> None:
    async def work() -> None:
        async with scene(slow_swarm, ends) as here, here.session() as session:
            here.announce()
            position = 0
            while session._migration is None or not session._migration.is_ready:
                await forward(ends, session, [7], position)
                position += 1
                await asyncio.sleep(0)
            crossing = asyncio.ensure_future(forward(ends, session, [7], position))
            await asyncio.sleep(0)
            crossing.cancel()
            with pytest.raises(asyncio.CancelledError):
                await crossing
            assert len(session.chain) == 3
            assert "cancelled" in session.story[-1]
            again = await forward(ends, session, [7], position)
            async with here.session(SessionConfig(replan=False)) as other:
                wanted = await forward(ends, other, [7] * (position + 1), 0)
            torch.testing.assert_close(again, wanted, rtol=0, atol=1e-5)

    run_async(work())


def test_a_session_that_begins_anew_during_the_trial(run_async: Runner) -> None:
    class NewChain:
        chain = ()

        async def step(self, start: int, data: bytes, tokens: int) -> bytes:
            migration.begin_step(0)
            return data

    precopy = Precopy(5, 1.0)
    precopy.next(0)
    precopy.ended()
    migration = Migration(
        NewChain(),  # type: ignore[arg-type]
        precopy,
        inputs=lambda start, end: bytes(end - start),
        confirms=lambda seconds: True,
        is_idle=lambda: False,
    )
    run_async(migration._try())
    assert precopy.done == 0
    assert migration.step_seconds == 0, "a trial that was cut short counts"


def test_a_session_at_rest_moves_without_a_step(
    slow_swarm: LocalSwarm, ends: ModelEnds, run_async: Runner
) -> None:
    """A dialogue that waits for its user does not hold two chains until the next turn."""

    async def work() -> None:
        async with scene(slow_swarm, ends) as here, here.session() as session:
            here.announce()
            position = 0
            while session._migration is None:
                await forward(ends, session, [9], position)
                position += 1
                await asyncio.sleep(0)
            async with asyncio.timeout(5):
                while not session.statistics.moves:
                    await asyncio.sleep(0.02)
                while any(peer.server._live for peer in here.slow):
                    await asyncio.sleep(0.02)
            assert len(session.chain) == 1
            last = await forward(ends, session, [9], position)
            async with here.session(SessionConfig(replan=False)) as other:
                wanted = await forward(ends, other, [9] * (position + 1), 0)
            torch.testing.assert_close(last, wanted, rtol=0, atol=1e-5)

    run_async(work())


def test_sessions_of_one_client_move_one_at_a_time(
    slow_swarm: LocalSwarm, ends: ModelEnds, expected: list[int], run_async: Runner
) -> None:
    async def work() -> None:
        async with scene(slow_swarm, ends) as here:
            async with here.session() as one, here.session() as other:
                here.announce()
                most = 0

                def count(_token: int) -> None:
                    nonlocal most
                    under_way = [session._migration is not None for session in (one, other)]
                    most = max(most, sum(under_way))

                answers = await asyncio.gather(here.answer(one, count), here.answer(other, count))
                assert answers == [expected, expected]
                assert most == 1
                assert one.statistics.moves or other.statistics.moves

    run_async(work())
