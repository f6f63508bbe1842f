"""Clients that are cut off, fall silent or stop reading: their session ends and frees its cache."""

from __future__ import annotations

import asyncio
import contextlib

import pytest

from swarmd.node.limits import SessionLimits
from swarmd.wire.frames import encode_preamble
from swarmd.wire.messages import Output, Ping, encode_header
from tests.conftest import Runner
from tests.node.hostile_client import Gate, Stage, hidden, small_send_buffers, step, until


@pytest.mark.parametrize("keep", [1, 7, 8, 20, -1])
@pytest.mark.parametrize("opened", [False, True])
def test_a_stream_that_ends_in_mid_frame(
    keep: int, opened: bool, stage: Stage, run_async: Runner
) -> None:
    async def work() -> None:
        async with stage() as scene, scene.stranger() as stranger:
            await stranger.greet()
            if opened:
                await stranger.open()
                await stranger.is_served()
            whole = encode_preamble(encode_header(step()), 128) + bytes(128)
            stranger.writer.write(whole[:keep])
            stranger.writer.write_eof()
            await stranger.ended()

    run_async(work())


def test_a_connection_cut_during_a_step(stage: Stage, run_either: Runner) -> None:
    async def work() -> None:
        async with stage() as scene:
            gate = Gate(scene)
            async with scene.stranger() as stranger:
                await stranger.greet()
                await stranger.open(max_length=100)
                stranger.send(step(tokens=50), payload=hidden(50, 1))
                await until(lambda: gate.waiting == 1)
            await until(lambda: scene.peer.server.open_sessions == 1)
            gate.open.set()

    run_either(work())


def test_a_connection_cut_while_the_engine_runs_its_step(stage: Stage, run_async: Runner) -> None:
    async def work() -> None:
        async with stage() as scene:
            for _ in range(5):
                async with scene.stranger() as stranger:
                    await stranger.greet()
                    await stranger.open(max_length=256)
                    stranger.send(step(tokens=256), payload=hidden(256, 1))
                    await until(lambda: scene.peer.engine.queue_length > 0)

    run_async(work())


def test_a_session_whose_client_went_silent(stage: Stage, run_async: Runner) -> None:
    async def work() -> None:
        async with stage(limits=SessionLimits(idle_timeout=1.0)) as scene:
            async with scene.stranger() as in_session, scene.stranger() as idle:
                await idle.greet()
                await in_session.greet()
                await in_session.open(max_length=100)
                in_session.send(step(), payload=hidden(1, 1))
                await in_session.expect(Output)
                assert scene.peer.server.open_sessions == 2
                ends = [asyncio.ensure_future(s.ended()) for s in (in_session, idle)]
                while not all(end.done() for end in ends):  # who speaks is not closed
                    await scene.session.step(7, hidden(1, 1), 1)
                    await asyncio.wait(ends, timeout=0.05)
                await asyncio.gather(*ends)
                await until(lambda: scene.peer.server.open_sessions == 1)

    run_async(work())


def test_a_client_that_does_not_read_its_outputs(stage: Stage, run_either: Runner) -> None:
    async def work() -> None:
        async with stage(limits=SessionLimits(send_timeout=0.1)) as scene:
            async with scene.stranger(deaf=True) as stranger:
                await stranger.greet()
                await stranger.open(max_length=256)
                small_send_buffers(scene.peer)
                for number in range(20):
                    stranger.send(step(0, number, tokens=256), payload=hidden(256, 1))
                await until(lambda: scene.peer.server.open_sessions == 1)

    run_either(work())


@pytest.mark.parametrize("opened", [False, True])
def test_a_client_that_pings_and_never_reads(
    opened: bool, stage: Stage, run_either: Runner
) -> None:
    async def work() -> None:
        async with stage(limits=SessionLimits(send_timeout=0.1)) as scene:
            async with scene.stranger(deaf=True) as stranger:
                await stranger.greet()
                if opened:
                    await stranger.open(max_length=100)
                small_send_buffers(scene.peer)
                ping = encode_preamble(encode_header(Ping(1)), 0)
                stranger.writer.write(ping * 100_000)
                await until(lambda: scene.peer.server.quotas.open_connections == 1)

    run_either(work())


def test_a_client_that_sends_bad_steps_and_never_reads(stage: Stage, run_async: Runner) -> None:
    async def work() -> None:
        async with stage(limits=SessionLimits(send_timeout=0.1)) as scene:
            async with scene.stranger(deaf=True) as stranger:
                await stranger.greet()
                await stranger.open(max_length=100)
                small_send_buffers(scene.peer)

                async def flood() -> None:
                    with contextlib.suppress(OSError):
                        number = 0
                        while True:
                            for _ in range(16):  # few enough to be answered before the next
                                number += 1
                                stranger.send(step(5, number), payload=hidden(1, 1))
                            refusals = scene.peer.server.statistics.refusals
                            await stranger.writer.drain()
                            with contextlib.suppress(TimeoutError):
                                await until(
                                    lambda n=refusals: (  # type: ignore[misc]
                                        scene.peer.server.statistics.refusals >= n + 16
                                    ),
                                    seconds=0.5,
                                )

                flooding = asyncio.ensure_future(flood())
                await until(lambda: scene.peer.server.quotas.open_connections == 1)
                flooding.cancel()
                await asyncio.wait([flooding])

    run_async(work())
