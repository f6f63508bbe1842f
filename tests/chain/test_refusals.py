"""Peers that refuse, reset, are full or lie: the answer goes on, or one error gives the reason."""

from __future__ import annotations

import asyncio
import dataclasses
from typing import Any

import pytest

from swarmd.client import hop_link
from swarmd.compute.ends import ModelEnds
from swarmd.errors import (
    BadTensor,
    Busy,
    DeadlineExceeded,
    InternalError,
    NotFinite,
    PositionOutOfRange,
    ReplayExhausted,
    SessionTooLong,
    SwarmdError,
    UnknownSession,
)
from tests.chain.answers import SPANS, answer
from tests.conftest import Runner
from tests.local_swarm import LocalPeer, LocalSwarm


def refusing(peer: LocalPeer, error: SwarmdError, *, times: int | None = None) -> None:
    """Let a peer refuse its next steps, without end if `times` is None."""
    original, left = peer.engine.step, times

    async def step(*args: Any, **kwargs: Any) -> object:
        nonlocal left
        if left is None or left > 0:
            left = None if left is None else left - 1
            raise error
        return await original(*args, **kwargs)

    peer.engine.step = step  # type: ignore[method-assign, assignment]


def poisoned(peer: LocalPeer) -> None:
    """Let a peer's outputs hold a value that is not finite."""
    original = peer.engine.step

    async def step(*args: Any, **kwargs: Any) -> object:
        result = await original(*args, **kwargs)
        hidden = result.hidden.clone()
        hidden[0, -1, 3] = float("nan")
        return dataclasses.replace(result, hidden=hidden)

    peer.engine.step = step  # type: ignore[method-assign, assignment]


def patient(swarm: LocalSwarm) -> None:
    """Make the pauses of a busy peer short."""
    swarm.router.config = dataclasses.replace(
        swarm.router.config, shortest_pause=0.001, longest_pause=0.001
    )


@pytest.mark.parametrize(
    "error",
    [BadTensor("no such thing"), UnknownSession("?"), DeadlineExceeded("late"), InternalError("x")],
    ids=lambda error: error.code,
)
def test_one_peer_that_refuses_is_replaced(
    error: SwarmdError,
    swarm: LocalSwarm,
    ends: ModelEnds,
    undisturbed: list[int],
    run_async: Runner,
) -> None:
    async def work() -> None:
        async with swarm.running(SPANS + SPANS):
            refuser = swarm.peers[1]

            def refuse(token: int) -> None:
                if token == 7:
                    refusing(refuser, error)

            async with await swarm.session(swarm.peers[:3], max_length=64) as session:
                assert await answer(ends, session, refuse) == undisturbed
                (recovery,) = session.statistics.recoveries
                assert recovery.by[0].peer.peer_id == swarm.peers[4].info.peer_id
            banned = swarm.router.health.banned(swarm.router.clock.monotonic())
            assert banned == ({refuser.info.peer_id} if error.blames_peer else frozenset())

    run_async(work())


@pytest.mark.parametrize("spares", [0, 1, 3])
def test_a_request_that_is_wrong_stops_when_a_second_peer_says_so(
    spares: int, swarm: LocalSwarm, run_async: Runner
) -> None:
    """A step beyond the session's limit: nobody is banned, and not everybody is asked."""

    async def work() -> None:
        async with swarm.running(SPANS * (1 + spares)):
            session = await swarm.session(swarm.peers[:3], max_length=8)
            async with session:
                with pytest.raises(PositionOutOfRange, match="opened for 8"):
                    await session.step(0, bytes(9 * 32 * 4), 9)
                assert len(session.statistics.recoveries) == min(spares, 1)
            assert not swarm.router.health.banned(swarm.router.clock.monotonic())

    run_async(work())


def test_a_peer_that_returns_nan_is_replaced(
    swarm: LocalSwarm, ends: ModelEnds, undisturbed: list[int], run_async: Runner
) -> None:
    async def work() -> None:
        async with swarm.running(SPANS + SPANS):
            poisoned(swarm.peers[1])
            async with await swarm.session(swarm.peers[:3], max_length=64) as session:
                assert await answer(ends, session) == undisturbed
            (recovery,) = session.statistics.recoveries
            assert "not finite" in recovery.reason

    run_async(work())


def test_an_overflow_that_two_peers_see_is_the_models(
    swarm: LocalSwarm, ends: ModelEnds, run_async: Runner
) -> None:
    async def work() -> None:
        async with swarm.running(SPANS * 3):
            for peer in swarm.peers[1::3]:
                poisoned(peer)
            async with await swarm.session(swarm.peers[:3], max_length=64) as session:
                with pytest.raises(NotFinite, match="float32"):
                    await answer(ends, session)

    run_async(work())


