"""Sites of a wide-area network, as network namespaces whose only way out is our router."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from bench.wan.links import Link

__all__ = ["Lab", "Site", "why_not"]

SWARMD = [sys.executable, "-m", "swarmd"]
START_TIMEOUT = 120.0
_labs = itertools.count()


def _ip(*arguments: str) -> None:
    done = subprocess.run(["ip", *arguments], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"ip {' '.join(arguments)}: {done.stderr.strip()}")


def why_not() -> str | None:
    """Why this system has no namespaces and TUN devices for us, or None."""
    if shutil.which("ip") is None or not hasattr(os, "geteuid") or os.geteuid() != 0:
        return "needs root and iproute2"
    if not os.access("/dev/net/tun", os.R_OK | os.W_OK):
        return "needs /dev/net/tun"
    name = f"swl{os.getpid()}probe"
    try:
        _ip("netns", "add", name)
    except RuntimeError as error:
        return str(error)
    finally:
        subprocess.run(["ip", "netns", "del", name], capture_output=True, check=False)
    return None


@dataclass
class Site:
    """A namespace with one address, and a state folder of its own."""

    number: int
    namespace: str
    state: Path
    running: list[subprocess.Popen[bytes]] = field(default_factory=list)

    @property
    def address(self) -> str:
        return f"10.78.0.{self.number}"

    def environment(self, threads: int = 1) -> dict[str, str]:
        """Nobody looks around or asks routers: there is nobody."""
        return {
            **os.environ,
            "SWARMD_NO_LAN": "1",
            "SWARMD_NO_UPNP": "1",
            "SWARMD_STATE": str(self.state),
            "OMP_NUM_THREADS": str(threads),
        }

    def command(self, *arguments: str) -> list[str]:
        """The command inside: `ip netns exec` becomes it, so the pid is its own."""
        return ["ip", "netns", "exec", self.namespace, *arguments]

    def start(self, *arguments: str, log: Path | None = None) -> subprocess.Popen[bytes]:
        """Start a command of swarmd; it ends with the lab."""
        log = log or self.state / f"log-{len(self.running)}"
        with log.open("wb") as file:
            process = subprocess.Popen(
                self.command(*SWARMD, *arguments),
                env=self.environment(),
                stdout=file,
                stderr=file,
            )
        self.running.append(process)
        return process

    def run(
        self, *arguments: str, limit: float = 300.0, program: Sequence[str] = SWARMD
    ) -> subprocess.CompletedProcess[str]:
        """A command to its end; whatever its exit code is."""
        return subprocess.run(
            self.command(*program, *arguments), env=self.environment(), capture_output=True,
            text=True, check=False, timeout=limit,
        )  # fmt: skip

    def wait_for(self, words: str, log: int = 0, limit: float = START_TIMEOUT) -> None:
        """Until the log of the process of that number says so. Raises TimeoutError with the log."""
        file, give_up = self.state / f"log-{log}", time.monotonic() + limit
        while words not in (text := file.read_text()):
            if time.monotonic() > give_up or self.running[log].poll() is not None:
                raise TimeoutError(f"site {self.number} did not say {words!r}:\n{text}")
            time.sleep(0.1)


class Lab:
    """`with Lab.of(4) as lab:` has sites 1 to 4; nothing is left of it afterwards."""

    def __init__(self, sites: list[Site], router: subprocess.Popen[str]) -> None:
        self.sites = sites
        self._router = router

    def __getitem__(self, number: int) -> Site:
        return self.sites[number - 1]

    def set(self, link: Link, source: int | None = None, target: int | None = None) -> None:
        """From now on: of one direction, or of all pairs that have none of their own."""
        pair = None if source is None or target is None else [source, target]
        assert self._router.stdin is not None
        self._router.stdin.write(json.dumps([pair, link.to_json()]) + "\n")
        self._router.stdin.flush()

    def both(self, link: Link, one: int, other: int) -> None:
        """Both directions of a pair."""
        self.set(link, one, other)
        self.set(link, other, one)

    @classmethod
    @contextlib.contextmanager
    def of(cls, size: int, link: Link | None = None) -> Iterator[Lab]:
        """A lab of `size` sites, all pairs of them joined by `link`. Needs root."""
        stem = f"swl{os.getpid()}n{next(_labs)}"
        devices = [f"{stem}t{n}"[-15:] for n in range(1, size + 1)]
        with contextlib.ExitStack() as stack:
            if threading.current_thread() is threading.main_thread():  # `timeout` ends us so
                before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
                stack.callback(signal.signal, signal.SIGTERM, before)
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="swarmd-wan-")))
            router = subprocess.Popen(
                [sys.executable, "-m", "bench.wan.router", *devices],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
            stack.callback(_end, router)
            assert router.stdout is not None
            if router.stdout.readline() != "ready\n":
                raise RuntimeError("the router did not start")
            sites: list[Site] = []
            for number, device in enumerate(devices, start=1):
                site = Site(number, f"{stem}s{number}", folder / f"state{number}")
                site.state.mkdir()
                _ip("netns", "add", site.namespace)
                stack.callback(_remove, site)
                sites.append(site)
                _ip("link", "set", device, "netns", site.namespace, "name", "wan")
                inside = ("-n", site.namespace)
                _ip(*inside, "address", "add", f"{site.address}/24", "dev", "wan")
                _ip(*inside, "link", "set", "wan", "mtu", "1500", "txqueuelen", "4000", "up")
                _ip(*inside, "link", "set", "lo", "up")
            stack.callback(_end, router)  # before its devices go
            lab = cls(sites, router)
            lab.set(link or Link())
            yield lab


def _end(process: subprocess.Popen[str]) -> None:
    assert process.stdin is not None and process.stdout is not None
    if process.stdin.closed:
        return
    process.stdin.close()
    try:
        process.wait(5)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    process.stdout.close()


def _remove(site: Site) -> None:
    for process in site.running:
        if process.poll() is None:
            process.terminate()
            process.send_signal(signal.SIGCONT)  # a stopped one would not hear it
    for process in site.running:
        try:
            process.wait(15)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
    subprocess.run(["ip", "netns", "del", site.namespace], capture_output=True, check=False)
