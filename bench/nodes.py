"""Real daemons for benchmarks: started by the public command, on loopback, ended by their pid."""

from __future__ import annotations

import contextlib
import ctypes
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil

__all__ = ["Node", "Swarm", "free_port", "swarm"]

SWARMD = [sys.executable, "-m", "swarmd"]
START_TIMEOUT = 180.0


@dataclass
class Node:
    """A running daemon and how long it took to become ready."""

    blocks: str
    port: int
    process: subprocess.Popen[bytes]
    log: Path
    began: float
    ready_seconds: float = 0.0

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    @property
    def resident_mb(self) -> float:
        return float(psutil.Process(self.process.pid).memory_info().rss / 1e6)

    def kill(self, number: int = signal.SIGKILL) -> None:
        os.kill(self.process.pid, number)


class Swarm:
    """Daemons that share a temporary state folder, so that they find one another by it."""

    def __init__(self, folder: Path, options: list[str]) -> None:
        self.folder = folder
        self.nodes: list[Node] = []
        self.environment = {**os.environ, "SWARMD_STATE": str(folder)}
        self._options = options

    def start(self, blocks: str) -> Node:
        """Start one daemon and wait until it serves."""
        node = self.launch(blocks)
        self.wait_ready(node)
        return node

    def launch(self, blocks: str, *options: str) -> Node:
        """Start one daemon, with some options of its own."""
        port = free_port()
        log = self.folder / f"{port}.log"
        began = time.monotonic()
        with log.open("wb") as file:
            process = subprocess.Popen(
                [
                    *SWARMD,
                    "serve",
                    "--blocks",
                    blocks,
                    "--port",
                    str(port),
                    *self._options,
                    *options,
                ],
                env=self.environment,
                stdout=file,
                stderr=file,
                start_new_session=True,
                preexec_fn=_end_with_parent if sys.platform == "linux" else None,
            )
        node = Node(blocks, port, process, log, began)
        self.nodes.append(node)
        return node

    def wait_ready(self, node: Node) -> None:
        """Until the daemon serves. Raises RuntimeError with its log if it does not."""
        while b"serving blocks" not in node.log.read_bytes():
            late = time.monotonic() - node.began > START_TIMEOUT
            if node.process.poll() is not None or late:
                raise RuntimeError(f"a node did not start:\n{node.log.read_text()}")
            time.sleep(0.02)
        node.ready_seconds = time.monotonic() - node.began

    def by_address(self, address: str) -> Node:
        return next(node for node in self.nodes if node.address == address)

    def run(self, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run a command of swarmd to its end."""
        return subprocess.run(
            [*SWARMD, *arguments],
            env=self.environment, capture_output=True, text=True, check=check,
        )  # fmt: skip

    def stop(self) -> None:
        for node in self.nodes:
            if node.process.poll() is None:
                node.kill(signal.SIGCONT)
                node.process.terminate()
        for node in self.nodes:
            try:
                node.process.wait(15)
            except subprocess.TimeoutExpired:
                node.process.kill()
                node.process.wait()


@contextlib.contextmanager
def swarm(*blocks: str, options: tuple[str, ...] = ()) -> Iterator[Swarm]:
    """A swarm of its own with a daemon for each of `blocks`."""
    with tempfile.TemporaryDirectory(prefix="swarmd-bench-") as folder:
        running = Swarm(Path(folder), list(options))
        try:
            for span in blocks:
                running.start(span)
            yield running
        finally:
            running.stop()


def _end_with_parent() -> None:
    """In the child: be told to leave when the benchmark or test that started it is killed."""
    pr_set_pdeathsig = 1
    ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGTERM)


def free_port() -> int:
    """A port of 127.0.0.1 that is free by TCP and UDP, and that no system hands out by itself.

    Below the ephemeral ports (RFC 6056, section 2.1; Linux begins at 32768), so that nobody who
    binds to port 0 gets it between the answer and its use.
    """
    while True:
        number = random.randrange(20_000, 30_000)
        with socket.socket() as stream, socket.socket(type=socket.SOCK_DGRAM) as datagrams:
            try:
                stream.bind(("127.0.0.1", number))
                datagrams.bind(("127.0.0.1", number))
            except OSError:
                continue
            return number
