"""Back-pressure: who sends faster than the engine runs is held back, and can still leave."""

from __future__ import annotations

import asyncio

import pytest

from swarmd.node.limits import SessionLimits
from swarmd.wire.messages import Close, Closed, Output
from tests.conftest import Runner
from tests.node.hostile_client import ID, Gate, Stage, hidden, small_send_buffers, step, until


def test_large_steps_wait_at_the_client(stage: Stage, run_either: Runner) -> None:
    """A client that sends without reading is held back, and loses nothing by it."""

    async def work() -> None:
        steps, tokens = 40, 256
        limits = SessionLimits(step_tokens=tokens)
        async with stage(limits=limits) as scene, scene.stranger() as stranger:
            gate = Gate(scene)
            server = scene.peer.server
            most = server.frame_limits().payload
            await stranger.greet()
            await stranger.open(max_length=tokens)
            payload = hidden(tokens, 1)
            for number in range(steps):
                stranger.send(step(0, number, tokens=tokens), payload=payload)
            await until(lambda: gate.waiting == 1 and server.queued_bytes > most)
            (connection,) = [c for c in scene.peer.connections if c.waiting_bytes]
            await until(lambda: connection.waiting_bytes > most)
            seen: list[int] = []

            def note() -> None:
                seen.append(max(server.queued_bytes, connection.waiting_bytes))

            gate.open.set()
            for number in range(steps):
                assert (await stranger.expect(Output)).step == number
                note()
            assert max(seen) <= 2 * most
            assert server.queued_bytes == connection.waiting_bytes == 0
            stranger.send(Close(ID))
            await stranger.expect(Closed)

    run_either(work())


@pytest.mark.parametrize("end", ["cut", "refused", "deaf"])
def test_a_session_that_is_held_back_ends_all_the_same(
    end: str, stage: Stage, run_either: Runner
) -> None:
    async def work() -> None:
        tokens = 256
        limits = SessionLimits(step_tokens=tokens, send_timeout=0.2 if end == "deaf" else 60.0)
        async with stage(limits=limits) as scene:
            async with scene.stranger(deaf=end == "deaf") as stranger:
                gate = Gate(scene)
                server = scene.peer.server
                await stranger.greet()
                await stranger.open(max_length=tokens)
                small_send_buffers(scene.peer)
                for number in range(40):
                    again = step(0, number, tokens=tokens)
                    stranger.send(again, payload=hidden(tokens, 1))
                await until(lambda: server.queued_bytes > server.frame_limits().payload)
                if end == "refused":  # the server's side ends it: the daemon stops
                    for connection in scene.peer.connections:
                        if connection.waiting_bytes:
                            connection.abort()
                if end == "deaf":
                    gate.open.set()
                    await until(lambda: server.open_sessions == 1)
            gate.open.set()
            await until(lambda: server.open_sessions == 1)
            assert server.queued_bytes == 0

    run_either(work())


def test_a_held_back_client_is_not_silent(stage: Stage, run_async: Runner) -> None:
    """The time in which the server does not read is no silence of the client."""

    async def work() -> None:
        tokens = 256
        limits = SessionLimits(step_tokens=tokens, idle_timeout=1.0)
        async with stage(limits=limits) as scene, scene.stranger() as stranger:
            gate = Gate(scene)
            server = scene.peer.server
            await stranger.greet()
            await stranger.open(max_length=tokens)
            for number in range(10):
                stranger.send(step(0, number, tokens=tokens), payload=hidden(tokens, 1))
            await until(lambda: server.queued_bytes > server.frame_limits().payload)
            passed = asyncio.get_running_loop().time() + 1.2
            while asyncio.get_running_loop().time() < passed:
                await scene.session.step(7, hidden(1, 1), 1)
                await asyncio.sleep(0.05)
            gate.open.set()
            for number in range(10):
                assert (await stranger.expect(Output)).step == number
                await scene.session.step(7, hidden(1, 1), 1)

    run_async(work())
