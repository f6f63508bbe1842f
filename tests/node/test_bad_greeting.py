"""What comes instead of a `hello` ends its connection with a typed error, and harms nobody."""

from __future__ import annotations

import pytest

from swarmd.errors import ModelMismatch
from swarmd.node.limits import SessionLimits
from swarmd.wire.messages import ErrorMessage
from tests.conftest import Runner
from tests.node.hostile_cases import SCANS
from tests.node.hostile_client import Stage


@pytest.mark.parametrize("scan", SCANS)
def test_what_comes_instead_of_a_hello(scan: str, stage: Stage, run_either: Runner) -> None:
    data, kind = SCANS[scan]

    async def work() -> None:
        async with stage() as scene, scene.stranger() as stranger:
            stranger.writer.write(data)
            await stranger.refused(kind)
            await stranger.ended()

    run_either(work())


def test_another_model_is_meant(stage: Stage, run_async: Runner) -> None:
    async def work() -> None:
        async with stage() as scene, scene.stranger() as stranger:
            await stranger.hello(b"m" * 16)
            await stranger.refused(ModelMismatch)
            await stranger.ended()

    run_async(work())


def test_a_fatal_error_instead_of_a_hello(stage: Stage, run_async: Runner) -> None:
    async def work() -> None:
        for greeted in (False, True):
            async with stage() as scene, scene.stranger() as stranger:
                if greeted:
                    await stranger.greet()
                stranger.send(ErrorMessage("bad_request", "I do not like you", fatal=True))
                await stranger.ended()

    run_async(work())


def test_a_silent_connection_is_closed(stage: Stage, run_async: Runner) -> None:
    async def work() -> None:
        limits = SessionLimits(hello_timeout=0.1)
        async with stage(limits=limits) as scene:
            async with scene.stranger() as stranger:
                await stranger.ended()
            async with scene.stranger() as stranger:
                stranger.writer.write(b"\x00\x00\x00")  # one byte does not buy more time
                await stranger.ended()

    run_async(work())
