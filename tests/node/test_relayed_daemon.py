"""A real daemon that nobody can dial: it serves through another one."""

from __future__ import annotations

import json
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from bench.nodes import SWARMD, Swarm, swarm

pytestmark = pytest.mark.no_leak_check


def answer(running: Swarm, *options: str) -> dict[str, Any]:
    done = running.run("generate", "The sea is", "-n", "24", "--json", *options)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def addresses(running: Swarm) -> dict[str, tuple[str, str]]:
    """Address and state by blocks, of who can be routed over."""
    models = json.loads(running.run("peers", "--json").stdout)["models"]
    peers = models[0]["peers"]
    return {"{}:{}".format(*p["blocks"]): (p["address"], p["state"]) for p in peers}


def wait_for(running: Swarm, blocks: str, address: str) -> None:
    give_up = time.monotonic() + 60
    while addresses(running).get(blocks) != (address, "online"):
        assert time.monotonic() < give_up, addresses(running)
        time.sleep(0.3)


def test_a_relayed_daemon_serves_and_moves_to_another_relay(smollm2: Path) -> None:
    with swarm("0:15") as running:
        (first,) = running.nodes
        running.start("15:30")
        direct = answer(running)
        second = running.nodes[1]
        hidden = running.launch("15:30", "--relayed")
        running.wait_ready(hidden)
        second.process.terminate()
        second.process.wait(30)
        wait_for(running, "15:30", first.address)
        through = answer(running)
        assert through["text"] == direct["text"]
        assert len(through["route"]) == 2

        third = running.start("0:15")
        process = subprocess.Popen(
            [*SWARMD, "generate", "The sea is", "-n", "24", "--json", "--wait", "60"],
            env=running.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert process.stderr is not None
        while "Route found" not in process.stderr.readline():
            pass
        first.kill()
        out, err = process.communicate(timeout=120)
        assert process.returncode == 0, err
        assert json.loads(out)["text"] == direct["text"]
        assert addresses(running)["15:30"] == (third.address, "online")
