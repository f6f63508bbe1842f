"""Task owners, and what is done periodically."""

from __future__ import annotations

import asyncio
import logging

import pytest

from swarmd.tasks import TaskOwner, periodic
from tests.conftest import Runner


async def forever(ended: list[str] | None = None, name: str = "") -> None:
    try:
        await asyncio.get_running_loop().create_future()
    finally:
        if ended is not None:
            ended.append(name)


async def fail(error: Exception) -> None:
    await asyncio.sleep(0)
    raise error


def test_a_childs_failure_reaches_the_owner_and_ends_the_others(run_either: Runner) -> None:
    async def work() -> None:
        ended: list[str] = []
        with pytest.raises(ZeroDivisionError):
            async with TaskOwner("test") as owner:
                owner.spawn(forever(ended, "sibling"), name="sibling")
                owner.spawn(fail(ZeroDivisionError()), name="child")
                await forever(ended, "body")
        assert sorted(ended) == ["body", "sibling"]
        current = asyncio.current_task()
        assert current is not None
        assert current.cancelling() == 0, "the cancel that woke the body is taken back"
        await asyncio.sleep(0)

    run_either(work())


def test_a_failure_that_is_logged_harms_nobody(
    run_either: Runner, caplog: pytest.LogCaptureFixture
) -> None:
    async def work() -> None:
        async with TaskOwner("test") as owner:
            other = owner.spawn(forever(), name="other")
            bad = owner.spawn(fail(KeyError("x")), name="bad", errors="log")
            await asyncio.wait([bad])
            await asyncio.sleep(0)
            assert not other.done()
            assert len(owner) == 1
        (record,) = [r for r in caplog.records if r.levelno >= logging.WARNING]
        assert "test.bad failed: KeyError" in record.getMessage()
        assert record.exc_info is None, "one line, no traceback"

    run_either(work())


def test_leaving_the_block_cancels_and_awaits_the_children(run_either: Runner) -> None:
    async def work() -> None:
        ended: list[str] = []
        async with TaskOwner("test") as owner:
            tasks = [owner.spawn(forever(ended, str(n)), name=str(n)) for n in range(3)]
            await asyncio.sleep(0)
            assert len(owner) == 3
        assert all(task.cancelled() for task in tasks)
        assert sorted(ended) == ["0", "1", "2"]

    run_either(work())


def test_a_cancel_of_the_owner_stays_a_cancel(run_either: Runner) -> None:
    async def work() -> None:
        ended: list[str] = []

        async def own() -> None:
            async with TaskOwner("test") as owner:
                owner.spawn(forever(ended, "child"), name="child")
                await forever()

        task = asyncio.ensure_future(own())
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert ended == ["child"]

    run_either(work())


def test_a_cancel_during_close_waits_for_the_children(run_either: Runner) -> None:
    async def work() -> None:
        release, cancelled = asyncio.Event(), asyncio.Event()
        done: list[str] = []

        async def slow_to_end() -> None:
            try:
                await forever()
            finally:
                cancelled.set()
                await release.wait()
                done.append("cleanup")

        async def own() -> None:
            async with TaskOwner("test") as owner:
                owner.spawn(slow_to_end(), name="slow")
                await asyncio.sleep(0)

        task = asyncio.ensure_future(own())
        await cancelled.wait()
        task.cancel()
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert not task.done()
        release.set()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert done == ["cleanup"]

    run_either(work())


def test_the_bodys_own_error_comes_out_and_close_is_idempotent(run_either: Runner) -> None:
    async def work() -> None:
        owner = TaskOwner("test")
        with pytest.raises(KeyError):
            async with owner:
                owner.spawn(forever(), name="child")
                raise KeyError("body")
        await owner.close()
        await owner.close()
        with pytest.raises(RuntimeError, match="closing"):
            owner.spawn(forever(), name="late")

    run_either(work())


def test_periodic_runs_again_when_woken(run_either: Runner) -> None:
    async def work() -> None:
        wake, ran = asyncio.Event(), asyncio.Semaphore(0)

        async def action() -> None:
            ran.release()

        async with TaskOwner("test") as owner, asyncio.timeout(20):
            owner.spawn(periodic(action, interval=3600, wake=wake), name="periodic")
            for _ in range(3):
                await ran.acquire()
                wake.set()

    run_either(work())
