"""Hops that forward to one another: the same tokens as in a hub, also where links or hops fail."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

import pytest
import torch

from swarmd.client.chain_session import ChainSession
from swarmd.client.session_config import SessionConfig
from swarmd.compute.ends import ModelEnds
from swarmd.compute.engine import StepResult
from swarmd.routing.edges import Route
from swarmd.wire.messages import Step
from tests.chain.answers import NEW_TOKENS, SPANS, answer, killing
from tests.conftest import Runner
from tests.local_swarm import LocalPeer, LocalSwarm


@contextlib.asynccontextmanager
async def ring(
    swarm: LocalSwarm, count: int = 3, *, route: Route = "ring"
) -> AsyncIterator[ChainSession]:
    """A session over the first peers, once their links are made."""
    swarm.router.route = route
    async with await swarm.session(swarm.peers[:count], max_length=64) as session:
        await session.open_links()
        assert await session.wait_for_links(10.0) == (route != "hub")
        yield session


def drop_edge(peer: LocalPeer) -> None:
    """Cut the link that the peer's only session has to the next hop."""
    (live,) = peer.server._live
    live._onward.close()


@pytest.mark.parametrize("route", ["ring", "auto", "hub"])
def test_the_answer_is_the_same_whoever_forwards(
    route: Route, swarm: LocalSwarm, ends: ModelEnds, undisturbed: list[int], run_async: Runner
) -> None:
    async def work() -> None:
        async with swarm.running(SPANS), ring(swarm, route=route) as session:
            assert await answer(ends, session) == undisturbed
            steps = 0 if route == "hub" else 2 * NEW_TOKENS
            copies = session.statistics.forwarded
            assert steps - 2 <= copies <= steps, "the last copies may come after the answer"
            if route == "auto":
                edges = swarm.router.edges.rtts(0.0)
                assert len(edges) == 2
                assert all(0 < rtt < 1 for rtt in edges.values())

    run_async(work())


@pytest.mark.parametrize("hop", [0, 1, 2])
@pytest.mark.parametrize("token", [0, 1, 12, 23])
def test_killing_a_hop(
    hop: int,
    token: int,
    swarm: LocalSwarm,
    ends: ModelEnds,
    undisturbed: list[int],
    run_async: Runner,
) -> None:
    async def work() -> None:
        async with swarm.running(SPANS + SPANS), ring(swarm) as session:
            victim = swarm.peers[hop]
            assert await answer(ends, session, killing({token: [victim]})) == undisturbed
            assert [one.lost.span for one in session.statistics.recoveries] == [SPANS[hop]], (
                "\n".join(session.story)
            )
            assert await session.wait_for_links(10.0), "the replacement joins the ring"

    run_async(work())


def test_killing_all_three_one_after_the_other_and_two_at_once(
    swarm: LocalSwarm, ends: ModelEnds, undisturbed: list[int], run_async: Runner
) -> None:
    async def work() -> None:
        async with swarm.running(SPANS * 3), ring(swarm) as session:
            peers = swarm.peers
            kills = {3: [peers[0]], 4: [peers[1]], 9: [peers[2], peers[4]], 15: [peers[3]]}
            assert await answer(ends, session, killing(kills)) == undisturbed
            assert session.statistics.forwarded > 10

    run_async(work())


@pytest.mark.parametrize("hop", [0, 1])
def test_where_a_link_breaks_the_client_goes_on_without_it(
    hop: int, swarm: LocalSwarm, ends: ModelEnds, undisturbed: list[int], run_async: Runner
) -> None:
    async def work() -> None:
        async with swarm.running(SPANS), ring(swarm) as session:
            peers = [one.info for one in swarm.peers]

            def before(token: int) -> None:
                if token == 7:
                    drop_edge(swarm.peers[hop])

            assert await answer(ends, session, before) == undisturbed
            assert session.statistics.recoveries == [], "nobody is lost"
            assert not swarm.router.wants_edge(peers[hop], peers[hop + 1]), "and it is remembered"
            assert swarm.router.wants_edge(peers[1 - hop], peers[2 - hop])
            forwarded = session.statistics.forwarded
            assert NEW_TOKENS <= forwarded < 2 * NEW_TOKENS - 10

    run_async(work())


def test_a_link_that_loses_steps_in_silence_is_given_up(
    swarm: LocalSwarm, ends: ModelEnds, undisturbed: list[int], run_async: Runner
) -> None:
    """The hop behind it answers pings, so it is not the hop."""

    async def work() -> None:
        async with swarm.running(SPANS), ring(swarm) as session:

            async def nothing(*_args: object, **_options: object) -> None:
                pass

            def before(token: int) -> None:
                if token == 5:
                    (live,) = swarm.peers[0].server._live
                    live._onward._edge.forward = nothing  # type: ignore[union-attr, method-assign]

            assert await answer(ends, session, before) == undisturbed
            assert session.statistics.recoveries == []
            assert not session._machine.is_linked(session._machine.hops[0][0])

    run_async(work())


