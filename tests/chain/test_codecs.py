"""Hidden states that travel in int8: perhaps another answer, and the same after any loss."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator

import pytest

from swarmd.client.chain_session import ChainSession
from swarmd.client.session_config import SessionConfig
from swarmd.client.spot_checks import CheckConfig
from swarmd.compute.ends import ModelEnds
from swarmd.routing.edges import Route
from swarmd.wire.codecs import CodecChoice
from tests.chain.answers import SPANS, answer, killing
from tests.conftest import Runner
from tests.local_swarm import LocalSwarm

INT8 = SessionConfig(codec="int8")


@contextlib.asynccontextmanager
async def session(
    swarm: LocalSwarm, route: Route, config: SessionConfig = INT8
) -> AsyncIterator[ChainSession]:
    swarm.router.route = route
    async with await swarm.session(swarm.peers[:3], max_length=64, config=config) as one:
        await one.open_links()
        if route == "ring":
            assert await one.wait_for_links(10.0)
        yield one


@pytest.fixture(scope="module")
def by_int8(swarm: LocalSwarm, ends: ModelEnds) -> list[int]:
    import asyncio

    async def work() -> list[int]:
        async with swarm.running(SPANS), session(swarm, "hub") as one:
            return await answer(ends, one)

    return asyncio.run(work())


@pytest.mark.parametrize("route", ["ring", "hub"])
@pytest.mark.parametrize("hop", [0, 1, 2])
def test_a_loss_changes_nothing(
    hop: int, route: Route, swarm: LocalSwarm, ends: ModelEnds, by_int8: list[int],
    run_async: Runner,
) -> None:  # fmt: skip
    """What was decoded encodes to the same again, so a replay feeds each hop the same bits."""

    async def work() -> None:
        async with swarm.running(SPANS + SPANS), session(swarm, route) as one:
            lost = killing({9: [swarm.peers[hop]]})
            assert await answer(ends, one, lost) == by_int8
            assert len(one.statistics.recoveries) == 1
            assert {*one.statistics.codecs} == {"int8"}

    run_async(work())


def test_with_a_standby(
    swarm: LocalSwarm, ends: ModelEnds, by_int8: list[int], run_async: Runner
) -> None:
    config = SessionConfig(codec="int8", standby=True)

    async def work() -> None:
        async with swarm.running(SPANS + SPANS), session(swarm, "ring", config) as one:
            assert await answer(ends, one, killing({15: [swarm.peers[1]]})) == by_int8

    run_async(work())


@pytest.mark.parametrize("codec", ["raw", "zstd"])
def test_what_is_asked_for_is_used(
    codec: CodecChoice, swarm: LocalSwarm, ends: ModelEnds, undisturbed: list[int],
    run_async: Runner,
) -> None:  # fmt: skip
    async def work() -> None:
        config = SessionConfig(codec=codec)
        async with swarm.running(SPANS), session(swarm, "ring", config) as one:
            assert await answer(ends, one) == undisturbed
            assert {*one.statistics.codecs} == {codec}

    run_async(work())


def test_int8_takes_a_quarter_of_the_bytes(
    swarm: LocalSwarm, ends: ModelEnds, run_async: Runner
) -> None:
    async def work(codec: CodecChoice) -> float:
        async with swarm.running(SPANS), session(swarm, "hub", SessionConfig(codec=codec)) as one:
            await answer(ends, one)
            return one.statistics.decode_bytes / one.statistics.decode_steps

    rows = 2 * len(SPANS) * swarm.folder.hidden_size
    assert run_async(work("raw")) == 4 * rows
    assert run_async(work("int8")) < 1.1 * rows


def test_outputs_in_int8_cannot_be_checked(swarm: LocalSwarm, run_async: Runner) -> None:
    async def work() -> None:
        config = SessionConfig(codec="int8", checks=CheckConfig(fraction=0.1))
        async with swarm.running(SPANS):
            with pytest.raises(ValueError, match="int8"):
                await swarm.session(swarm.peers, max_length=64, config=config)

    run_async(work())
