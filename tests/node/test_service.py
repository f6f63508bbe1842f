"""A node under a service manager: the real command, a real notify socket, real signals."""

from __future__ import annotations

import re
import signal
import socket
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest
from click.testing import CliRunner

from bench.nodes import swarm
from swarmd.cli import cli
from swarmd.errors import UsageError
from tests.families import save_tiny

pytestmark = pytest.mark.no_leak_check


def status(url: str) -> int:
    try:
        with urllib.request.urlopen(url, timeout=10) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code


def test_a_service_is_ready_lives_and_stops(tmp_path: Path) -> None:
    model = save_tiny("llama", tmp_path / "tiny")
    with swarm() as running, socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        manager.settimeout(60)
        running.environment["NOTIFY_SOCKET"] = str(tmp_path / "notify")
        running.environment["WATCHDOG_USEC"] = "200000"
        node = running.launch("0:6", "--model", str(model), "--http", "0")
        heard = [manager.recv(4096)]
        assert heard == [b"WATCHDOG=1"], "it lives, and is not ready"
        while (told := manager.recv(4096)) == b"WATCHDOG=1":
            pass
        assert told == b"READY=1\nSTATUS=serving blocks 0:6 of tiny"
        found = re.search(r"HTTP at (http://127\.0\.0\.1:\d+)\n", node.log.read_text())
        assert found is not None
        assert status(found[1] + "/readyz") == 200
        assert status(found[1] + "/metrics") == 200
        for _ in range(3):
            assert manager.recv(4096) == b"WATCHDOG=1"

        began = time.monotonic()
        node.kill(signal.SIGTERM)
        while (told := manager.recv(4096)) == b"WATCHDOG=1":
            pass
        assert told == b"STOPPING=1\nSTATUS=leaving the swarm"
        assert node.process.wait(20) == 0
        assert time.monotonic() - began < 15
        assert "left the swarm" in node.log.read_text()


@pytest.mark.parametrize(
    ("options", "why"),
    [
        (["--http", "0.0.0.0:0"], "lets other machines in"),
        (["--http", "x"], "give PORT or HOST:PORT"),
        (["--http", "127.0.0.1:70000"], "give PORT or HOST:PORT"),
        (["--http", ":80"], "give PORT or HOST:PORT"),
        (["--http", "::1:80"], "give PORT or HOST:PORT"),
        (["--api-key", "0123456789abcdef"], "give --http"),
    ],
)
def test_misuse_is_one_line(options: list[str], why: str) -> None:
    done = CliRunner().invoke(cli, ["serve", *options])
    assert isinstance(done.exception, UsageError)
    assert why in str(done.exception)
    assert "\n" not in str(done.exception)