def test_a_hop_that_hangs_is_replaced(
    swarm: LocalSwarm, ends: ModelEnds, undisturbed: list[int], run_async: Runner
) -> None:
    async def work() -> None:
        async with swarm.running(SPANS + SPANS), ring(swarm) as session:
            victim = swarm.peers[1]

            async def never(*_args: object, **_options: object) -> object:
                return await asyncio.get_running_loop().create_future()

            def before(token: int) -> None:
                if token == 10:
                    victim.engine.step = never  # type: ignore[method-assign, assignment]
                    for connection in victim.connections:  # not even a pong
                        connection.receive = never  # type: ignore[method-assign, assignment]

            assert await answer(ends, session, before) == undisturbed
            (recovery,) = session.statistics.recoveries
            assert "no answer within" in recovery.reason
            assert recovery.lost.span == SPANS[1]

    run_async(work())


def test_a_hop_that_feeds_the_next_one_nonsense_does_not_get_it_replaced(
    swarm: LocalSwarm, ends: ModelEnds, undisturbed: list[int], run_async: Runner
) -> None:
    """What it shows to the client is right, so the client sends that itself."""

    async def work() -> None:
        async with swarm.running(SPANS), ring(swarm) as session:
            (live,) = swarm.peers[0].server._live
            edge = live._onward._edge
            assert edge is not None
            forward, times = edge.forward, 0

            async def nonsense(step: Step, tensor: Any, data: memoryview, **options: Any) -> None:
                nonlocal times
                times += 1
                await forward(step, tensor, memoryview(b"\xff" * len(data)), **options)

            edge.forward = nonsense  # type: ignore[method-assign]
            assert await answer(ends, session) == undisturbed
            assert times == 1
            assert session.statistics.recoveries == []

    run_async(work())


def test_a_prefill_in_many_chunks_flows_from_hop_to_hop(
    swarm: LocalSwarm, ends: ModelEnds, undisturbed: list[int], run_async: Runner
) -> None:
    async def work() -> None:
        async with swarm.running(SPANS), ring(swarm) as session:
            session.config = SessionConfig(chunk_tokens=2)
            engine = swarm.peers[0].engine
            steps: list[int] = []
            original = engine.step

            async def noting(session_: Any, start: int, *args: Any, **options: Any) -> StepResult:
                steps.append(start)
                return await original(session_, start, *args, **options)

            engine.step = noting  # type: ignore[method-assign]
            assert await answer(ends, session) == undisturbed
            assert steps[:5] == [0, 2, 4, 6, 8]
            assert session.statistics.forwarded > 2 * (NEW_TOKENS + 16)

    run_async(work())


def test_a_step_that_was_cancelled_on_its_way_is_repeated(
    swarm: LocalSwarm, ends: ModelEnds, undisturbed: list[int], run_async: Runner
) -> None:
    async def work() -> None:
        async with swarm.running(SPANS), ring(swarm) as session:
            whole = session.step

            async def interrupted(start: int, data: bytes, tokens: int) -> bytes:
                first = asyncio.ensure_future(whole(start, data, tokens))
                await asyncio.sleep(0)
                first.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await first
                return await whole(start, data, tokens)

            session.step = interrupted  # type: ignore[method-assign]
            assert await answer(ends, session) == undisturbed
            assert session.statistics.recoveries == [], "a cancel costs no hop"

    run_async(work())


def test_a_peer_that_finds_no_next_hop_says_so(
    swarm: LocalSwarm, ends: ModelEnds, undisturbed: list[int], run_async: Runner
) -> None:
    async def work() -> None:
        async with swarm.running(SPANS):
            for peer in swarm.peers:
                peer.peers = ()
            swarm.router.route = "ring"
            async with await swarm.session(swarm.peers, max_length=64) as session:
                await session.open_links()
                assert not await session.wait_for_links(10.0)
                assert await answer(ends, session) == undisturbed
                assert session.statistics.forwarded == 0

    run_async(work())


@pytest.mark.parametrize("dying", [None, 0, 1])
def test_what_entered_each_hop_is_waited_for(
    dying: int | None, swarm: LocalSwarm, ends: ModelEnds, undisturbed: list[int], run_async: Runner
) -> None:
    """The answer leaves the last hop before the copies of the others are here, and some of those
    die with their hop: then they are made again."""

    async def work() -> None:
        async with swarm.running(SPANS + SPANS):
            async with ring(swarm, route="hub") as session:
                assert await answer(ends, session) == undisturbed
                length = len(session._bounds.inputs[session._machine.hops[0][0]])
                expected = dict(await session.boundaries(0, length))
            async with ring(swarm) as session:
                assert await answer(ends, session) == undisturbed
                if dying is not None:
                    swarm.peers[dying].kill()
                found = dict(await session.boundaries(0, length))
                assert found.keys() == expected.keys()
                for block, raw in found.items():
                    ours, theirs = (
                        torch.frombuffer(bytearray(one), dtype=torch.float32)
                        for one in (raw, expected[block])
                    )
                    assert torch.allclose(ours, theirs, atol=1e-5), block
                with pytest.raises(IndexError):
                    await session.boundaries(0, length + 1)

    run_async(work())
