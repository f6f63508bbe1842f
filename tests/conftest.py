"""What every test gets: a clean end. A task, thread or descriptor left behind fails the test."""

from __future__ import annotations

import asyncio
import gc
import os
import sys
import threading
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import pytest

from swarmd.cli.runtime import prepare_libraries

prepare_libraries()  # as every command does, before anything imports torch
# Nothing may leave this machine: tests that look around do so in network namespaces.
os.environ["SWARMD_NO_LAN"] = "1"
os.environ["SWARMD_NO_UPNP"] = "1"
os.environ["SWARMD_CONFIG"] = os.devnull  # not the file of whoever runs the tests


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests marked `cuda` are skipped without a GPU."""
    import torch

    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("cuda"):
                item.add_marker(pytest.mark.skip(reason="no CUDA GPU"))


def _descriptors() -> dict[str, str]:
    found = {}
    for entry in os.listdir("/proc/self/fd") if sys.platform == "linux" else ():
        try:
            found[entry] = os.readlink(f"/proc/self/fd/{entry}")
        except OSError:
            continue  # the listing's own descriptor
    return found


@pytest.fixture(autouse=True)
def leak_check(request: pytest.FixtureRequest) -> Iterator[None]:
    """Threads of swarmd and sockets that a test opened must be gone when it ends."""
    if request.node.get_closest_marker("no_leak_check"):
        yield
        return
    before = {fd for fd, target in _descriptors().items() if target.startswith("socket:")}
    yield
    threads = [thread.name for thread in threading.enumerate() if thread.name.startswith("swarmd")]
    assert not threads, f"threads left: {threads}"
    after = {fd for fd, target in _descriptors().items() if target.startswith("socket:")}
    if after - before:
        gc.collect()
        after = {fd for fd, target in _descriptors().items() if target.startswith("socket:")}
    assert not after - before, f"sockets left: {after - before}"


@pytest.fixture(params=["asyncio", "uvloop"] if sys.platform != "win32" else ["asyncio"])
def loop_name(request: pytest.FixtureRequest) -> str:
    """Run a test under both event loops."""
    return str(request.param)


Runner = Callable[[Coroutine[Any, Any, Any]], Any]


def run_on(loop_name: str, work: Coroutine[Any, Any, Any], timeout: float = 120.0) -> Any:
    """Run a coroutine to its end; tasks that it leaves behind fail."""

    async def checked() -> Any:
        async with asyncio.timeout(timeout):
            result = await work
        for _ in range(20):
            left = [t for t in asyncio.all_tasks() if t is not asyncio.current_task()]
            if not left:
                break
            await asyncio.sleep(0.01)
        assert not left, f"tasks left: {left}"
        return result

    factory = None
    if loop_name == "uvloop":
        import uvloop

        factory = uvloop.new_event_loop
    with asyncio.Runner(loop_factory=factory) as runner:
        return runner.run(checked())


@pytest.fixture
def run_async() -> Runner:
    """Run a coroutine on uvloop, as the daemon does."""
    return lambda work: run_on("uvloop" if sys.platform != "win32" else "asyncio", work)


@pytest.fixture
def run_either(loop_name: str) -> Runner:
    """Run a coroutine on each event loop in turn."""
    return lambda work: run_on(loop_name, work)


@pytest.fixture(scope="session")
def smollm2() -> Path:
    """The folder of the real default model, converted once into the user's cache."""
    from swarmd.compute.source import resolve_model

    return resolve_model(None).path
