"""A swarm of four on this machine, and what happens when one is killed in mid-answer.

Uses the public commands only: `swarmd serve`, `swarmd peers`, `swarmd generate`. Everything is
bound to loopback, state lives in a temporary folder, and only processes that were started here
are ended, also on Ctrl-C.
"""

from __future__ import annotations

import codecs
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SWARMD = [sys.executable, "-m", "swarmd"]
NODES = 4
MEMORY = "380MB"  # room for 15 of the 30 blocks with their attention cache
PROMPT = "Explain in three sentences why the sky is blue."
NEW_TOKENS = 96
KILL_AFTER_CHARACTERS = 120
START_TIMEOUT = 300.0


@dataclass
class Node:
    """A daemon that was started here."""

    number: int
    port: int
    process: subprocess.Popen[bytes]
    log: Path


class DemoFailed(Exception):
    """What did not work, in one sentence."""


def main() -> int:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    with tempfile.TemporaryDirectory(prefix="swarmd-demo-") as folder:
        environment = {**os.environ, "SWARMD_STATE": folder, "PYTHONUNBUFFERED": "1"}
        nodes: list[Node] = []
        try:
            demo(Path(folder), environment, nodes)
        except DemoFailed as error:
            print(f"\nThe demo failed: {error}", file=sys.stderr)
            for node in nodes:
                print(f"--- last lines of node {node.number}", file=sys.stderr)
                if node.log.exists():
                    print("\n".join(node.log.read_text().splitlines()[-8:]), file=sys.stderr)
            return 1
        except KeyboardInterrupt:
            print("\ninterrupted; stopping the nodes", file=sys.stderr)
            return 130
        finally:
            stop(nodes)
    return 0


def demo(folder: Path, environment: dict[str, str], nodes: list[Node]) -> None:
    say("1. Four nodes, each with memory for about half of the model")
    nodes.append(start(1, folder, environment, first=True))
    wait_for(environment, nodes, peers=1, copies=0)  # converts the model on the very first run
    for number in range(2, NODES + 1):
        nodes.append(start(number, folder, environment))
    wait_for(environment, nodes, peers=NODES, copies=2)

    say("2. Who holds what: swarmd peers")
    subprocess.run([*SWARMD, "peers"], env=environment, check=True)

    say("3. An undisturbed answer: swarmd generate")
    print(f"> {PROMPT}\n")
    undisturbed = generate(environment, lambda route: None)

    say("4. The same again, and a peer on the route is killed (kill -9) in mid-answer")
    print(f"> {PROMPT}\n")
    killed: list[Node] = []

    def kill_last_hop(route: str) -> None:
        victim = node_on_route(environment, nodes, route)
        victim.process.kill()
        killed.append(victim)
        print(f"\n   ### kill -9 node {victim.number} ###", flush=True)

    disturbed = generate(environment, kill_last_hop)

    say("5. The outcome")
    if not killed:
        raise DemoFailed("the answer was too short to kill anybody in the middle of it")
    if disturbed.text != undisturbed.text:
        raise DemoFailed("the text differs from the undisturbed one")
    print(f"node {killed[0].number} was killed; the text equals the undisturbed one.")
    print(f"undisturbed: {undisturbed.summary}")
    print(f"disturbed:   {disturbed.summary}")


def start(number: int, folder: Path, environment: dict[str, str], *, first: bool = False) -> Node:
    """Start a daemon. The first one speaks to the terminal, so that progress is seen."""
    port = free_port()
    log = folder / f"node-{number}.log"
    command = [*SWARMD, "serve", "--blocks", "auto", "--memory", MEMORY, "--port", str(port)]
    print(f"   node {number}: swarmd {' '.join(command[len(SWARMD) :])}", flush=True)
    with log.open("wb") as file:
        output = None if first else file
        process = subprocess.Popen(
            command, env=environment, stdout=output, stderr=output, start_new_session=True
        )
    return Node(number, port, process, log)


def wait_for(environment: dict[str, str], nodes: list[Node], *, peers: int, copies: int) -> None:
    """Until `peers` nodes are online and every block is held `copies` times."""
    give_up = time.monotonic() + START_TIMEOUT
    while time.monotonic() < give_up:
        for node in nodes:
            if node.process.poll() is not None:
                raise DemoFailed(f"node {node.number} ended with code {node.process.returncode}")
        models = list_models(environment)
        online = [peer for model in models for peer in model["peers"] if peer["state"] == "online"]
        if len(online) >= peers and all(min(model["coverage"]) >= copies for model in models):
            return
        time.sleep(1.0)
    raise DemoFailed(f"the swarm was not complete after {START_TIMEOUT:.0f} s")


def list_models(environment: dict[str, str]) -> list[dict[str, Any]]:
    """What `swarmd peers --json` says; nothing while no node answers yet."""
    done = subprocess.run(
        [*SWARMD, "peers", "--json"], env=environment, capture_output=True, text=True, check=False
    )
    models: list[dict[str, Any]] = json.loads(done.stdout)["models"] if not done.returncode else []
    return models


def node_on_route(environment: dict[str, str], nodes: list[Node], route: str) -> Node:
    """The node that runs the last hop of `Route found: 0:15 via … 15:30 via …`."""
    short = route.split()[-1]
    for model in list_models(environment):
        for peer in model["peers"]:
            if peer["id"].startswith(short):
                port = int(peer["address"].rpartition(":")[2])
                return next(node for node in nodes if node.port == port)
    raise DemoFailed(f"no node of the route was found: {route}")


@dataclass(frozen=True)
class Answer:
    text: str
    summary: str


def generate(environment: dict[str, str], on_middle: Any) -> Answer:
    """Run `swarmd generate`, show its text as it comes, call `on_middle(route)` in mid-answer."""
    command = [*SWARMD, "generate", PROMPT, "--chat", "--max-new-tokens", str(NEW_TOKENS)]
    process = subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    notes: list[str] = []

    def read_notes() -> None:
        assert process.stderr is not None
        for raw in process.stderr:
            notes.append(raw.decode().rstrip())
            print(f"   {notes[-1]}", flush=True)

    reader = threading.Thread(target=read_notes)
    reader.start()
    text, told = "", False
    try:
        assert process.stdout is not None
        decoder = codecs.getincrementaldecoder("utf-8")()
        while chunk := os.read(process.stdout.fileno(), 4096):
            piece = decoder.decode(chunk)
            text += piece
            print(piece, end="", flush=True)
            if not told and len(text) > KILL_AFTER_CHARACTERS:
                told = True
                route = next(note for note in notes if note.startswith("Route found"))
                on_middle(route)
    finally:
        if process.poll() is None and sys.exc_info()[0] is not None:
            process.terminate()
        process.wait()
        reader.join()
    if process.returncode:
        raise DemoFailed(f"swarmd generate ended with code {process.returncode}: {notes[-1:]}")
    return Answer(text, notes[-1] if notes else "")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def stop(nodes: list[Node]) -> None:
    for node in nodes:
        if node.process.poll() is None:
            node.process.terminate()
    give_up = time.monotonic() + 15
    for node in nodes:
        try:
            node.process.wait(max(0.1, give_up - time.monotonic()))
        except subprocess.TimeoutExpired:
            node.process.kill()
            node.process.wait()


def say(text: str) -> None:
    print(f"\n== {text}\n", flush=True)


if __name__ == "__main__":
    sys.exit(main())
