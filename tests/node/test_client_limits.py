"""What one client may take of a real node, by its address; 127.0.0.x are different addresses."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator
from typing import Any

import pytest

from swarmd.errors import Busy, SessionTooLong
from swarmd.node.limits import SessionLimits
from swarmd.wire.messages import Close, Closed, Open, Opened, Output
from tests.conftest import Runner
from tests.families import N_BLOCKS
from tests.node.hostile_client import (
    ID,
    Gate,
    Scene,
    Stage,
    Stranger,
    hidden,
    step,
    until,
)

pytestmark = pytest.mark.skipif(
    not hasattr(socket, "AF_PACKET"), reason="other systems have no 127.0.0.2"
)


@contextlib.asynccontextmanager
async def caller(scene: Scene, last: int) -> AsyncIterator[Stranger]:
    """A stranger from 127.0.0.`last`."""
    address = scene.peer.plain_address
    reader, writer = await asyncio.open_connection(
        address.host, address.port, local_addr=(f"127.0.0.{last}", 0)
    )
    try:
        yield Stranger(reader, writer)
    finally:
        writer.transport.abort()
        with contextlib.suppress(OSError):
            await writer.wait_closed()


def limits(**kwargs: Any) -> SessionLimits:
    return SessionLimits(limit_loopback=True, **kwargs)


async def is_busy(stranger: Stranger, *, fatal: bool) -> None:
    message = await stranger.refused(Busy)
    assert message.fatal is fatal
    assert message.to_error().retry_after is not None


def test_connections_of_an_address(stage: Stage, run_async: Runner) -> None:
    async def work() -> None:
        async with stage(limits=limits(client_connections=2, handshakes=1000.0)) as scene:
            async with caller(scene, 2) as one, caller(scene, 2) as two:
                await one.greet()
                await two.greet()
                async with caller(scene, 2) as three:
                    await is_busy(three, fatal=True)
                    await three.ended()
                async with caller(scene, 3) as neighbour:
                    await neighbour.greet()
                await one.open()
                await one.is_served()
            await until(lambda: scene.peer.server.quotas.open_connections == 1)
            async with caller(scene, 2) as again:
                await again.greet()

    run_async(work())


def test_handshakes_of_an_address(stage: Stage, run_async: Runner) -> None:
    async def work() -> None:
        async with stage(limits=limits(client_connections=3, handshakes=0.01)) as scene:
            for _ in range(3):
                async with caller(scene, 2) as stranger:
                    await stranger.greet()
            async with caller(scene, 2) as stranger:
                message = await stranger.refused(Busy)
                assert 50 < (message.to_error().retry_after or 0) <= 100
            async with caller(scene, 3) as neighbour:
                await neighbour.greet()

    run_async(work())


def test_half_open_connections_do_not_lock_anybody_out(stage: Stage, run_async: Runner) -> None:
    async def work() -> None:
        async with (
            stage(limits=limits(connections=5)) as scene,
            contextlib.AsyncExitStack() as all_,
        ):
            silent = [await all_.enter_async_context(caller(scene, n)) for n in range(2, 6)]
            await until(lambda: scene.peer.server.quotas.open_connections == 5)
            async with caller(scene, 20) as client:
                await client.greet()
                await silent[0].ended()
                await client.open()
                await client.is_served()
            assert scene.peer.server.quotas.half_open == 3

    run_async(work())


def test_sessions_of_an_address(stage: Stage, run_async: Runner) -> None:
    async def work() -> None:
        async with stage(limits=limits(client_sessions=1)) as scene:
            async with caller(scene, 2) as one, caller(scene, 2) as two:
                await one.greet()
                await two.greet()
                await one.open()
                free = scene.peer.engine.kv_free
                two.send(Open(ID, 0, N_BLOCKS, 64))
                await is_busy(two, fatal=False)
                assert scene.peer.engine.kv_free == free
                async with caller(scene, 3) as neighbour:
                    await neighbour.greet()
                    await neighbour.open()
                one.writer.transport.abort()
                await until(lambda: scene.peer.server.open_sessions == 1)
                two.send(Open(ID, 0, N_BLOCKS, 64))
                await two.expect(Opened)
                await two.is_served()

    run_async(work())


def test_cache_room_of_an_address(stage: Stage, run_async: Runner) -> None:
    """Of 384 tokens one client may fill half, in any number of sessions."""

    async def work() -> None:
        async with stage(limits=limits(kv_share=0.5), kv_tokens=384) as scene:
            async with caller(scene, 2) as one, caller(scene, 2) as two, caller(scene, 3) as other:
                for stranger in (one, two, other):
                    await stranger.greet()
                one.send(Open(ID, 0, N_BLOCKS, 193))
                assert "192" in (await one.refused(SessionTooLong)).message
                for stranger in (one, two, other):
                    await stranger.open(max_length=150)
                one.send(step(tokens=100), payload=hidden(100, 1))
                await one.expect(Output)
                two.send(step(tokens=70), payload=hidden(70, 2))
                await is_busy(two, fatal=False)
                other.send(step(tokens=100), payload=hidden(100, 1))
                await other.expect(Output)
                one.send(Close(ID))
                await one.expect(Closed)
                two.send(step(0, 2, tokens=70), payload=hidden(70, 2))
                await two.expect(Output)

    run_async(work())


def test_steps_of_an_address_are_refused_in_order(stage: Stage, run_async: Runner) -> None:
    async def work() -> None:
        async with stage(limits=limits(client_steps=2)) as scene, caller(scene, 2) as one:
            gate = Gate(scene)
            await one.greet()
            await one.open(max_length=63)
            for number in range(4):
                one.send(step(0, number), payload=hidden(1, number))
            served = scene.peer.connections
            await until(lambda: max(link.protocol.steps_under_way for link in served) == 4)
            assert scene.peer.server.quotas.steps.held(("net4", 0x7F000002)) == 2
            gate.open.set()
            for number in range(2):
                assert (await one.expect(Output)).step == number
            for number in (2, 3):
                message = await one.refused(Busy)
                assert (message.step, message.fatal) == (number, False)
            await one.is_served()

    run_async(work())


def test_bytes_held_by_the_whole_node(stage: Stage, run_async: Runner) -> None:
    async def work() -> None:
        held = 20 * 32 * 4
        async with stage(limits=limits(payload_bytes=held)) as scene:
            async with caller(scene, 2) as one, caller(scene, 3) as two:
                gate = Gate(scene)
                for stranger in (one, two):
                    await stranger.greet()
                    await stranger.open(max_length=63)
                one.send(step(tokens=20), payload=hidden(20, 1))
                await until(lambda: gate.waiting == 1)
                two.send(step(tokens=1), payload=hidden(1, 1))
                await is_busy(two, fatal=False)
                gate.open.set()
                await one.expect(Output)
                await until(lambda: scene.peer.server.quotas.payload_bytes == 0)
                await two.is_served()

    run_async(work())


@pytest.mark.parametrize("way", ["bandwidth_in", "bandwidth_out"])
def test_bandwidth_of_an_address(way: str, stage: Stage, run_async: Runner) -> None:
    """Six steps of 2,560 bytes at 8 kB a second, after a burst of 8 kB."""

    async def work() -> None:
        loop = asyncio.get_running_loop()
        async with stage(limits=limits(**{way: 8000.0})) as scene, caller(scene, 2) as one:
            await one.greet()
            await one.open()
            began = loop.time()
            for number in range(6):
                one.send(step(0, number, tokens=20), payload=hidden(20, 1))
            for number in range(6):
                assert (await one.expect(Output)).step == number
            # 15,360 bytes less the burst of 8,000; the delay of the last one is not seen
            assert loop.time() - began > (5 * 2560 - 8000) / 8000 - 0.05

    run_async(work())


def test_loopback_is_not_limited_by_default(stage: Stage, run_async: Runner) -> None:
    async def work() -> None:
        tight = SessionLimits(client_connections=1, client_sessions=1, handshakes=0.01)
        async with stage(limits=tight) as scene:
            async with caller(scene, 2) as one, caller(scene, 2) as two:
                for stranger in (one, two):
                    await stranger.greet()
                    await stranger.open()
                    await stranger.is_served()

    run_async(work())
