"""A peer that is full says so, and many strangers at once harm nobody."""

from __future__ import annotations

import asyncio
import random

from swarmd.errors import Busy, SessionTooLong
from swarmd.node.limits import SessionLimits
from swarmd.wire.messages import Close, Closed, Open, Output
from tests.conftest import Runner
from tests.families import N_BLOCKS
from tests.node.hostile_cases import IDLE, SCANS, STEPS
from tests.node.hostile_client import ID, Scene, Stage, hidden, step, until


def test_too_many_connections(stage: Stage, run_async: Runner) -> None:
    async def work() -> None:
        async with stage(limits=SessionLimits(connections=2)) as scene:
            async with scene.stranger() as second:
                await second.greet()
                async with scene.stranger() as third:
                    message = await third.refused(Busy)
                    assert message.fatal
                    assert message.to_error().retry_after is not None
                    await third.ended()
                await second.open()
                await second.is_served()
            await until(lambda: scene.peer.server.quotas.open_connections == 1)
            async with scene.stranger() as again:
                await again.greet()

    run_async(work())


def test_a_full_cache_is_busy_and_reserves_nothing(stage: Stage, run_async: Runner) -> None:
    async def work() -> None:
        async with stage(kv_tokens=416) as scene:
            async with scene.stranger() as first, scene.stranger() as second:
                for stranger in (first, second):
                    await stranger.greet()
                    await stranger.open(max_length=256)
                free = scene.peer.engine.kv_free
                first.send(step(tokens=200), payload=hidden(200, 1))
                assert (await first.expect(Output)).kv_free == free - 224, "whole pages"
                for number in (1, 2, 3):
                    second.send(step(0, number, tokens=200), payload=hidden(200, 2))
                    refusal = await second.refused(Busy)
                    assert refusal.to_error().retry_after == 1.0
                    assert scene.peer.engine.kv_free == free - 224
                first.send(Close(ID))
                await first.expect(Closed)
                second.send(step(0, 4, tokens=200), payload=hidden(200, 2))
                assert (await second.expect(Output)).kv_free == free - 224

    run_async(work())


def test_a_session_longer_than_the_whole_cache(stage: Stage, run_async: Runner) -> None:
    async def work() -> None:
        async with stage(kv_tokens=192) as scene, scene.stranger() as stranger:
            await stranger.greet()
            for start in (0, 3):  # the cache counts tokens a block, so the span does not matter
                stranger.send(Open(ID, start, N_BLOCKS, 193))
                refusal = await stranger.refused(SessionTooLong)
                assert not refusal.fatal
                assert "193" in refusal.message
                assert "192" in refusal.message
            await stranger.open(max_length=192)
            stranger.send(Close(ID))
            await stranger.expect(Closed)
            await stranger.open(max_length=100)
            await stranger.is_served()

    run_async(work())


def test_many_strangers_at_once(stage: Stage, run_either: Runner) -> None:
    """All of the above together, while the healthy session is at work."""

    async def one(scene: Scene, number: int) -> None:
        rng = random.Random(number)
        async with scene.stranger() as stranger:
            if rng.random() < 0.3:
                stranger.writer.write(rng.choice(list(SCANS.values()))[0])
                return
            await stranger.greet()
            if rng.random() < 0.3:
                header, payload, _ = rng.choice(list(IDLE.values()))
                stranger.send_raw(header, payload)
                return
            await stranger.open(max_length=10)
            message, payload, _ = rng.choice(list(STEPS.values()))
            stranger.send(message, payload=payload)
            if rng.random() < 0.5:
                await stranger.read()

    async def work() -> None:
        async with stage() as scene:
            crowd = [asyncio.ensure_future(one(scene, number)) for number in range(40)]
            while not all(task.done() for task in crowd):
                await scene.session.step(7, hidden(1, 1), 1)
                await asyncio.wait(crowd, timeout=0.01)
            await asyncio.gather(*crowd)

    run_either(work())
