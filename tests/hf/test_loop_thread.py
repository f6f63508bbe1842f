"""The event loop behind a blocking program: errors, interrupts, and a clean end."""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator
from typing import Any

import pytest

from swarmd.errors import BootstrapFailed, UsageError
from swarmd.hf.loop_thread import LoopThread


class Service:
    def __init__(self) -> None:
        self.entered = self.left = 0

    @contextlib.asynccontextmanager
    async def __call__(self) -> AsyncIterator[Service]:
        self.entered += 1
        try:
            yield self
        finally:
            self.left += 1


def alive() -> bool:
    return any(thread.name == "swarmd-test" for thread in threading.enumerate())


@pytest.fixture
def service() -> Service:
    return Service()


def test_work_runs_on_its_thread_and_its_errors_come_back(service: Service) -> None:
    loop = LoopThread(service, name="swarmd-test")
    assert loop.value is service

    async def name() -> str:
        return threading.current_thread().name

    async def fail() -> None:
        raise BootstrapFailed("nobody")

    assert loop.run(name()) == "swarmd-test"
    with pytest.raises(BootstrapFailed, match="nobody"):
        loop.run(fail())
    loop.close()
    loop.close()
    assert (service.entered, service.left, alive()) == (1, 1, False)
    with pytest.raises(UsageError, match="closed"):
        loop.run(name())
    loop.post(name)  # type: ignore[arg-type]


def test_a_service_that_fails_to_start_leaves_no_thread() -> None:
    @contextlib.asynccontextmanager
    async def broken() -> AsyncIterator[None]:
        raise BootstrapFailed("nobody")
        yield

    with pytest.raises(BootstrapFailed):
        LoopThread(broken, name="swarmd-test")
    assert not alive()


def test_closing_ends_work_that_others_wait_for(service: Service) -> None:
    loop = LoopThread(service, name="swarmd-test")
    began, errors = threading.Event(), []

    async def forever() -> None:
        began.set()
        await asyncio.Event().wait()

    def wait() -> None:
        try:
            loop.run(forever())
        except UsageError as error:
            errors.append(str(error))

    waiting = threading.Thread(target=wait)
    waiting.start()
    assert began.wait(10)
    loop.close()
    waiting.join(10)
    assert "closed" in errors[0]
    assert service.left == 1


def test_no_caller_waits_for_a_loop_that_is_closed_meanwhile(service: Service) -> None:
    loop = LoopThread(service, name="swarmd-test")
    held, errors = threading.Event(), []

    async def hold() -> None:  # the loop's thread, so that what follows waits in its queue
        held.set()
        time.sleep(0.1)  # noqa: ASYNC251

    async def forever() -> None:
        await asyncio.Event().wait()

    def wait(work: Any) -> None:
        try:
            loop.run(work())
        except UsageError as error:
            errors.append(str(error))

    threads = [threading.Thread(target=wait, args=(work,)) for work in (hold, *[forever] * 4)]
    threads[0].start()
    assert held.wait(10)
    for thread in threads[1:3]:
        thread.start()
    closing = threading.Thread(target=loop.close)
    closing.start()
    for thread in threads[3:]:
        thread.start()
    for thread in (*threads, closing):
        thread.join(10)
        assert not thread.is_alive()
    assert len(errors) >= 4
    assert all("closed" in error for error in errors)


def test_an_interrupt_cancels_the_work_before_it_goes_on(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    import concurrent.futures

    loop = LoopThread(service, name="swarmd-test")
    ended: list[str] = []

    async def slow() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ended.append("cancelled")

    original = concurrent.futures.Future.result

    def interrupted(self: Any, timeout: float | None = None) -> Any:
        monkeypatch.setattr(concurrent.futures.Future, "result", original)
        time.sleep(0.05)
        raise KeyboardInterrupt

    monkeypatch.setattr(concurrent.futures.Future, "result", interrupted)
    with pytest.raises(KeyboardInterrupt):
        loop.run(slow())
    assert ended == ["cancelled"], "run must not return before the work has ended"
    loop.close()


def test_blocking_calls_on_the_loops_own_thread_are_refused(service: Service) -> None:
    loop = LoopThread(service, name="swarmd-test")

    async def nothing() -> None:
        return None

    async def blocking() -> None:
        loop.run(nothing())

    with pytest.raises(RuntimeError, match="own thread"):
        loop.run(blocking())
    loop.close()


def test_a_program_that_closes_nothing_ends_in_good_order() -> None:
    script = """
import asyncio, contextlib, sys
from swarmd.hf.loop_thread import LoopThread
assert "torch" not in sys.modules

@contextlib.asynccontextmanager
async def service():
    yield
    await asyncio.to_thread(print, "left")

loop = LoopThread(service, name="swarmd-test")
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "left\n", "")
