"""Where a scene is played: a network namespace with only itself in it, and a home a machine.

`python -m tests.walk.stage NUMBER` plays one scene in the namespace that it was started in, prints
what it runs, and ends with 0 if every command of its pages did what it should. It ends the
processes that it started, by pid.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import platformdirs

from tests.walk.page import Command, commands_of
from tests.walk.plan import ADDRESSES, SCENES, Scene, excuse, is_background, prepared

ROOT = Path(__file__).resolve().parent.parent.parent
READY_TIMEOUT = 120.0  # a node or the API until it serves; beside other tests
COMMAND_TIMEOUT = 120.0
STOP_TIMEOUT = 20.0  # a node drains for 10 s at most
SPEAKS = ("swarmd generate ", "swarmd invite", "curl ")  # these must print something to stdout


class WalkFailed(Exception):
    """A command of a page did not do what a reader may expect."""


@dataclass
class Background:
    """A command that goes on, and its output."""

    command: Command
    process: subprocess.Popen[bytes]
    log: Path


@dataclass
class Stage:
    """A scene under way."""

    folder: Path
    begin: float = field(default_factory=time.monotonic)
    invite: str | None = None
    background: list[Background] = field(default_factory=list)
    done: set[tuple[str, str]] = field(default_factory=set)

    def environment(self, machine: str) -> dict[str, str]:
        """A clean one: nothing of the developer's but the environment's Python."""
        home = self.folder / machine
        home.mkdir(exist_ok=True)
        return {
            "HOME": str(home),
            "SWARMD_STATE": str(home / "state"),
            "PATH": f"{self.folder / 'bin'}:/usr/local/bin:/usr/bin:/bin",
            "PYTHONPATH": str(ROOT),
            # the default model is turned into a folder once a user, which is not this walk's part
            "XDG_CACHE_HOME": str(Path(platformdirs.user_cache_dir())),
            "SWARMD_NO_LAN": "1",
            "SWARMD_NO_UPNP": "1",
            "OMP_NUM_THREADS": "1",
            "LANG": "C.UTF-8",
        }

    def install(self) -> None:
        """`swarmd` and `python` on the path, of the Python that runs this."""
        binaries = self.folder / "bin"
        binaries.mkdir()
        for name, arguments in (("swarmd", " -m swarmd"), ("python", "")):
            wrapper = binaries / name
            wrapper.write_text(f'#!/bin/sh\nexec "{sys.executable}"{arguments} "$@"\n')
            wrapper.chmod(0o755)

    def play(self, scene: Scene) -> None:
        """Raises WalkFailed at the first command that fails."""
        for machine in scene.machines:
            for page in machine.pages:
                for command in commands_of(page, (ROOT / page).read_text(encoding="utf-8")):
                    self.perform(machine.name, command)
        for one in self.background:
            if one.process.poll() is not None:
                raise WalkFailed(f"{one.command}: it ended meanwhile\n{_tail(one.log)}")

    def perform(self, machine: str, command: Command) -> None:
        try:
            text = prepared(command, self.invite)
        except ValueError as error:
            raise WalkFailed(str(error)) from error
        if excuse(command) is not None or (machine, text) in self.done:
            return
        self.say(f"{machine}: {command}")
        self.done.add((machine, text))
        ready = is_background(command)
        if ready is not None:
            self.start(machine, command, text, ready)
            return
        arguments = ["bash", "-euc", text] if command.language == "bash" else ["python", "-c", text]
        try:
            ended = subprocess.run(
                arguments, env=self.environment(machine), cwd=self.folder / machine,
                capture_output=True, text=True, check=False, timeout=COMMAND_TIMEOUT,
            )  # fmt: skip
        except subprocess.TimeoutExpired as error:
            raise WalkFailed(f"{command}: not done after {COMMAND_TIMEOUT:g} s") from error
        if ended.returncode:
            raise WalkFailed(f"{command}: code {ended.returncode}\n{ended.stderr[-2000:]}")
        if (command.language == "python" or text.startswith(SPEAKS)) and not ended.stdout.strip():
            raise WalkFailed(f"{command}: printed nothing\n{ended.stderr[-2000:]}")
        if text.startswith("swarmd invite"):
            self.invite = ended.stdout.strip()

    def start(self, machine: str, command: Command, text: str, ready: str) -> None:
        log = self.folder / f"background-{len(self.background)}.log"
        with log.open("wb") as file:
            process = subprocess.Popen(
                ["bash", "-euc", f"exec {text}"], env=self.environment(machine),
                cwd=self.folder / machine, stdin=subprocess.DEVNULL, stdout=file, stderr=file,
            )  # fmt: skip
        self.background.append(Background(command, process, log))
        give_up = time.monotonic() + READY_TIMEOUT
        while ready not in log.read_text(encoding="utf-8"):
            if process.poll() is not None:
                raise WalkFailed(f"{command}: code {process.returncode}\n{_tail(log)}")
            if time.monotonic() > give_up:
                raise WalkFailed(f"{command}: not ready after {READY_TIMEOUT:g} s\n{_tail(log)}")
            time.sleep(0.05)

    def stop(self) -> list[str]:
        """End what goes on; returns complaints about what did not end well."""
        complaints = []
        for one in reversed(self.background):
            if one.process.poll() is None:
                one.process.send_signal(signal.SIGTERM)
        for one in self.background:
            try:
                if one.process.wait(STOP_TIMEOUT):
                    complaints.append(f"{one.command}: code {one.process.returncode} at the end")
            except subprocess.TimeoutExpired:
                one.process.kill()
                one.process.wait()
                complaints.append(f"{one.command}: did not end within {STOP_TIMEOUT:g} s")
        return complaints

    def say(self, line: str) -> None:
        print(f"{time.monotonic() - self.begin:6.1f} s  {line}", flush=True)


def _tail(log: Path) -> str:
    return log.read_text(encoding="utf-8")[-2000:]


@contextmanager
def staged(folder: Path) -> Iterator[Stage]:
    """Raises WalkFailed at the end if something in the background did not end well."""
    stage = Stage(folder)
    stage.install()
    try:
        yield stage
    finally:
        complaints = stage.stop()
    if complaints:
        raise WalkFailed("\n".join(complaints))


def own_network() -> list[str]:
    """What is put before a command to run it in a network namespace of its own."""
    user = [] if os.geteuid() == 0 else ["--user", "--map-root-user"]
    return ["unshare", "--net", *user, "--"]


def why_not() -> str | None:
    """Why this system gives us no network of our own, or None."""
    if shutil.which("unshare") is None or shutil.which("ip") is None:
        return "needs Linux with unshare (util-linux) and ip (iproute2)"
    command = [*own_network(), "ip", "link", "set", "lo", "up"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stderr.strip() if done.returncode else None


def set_up_network(addresses: Sequence[str]) -> None:
    """This namespace has a loopback device and nothing else; `addresses` are put on it."""
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    for address in addresses:
        subprocess.run(["ip", "address", "add", f"{address}/32", "dev", "lo"], check=True)


def main() -> int:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    if not is_alone():
        print("start this in a network namespace of its own: python -m tests.walk")
        return 2
    set_up_network(ADDRESSES)
    with tempfile.TemporaryDirectory(prefix="swarmd-walk-") as folder:
        try:
            with staged(Path(folder)) as stage:
                stage.play(SCENES[int(sys.argv[1])])
        except WalkFailed as error:
            print(f"the walk failed: {error}", flush=True)
            return 1
    stage.say("every command was run")
    return 0


def is_alone() -> bool:
    """Whether this process sees a network without devices but loopback."""
    with open("/proc/net/dev", encoding="utf-8") as file:
        devices = [line.partition(":")[0].strip() for line in file if ":" in line]
    return devices == ["lo"]


if __name__ == "__main__":
    sys.exit(main())
