"""Machines of a local network, as network namespaces on one bridge: nothing leaves them."""

from __future__ import annotations

import contextlib
import itertools
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

SWARMD = [sys.executable, "-m", "swarmd"]
START_TIMEOUT = 90.0
_names = itertools.count()


def ip(*arguments: str) -> None:
    """Raises RuntimeError with what `ip` said."""
    done = subprocess.run(["ip", *arguments], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"ip {' '.join(arguments)}: {done.stderr.strip()}")


def why_not() -> str | None:
    """Why this system has no namespaces for us, or None."""
    if shutil.which("ip") is None or not hasattr(os, "geteuid") or os.geteuid() != 0:
        return "needs root and iproute2"
    name = f"swd{os.getpid()}probe"
    try:
        ip("netns", "add", name)
        ip("-n", name, "link", "add", "p0", "type", "veth", "peer", "name", "p1")
    except RuntimeError as error:
        return str(error)
    finally:
        subprocess.run(["ip", "netns", "del", name], capture_output=True, check=False)
    return None


@dataclass
class Machine:
    """A namespace with one address on the bridge, and a state folder of its own."""

    namespace: str
    address: str
    state: Path
    running: list[subprocess.Popen[bytes]] = field(default_factory=list)

    @property
    def environment(self) -> dict[str, str]:
        quiet = ("SWARMD_NO_LAN", "SWARMD_NO_UPNP")  # here they may speak
        kept = {k: v for k, v in os.environ.items() if k not in quiet}
        return {**kept, "SWARMD_STATE": str(self.state), "OMP_NUM_THREADS": "1"}

    def command(self, *arguments: str) -> list[str]:
        return ["ip", "netns", "exec", self.namespace, *arguments]

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """A command of swarmd, to its end."""
        return subprocess.run(
            self.command(*SWARMD, *arguments), env=self.environment, capture_output=True,
            text=True, check=False, timeout=120,
        )  # fmt: skip

    def serve(self, *arguments: str) -> Path:
        """Start a daemon; returns its log."""
        log = self.state / f"serve-{len(self.running)}.log"
        with log.open("wb") as file:
            self.running.append(
                subprocess.Popen(
                    self.command(*SWARMD, "serve", *arguments),
                    env=self.environment,
                    stdout=file,
                    stderr=file,
                )
            )
        return log

    def stop(self) -> None:
        for process in self.running:  # `ip netns exec` becomes the command: the pid is its own
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
        for process in self.running:
            try:
                process.wait(15)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


@contextlib.contextmanager
def local_network(folder: Path, size: int) -> Iterator[list[Machine]]:
    """`size` machines 10.77.0.1, 10.77.0.2, … on a bridge that lies in a namespace itself."""
    stem = f"swd{os.getpid()}x{next(_names)}"
    hub, machines = f"{stem}hub", []
    made = []
    try:
        ip("netns", "add", hub)
        made.append(hub)
        ip("-n", hub, "link", "add", "bridge", "type", "bridge", "mcast_snooping", "0")
        ip("-n", hub, "link", "set", "bridge", "up")
        for number in range(1, size + 1):
            name = f"{stem}m{number}"
            ip("netns", "add", name)
            made.append(name)
            ip("-n", name, "link", "add", "net", "type", "veth", "peer", "name", "far")
            ip("-n", name, "link", "set", "far", "netns", hub, "name", f"port{number}")
            ip("-n", hub, "link", "set", f"port{number}", "master", "bridge", "up")
            ip("-n", name, "address", "add", f"10.77.0.{number}/24", "dev", "net")
            ip("-n", name, "link", "set", "net", "up")
            ip("-n", name, "link", "set", "lo", "up")
            ip("-n", name, "route", "add", "224.0.0.0/4", "dev", "net")
            state = folder / f"state{number}"
            state.mkdir()
            machines.append(Machine(name, f"10.77.0.{number}", state))
        yield machines
    finally:
        for machine in machines:
            machine.stop()
        for name in made:
            subprocess.run(["ip", "netns", "del", name], capture_output=True, check=False)


def wait_for(log: Path, words: str, limit: float = START_TIMEOUT) -> str:
    """The log once `words` stand in it."""
    give_up = time.monotonic() + limit
    while words not in (text := log.read_text()):
        assert time.monotonic() < give_up, f"no {words!r} in:\n{text}"
        time.sleep(0.1)
    return text
