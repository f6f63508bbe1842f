"""Steps that wait at the engine's door: how many, in which order, how long, and what fails."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from swarmd.errors import BadRequest, DeadlineExceeded, InternalError
from swarmd.wire.messages import Close, Closed, Output, Step
from swarmd.wire.protocol import MAX_STEPS_UNDER_WAY
from swarmd.wire.tensors import TensorMeta
from tests.conftest import Runner
from tests.node.hostile_client import HIDDEN, ID, OTHER_ID, Gate, Stage, hidden, step, until


def test_more_steps_under_way_than_are_allowed(stage: Stage, run_async: Runner) -> None:
    async def work() -> None:
        async with stage() as scene, scene.stranger() as stranger:
            gate = Gate(scene)
            await stranger.greet()
            await stranger.open(max_length=100)
            for number in range(MAX_STEPS_UNDER_WAY + 1):
                stranger.send(step(0, number), payload=hidden(1, 1))
            await stranger.refused(BadRequest)
            await stranger.ended()
            assert gate.waiting == 1, "one step of a session is at the engine at a time"

    run_async(work())


def test_steps_that_wait_are_answered_in_order(stage: Stage, run_async: Runner) -> None:
    async def work() -> None:
        async with stage() as scene, scene.stranger() as stranger:
            gate = Gate(scene)
            await stranger.greet()
            await stranger.open(max_length=100)
            for number in range(MAX_STEPS_UNDER_WAY):
                stranger.send(step(number, number), payload=hidden(1, number))
            await until(lambda: gate.waiting == 1)
            gate.open.set()
            for number in range(MAX_STEPS_UNDER_WAY):
                assert (await stranger.expect(Output)).step == number

    run_async(work())


def test_a_deadline_that_passes_at_the_door(stage: Stage, run_async: Runner) -> None:
    async def work() -> None:
        async with stage() as scene, scene.stranger() as stranger:
            gate = Gate(scene)
            await stranger.greet()
            await stranger.open(max_length=100)
            late = Step(ID, 3, 0, 1, TensorMeta("float32", (1, 1, HIDDEN)))
            stranger.send(late, payload=hidden(1, 1))
            await until(lambda: gate.waiting == 1)
            passed = asyncio.get_running_loop().time() + 0.002
            await until(lambda: asyncio.get_running_loop().time() > passed)
            gate.open.set()
            assert (await stranger.refused(DeadlineExceeded)).step == 3
            await stranger.is_served()

    run_async(work())


def test_a_bug_in_one_step_is_that_steps_trouble(
    stage: Stage, run_async: Runner, caplog: pytest.LogCaptureFixture
) -> None:
    async def work() -> None:
        async with stage() as scene, scene.stranger() as stranger:
            await stranger.greet()
            await stranger.open(max_length=100)
            original = scene.peer.engine.step

            async def buggy(session: Any, start: int, hidden: Any, **kwargs: Any) -> Any:
                if session.cache.limit == 100 and start == 1:
                    raise ZeroDivisionError("secret of the house")
                return await original(session, start, hidden, **kwargs)

            scene.peer.engine.step = buggy  # type: ignore[method-assign]
            await stranger.is_served()
            stranger.send(step(1), payload=hidden(1, 1))
            refusal = await stranger.refused(InternalError)
            assert "secret" not in refusal.message
            await stranger.is_served()
            assert "ZeroDivisionError" in caplog.text, "our bug is told at home"
            caplog.clear()

    run_async(work())


def test_a_close_while_steps_are_under_way(stage: Stage, run_async: Runner) -> None:
    async def work() -> None:
        async with stage() as scene, scene.stranger() as stranger:
            gate = Gate(scene)
            await stranger.greet()
            await stranger.open(max_length=100)
            stranger.send(step(0, 1), payload=hidden(1, 1))
            stranger.send(step(1, 2), payload=hidden(1, 1))
            await until(lambda: gate.waiting == 1)
            stranger.send(Close(ID))
            await stranger.expect(Closed)
            assert gate.waiting == 1
            gate.open.set()
            await stranger.open(session=OTHER_ID, max_length=90)

    run_async(work())
