"""Wrong messages and tensors after the greeting: typed, and no harm to anybody's session."""

from __future__ import annotations

import pytest

from swarmd.errors import Draining
from swarmd.node.limits import SessionLimits
from swarmd.wire.messages import Close, Closed, Open, Output, Step
from tests.conftest import Runner
from tests.families import N_BLOCKS
from tests.node.hostile_cases import FATAL_IN_SESSION, IDLE, OPENS, STEPS
from tests.node.hostile_client import HIDDEN, ID, Stage, step


@pytest.mark.parametrize("case", IDLE)
def test_what_breaks_the_protocol_ends_the_connection(
    case: str, stage: Stage, run_either: Runner
) -> None:
    header, payload, kind = IDLE[case]

    async def work() -> None:
        async with stage() as scene, scene.stranger() as stranger:
            await stranger.greet()
            stranger.send_raw(header, payload)
            await stranger.refused(kind)
            await stranger.ended()

    run_either(work())


@pytest.mark.parametrize("case", OPENS)
def test_an_open_that_is_refused_leaves_the_connection(
    case: str, stage: Stage, run_async: Runner
) -> None:
    message, kind = OPENS[case]

    async def work() -> None:
        async with stage() as scene, scene.stranger() as stranger:
            await stranger.greet()
            for _ in range(2):
                stranger.send(message)
                assert not (await stranger.refused(kind)).fatal
            await stranger.open()
            await stranger.is_served()

    run_async(work())


def test_a_draining_peer_serves_who_is_there_and_nobody_new(
    stage: Stage, run_async: Runner
) -> None:
    async def work() -> None:
        async with stage() as scene, scene.stranger() as stranger:
            await stranger.greet()
            scene.peer.server.draining = True
            stranger.send(Open(ID, 0, N_BLOCKS, 10))
            assert not (await stranger.refused(Draining)).fatal

    run_async(work())


@pytest.mark.parametrize("case", STEPS)
def test_a_step_that_is_refused_leaves_the_session(
    case: str, stage: Stage, run_async: Runner
) -> None:
    message, payload, kind = STEPS[case]

    async def work() -> None:
        limits = SessionLimits(step_tokens=16)
        async with stage(limits=limits) as scene, scene.stranger() as stranger:
            await stranger.greet()
            await stranger.open(max_length=10)
            for number in (5, 6):
                again = Step(ID, number, message.start, 0, message.tensor)
                stranger.send(again, payload=payload)
                refusal = await stranger.refused(kind)
                assert refusal.step == number
                assert not refusal.fatal
            await stranger.is_served()
            stranger.send(Close(ID))
            await stranger.expect(Closed)
            await stranger.open()

    run_async(work())


def test_values_that_are_no_numbers_stay_in_their_session(stage: Stage, run_async: Runner) -> None:
    async def work() -> None:
        async with stage() as scene, scene.stranger() as stranger:
            await stranger.greet()
            await stranger.open()
            stranger.send(step(tokens=3), payload=b"\xff" * 3 * HIDDEN * 4)
            await stranger.expect(Output)

    run_async(work())


@pytest.mark.parametrize("case", FATAL_IN_SESSION)
def test_what_ends_a_session(case: str, stage: Stage, run_either: Runner) -> None:
    message, payload, kind = FATAL_IN_SESSION[case]

    async def work() -> None:
        async with stage() as scene, scene.stranger() as stranger:
            await stranger.greet()
            await stranger.open()
            await stranger.is_served()
            stranger.send(message, payload=payload)
            await stranger.refused(kind)
            await stranger.ended()

    run_either(work())