def test_a_reset_connection_does_not_lose_the_only_holder(
    swarm: LocalSwarm, ends: ModelEnds, undisturbed: list[int], run_async: Runner
) -> None:
    """A ban is no reason to end an answer: without a spare and without `--wait`."""

    async def work() -> None:
        async with swarm.running(SPANS):

            def reset(token: int) -> None:
                if token in (5, 6, 14):
                    for connection in swarm.peers[1].connections:
                        connection.abort()

            async with await swarm.session(swarm.peers, max_length=64) as session:
                assert await answer(ends, session, reset) == undisturbed
                assert len(session.statistics.recoveries) == 3

    run_async(work())


def test_a_full_peer_is_asked_again_until_it_has_room(
    swarm: LocalSwarm, ends: ModelEnds, undisturbed: list[int], run_async: Runner
) -> None:
    async def work() -> None:
        async with swarm.running(SPANS):
            patient(swarm)
            refusing(swarm.peers[1], Busy("no room", retry_after=0.0), times=40)
            async with await swarm.session(swarm.peers, max_length=64) as session:
                assert await answer(ends, session) == undisturbed

    run_async(work())


def test_a_peer_that_stays_full_ends_in_one_error_with_the_story(
    swarm: LocalSwarm, ends: ModelEnds, run_async: Runner
) -> None:
    async def work() -> None:
        async with swarm.running(SPANS):
            patient(swarm)
            refusing(swarm.peers[1], Busy("no room"))
            session = await swarm.session(swarm.peers, max_length=64)
            session._repair._losses._patience = 0.2
            async with session:
                with pytest.raises(ReplayExhausted, match=r"too long(.|\n)*no room"):
                    await answer(ends, session)

    run_async(work())


def test_peers_that_keep_failing_end_in_one_error_with_the_story(
    swarm: LocalSwarm, ends: ModelEnds, run_async: Runner
) -> None:
    async def work() -> None:
        async with swarm.running([*SPANS, *[SPANS[1]] * 17]):
            for peer in [swarm.peers[1], *swarm.peers[3:]]:
                refusing(peer, InternalError("out of order"))
            async with await swarm.session(swarm.peers[:3], max_length=64) as session:
                with pytest.raises(ReplayExhausted, match=r"too many(.|\n)*out of order"):
                    await answer(ends, session)

    run_async(work())


def test_a_session_longer_than_a_peers_cache_goes_to_another(
    swarm: LocalSwarm, ends: ModelEnds, undisturbed: list[int], run_async: Runner
) -> None:
    async def work() -> None:
        async with swarm.running(SPANS + SPANS):
            swarm.peers[1].engine.arena.tokens = 32
            async with await swarm.session(swarm.peers[:3], max_length=64) as session:
                assert await answer(ends, session) == undisturbed
                assert session.chain[1].peer.peer_id == swarm.peers[4].info.peer_id
        async with swarm.running(SPANS, kv_tokens=32):
            async with await swarm.session(swarm.peers, max_length=64) as session:
                with pytest.raises(SessionTooLong, match="32"):
                    await answer(ends, session)

    run_async(work())


def test_a_cancelled_step_can_be_repeated(
    swarm: LocalSwarm, ends: ModelEnds, undisturbed: list[int], run_async: Runner
) -> None:
    """Nobody is banned for it, and no link that was cut is used again."""

    async def work() -> None:
        async with swarm.running(SPANS):
            for victim in swarm.peers:
                async with await swarm.session(swarm.peers, max_length=64) as session:
                    started, original = asyncio.Event(), victim.engine.step

                    async def slow(
                        *_: object, started: asyncio.Event = started, **__: object
                    ) -> object:
                        started.set()
                        return await asyncio.get_running_loop().create_future()

                    victim.engine.step = slow  # type: ignore[method-assign, assignment]
                    first = asyncio.ensure_future(answer(ends, session))
                    await started.wait()
                    first.cancel()
                    with pytest.raises(asyncio.CancelledError):
                        await first
                    victim.engine.step = original  # type: ignore[method-assign]
                    assert await answer(ends, session) == undisturbed
            assert not swarm.router.health.banned(swarm.router.clock.monotonic())

    run_async(work())


def test_a_session_that_waited_too_long_is_opened_anew(
    swarm: LocalSwarm,
    ends: ModelEnds,
    undisturbed: list[int],
    run_async: Runner,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(hop_link, "IDLE_SECONDS", 0.0)

    async def work() -> None:
        async with swarm.running(SPANS):
            async with await swarm.session(swarm.peers, max_length=64) as session:
                first = await answer(ends, session)
                for peer in swarm.peers:
                    for connection in peer.connections:
                        connection.abort()
                await asyncio.sleep(0.05)
                assert await answer(ends, session) == first == undisturbed
            assert not swarm.router.health.banned(swarm.router.clock.monotonic())

    run_async(work())
