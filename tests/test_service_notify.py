"""What the service manager is told, over real datagram sockets."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from swarmd.service_notify import (
    READY,
    STOPPING,
    ServiceNotifier,
    message,
    watchdog_period,
)

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="no Unix sockets")


@contextlib.contextmanager
def manager(address: str) -> Iterator[socket.socket]:
    """Where a service manager listens."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listening:
        listening.bind(address)
        listening.settimeout(5)
        yield listening


def test_a_message_is_one_line_a_field() -> None:
    assert message({"READY": "1"}) == b"READY=1"
    assert message({"READY": "1", "STATUS": "wörld"}) == "READY=1\nSTATUS=wörld".encode()
    assert message({"STATUS": "a\nSTOPPING=1\0b"}) == b"STATUS=a STOPPING=1 b"
    assert len(message({"STATUS": "x" * 10_000})) < 2000
    for name in ("", "A=B", "A\nB", "Ä"):
        with pytest.raises(ValueError, match="variable"):
            message({name: "1"})


def test_the_watchdog_is_fed_twice_as_often_as_it_bites() -> None:
    assert watchdog_period({"WATCHDOG_USEC": "3000000"}, 7) == 1.5
    assert watchdog_period({"WATCHDOG_USEC": "3000000", "WATCHDOG_PID": "7"}, 7) == 1.5
    assert watchdog_period({"WATCHDOG_USEC": "3000000", "WATCHDOG_PID": "8"}, 7) is None
    for wrong in ({}, {"WATCHDOG_USEC": "0"}, {"WATCHDOG_USEC": "soon"}, {"WATCHDOG_USEC": "-5"}):
        assert watchdog_period(wrong, 7) is None


@pytest.mark.parametrize("abstract", [False, True])
def test_the_manager_hears_it(abstract: bool, tmp_path: Path) -> None:
    if abstract and sys.platform != "linux":
        pytest.skip("abstract sockets are Linux'")
    name = f"swarmd-test-{os.getpid()}" if abstract else str(tmp_path / "notify")
    given = f"@{name}" if abstract else name
    with manager(f"\0{name}" if abstract else name) as listening:
        with ServiceNotifier({"NOTIFY_SOCKET": given}) as notifier:
            assert notifier.tell(READY, "serving blocks 0:3")
            assert listening.recv(4096) == b"READY=1\nSTATUS=serving blocks 0:3"
            assert notifier.tell(STOPPING)
            assert listening.recv(4096) == b"STOPPING=1"
        assert not notifier.tell(READY), "it was left"


def test_signs_of_life_come_while_the_loop_runs(tmp_path: Path) -> None:
    name = str(tmp_path / "notify")
    environment = {"NOTIFY_SOCKET": name, "WATCHDOG_USEC": "40000"}

    async def work(notifier: ServiceNotifier) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(0.25):
                await notifier.watch()

    with manager(name) as listening, ServiceNotifier(environment) as notifier:
        asyncio.run(work(notifier))
        listening.setblocking(False)
        heard = []
        with contextlib.suppress(BlockingIOError):
            while True:
                heard.append(listening.recv(4096))
        assert set(heard) == {b"WATCHDOG=1"}
        assert 3 <= len(heard) <= 14, "one in 20 ms"


@pytest.mark.parametrize("given", ["", "vsock:2:1234", "relative"])
def test_without_a_manager_nothing_is_sent(given: str) -> None:
    with ServiceNotifier({"NOTIFY_SOCKET": given, "WATCHDOG_USEC": "1000000"}) as notifier:
        assert not notifier.tell(READY)
        asyncio.run(notifier.watch())  # nobody waits for signs of life: it returns


def test_a_manager_that_reads_no_more_is_one_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    name = str(tmp_path / "notify")
    with manager(name), ServiceNotifier({"NOTIFY_SOCKET": name}) as notifier:
        told = [notifier.tell(READY) for _ in range(5000)]
        assert told[0] and not told[-1], "its queue is full, and nobody waited"
    with ServiceNotifier({"NOTIFY_SOCKET": str(tmp_path / "none")}) as notifier:
        assert not notifier.tell(READY)
        assert not notifier.tell(STOPPING)
    assert len(caplog.records) == 2
