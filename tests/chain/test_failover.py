"""Kill any peer at any token: the answer goes on and equals the undisturbed one."""

from __future__ import annotations

import asyncio
import dataclasses

import pytest

from swarmd.blocks import Span
from swarmd.client.session_config import SessionConfig
from swarmd.compute.ends import ModelEnds
from swarmd.errors import NoRoute
from tests.chain.answers import NEW_TOKENS, SPANS, answer, killing
from tests.conftest import Runner
from tests.local_swarm import LocalSwarm


@pytest.mark.parametrize("hop", [0, 1, 2])
@pytest.mark.parametrize("token", range(NEW_TOKENS))
def test_killing_any_hop_at_any_token(
    hop: int,
    token: int,
    swarm: LocalSwarm,
    ends: ModelEnds,
    undisturbed: list[int],
    run_async: Runner,
) -> None:
    async def work() -> None:
        async with swarm.running(SPANS + SPANS):
            primary = swarm.peers[:3]
            async with await swarm.session(primary, max_length=64) as session:
                assert await answer(ends, session, killing({token: [primary[hop]]})) == undisturbed
                (recovery,) = session.statistics.recoveries
                assert recovery.lost.span == SPANS[hop]
                assert recovery.by[0].peer.peer_id == swarm.peers[3 + hop].info.peer_id

    run_async(work())


@pytest.mark.parametrize("pair", [(0, 1), (0, 2), (1, 2)])
@pytest.mark.parametrize("token", [0, 1, 11, 23])
def test_killing_two_peers_at_once(
    pair: tuple[int, int],
    token: int,
    swarm: LocalSwarm,
    ends: ModelEnds,
    undisturbed: list[int],
    run_async: Runner,
) -> None:
    async def work() -> None:
        async with swarm.running(SPANS + SPANS):
            victims = [swarm.peers[i] for i in pair]
            async with await swarm.session(swarm.peers[:3], max_length=64) as session:
                assert await answer(ends, session, killing({token: victims})) == undisturbed
                assert len(session.statistics.recoveries) == 2

    run_async(work())


@pytest.mark.parametrize("hop", [0, 1, 2])
def test_killing_during_a_chunked_prefill(
    hop: int, swarm: LocalSwarm, ends: ModelEnds, undisturbed: list[int], run_async: Runner
) -> None:
    async def work() -> None:
        async with swarm.running(SPANS + SPANS):
            victim = swarm.peers[hop]
            session = await swarm.session(swarm.peers[:3], max_length=64)
            session.config = SessionConfig(
                chunk_tokens=5
            )  # many chunks, so that some are under way
            original = victim.engine.step
            steps = 0

            async def dying(*args: object, **kwargs: object) -> object:
                nonlocal steps
                steps += 1
                if steps == 3:
                    victim.kill()
                return await original(*args, **kwargs)  # type: ignore[arg-type]

            victim.engine.step = dying  # type: ignore[method-assign, assignment]
            async with session:
                assert await answer(ends, session) == undisturbed
            assert [r.lost.span for r in session.statistics.recoveries] == [SPANS[hop]]

    run_async(work())


def test_one_failure_after_the_other_until_spares_with_other_spans_serve(
    swarm: LocalSwarm, ends: ModelEnds, undisturbed: list[int], run_async: Runner
) -> None:
    """The replacement dies as well; what is left holds the blocks in other spans."""

    async def work() -> None:
        spares = [Span(1, 5), Span(0, 3), Span(3, 6)]
        async with swarm.running([*SPANS, *SPANS, *spares]):
            first, second = swarm.peers[1], swarm.peers[4]
            kills = {5: [first], 9: [second], 10: [swarm.peers[0], swarm.peers[3]]}
            async with await swarm.session(swarm.peers[:3], max_length=64) as session:
                assert await answer(ends, session, killing(kills)) == undisturbed
                assert len(session.statistics.recoveries) >= 2

    run_async(work())


def test_without_a_spare_one_error_names_the_missing_blocks(
    swarm: LocalSwarm, ends: ModelEnds, run_async: Runner
) -> None:
    async def work() -> None:
        async with swarm.running(SPANS):
            async with await swarm.session(swarm.peers, max_length=64) as session:
                with pytest.raises(NoRoute, match="blocks 2:4 of llama") as caught:
                    await answer(ends, session, killing({4: [swarm.peers[1]]}))
                assert caught.value.missing == (Span(2, 4),)
                assert "swarmd serve --blocks 2:4" in str(caught.value)

    run_async(work())


def test_wait_goes_on_when_somebody_serves_the_blocks(
    swarm: LocalSwarm, ends: ModelEnds, undisturbed: list[int], run_async: Runner
) -> None:
    async def work() -> None:
        async with swarm.running([*SPANS, SPANS[1]]):
            *primary, late = swarm.peers
            swarm.peers = primary
            swarm.router.config = dataclasses.replace(
                swarm.router.config, refresh_at_most_every=0.05
            )
            session = await swarm.session(primary, max_length=64, wait=30.0)
            waiting = asyncio.Event()
            session._on_story = lambda line: waiting.set() if "waiting" in line else None

            async def join_late() -> None:
                await waiting.wait()
                swarm.peers = [*primary, late]

            async with session:
                joining = asyncio.ensure_future(join_late())
                assert await answer(ends, session, killing({4: [primary[1]]})) == undisturbed
                await joining

    run_async(work())


def test_a_peer_that_hangs_is_replaced_after_its_deadline(
    swarm: LocalSwarm, ends: ModelEnds, undisturbed: list[int], run_async: Runner
) -> None:
    async def work() -> None:
        async with swarm.running(SPANS + SPANS):
            victim = swarm.peers[1]

            async def never(*_args: object, **_kwargs: object) -> object:
                return await asyncio.get_running_loop().create_future()

            session = await swarm.session(swarm.peers[:3], max_length=64)
            async with session:

                def hang(token: int) -> None:
                    if token == 10:
                        victim.engine.step = never  # type: ignore[method-assign, assignment]

                assert await answer(ends, session, hang) == undisturbed
                (recovery,) = session.statistics.recoveries
                assert "no answer within" in recovery.reason

    run_async(work())
