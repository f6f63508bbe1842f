"""Real daemons, started by the public commands, on the real model; peers are killed for real."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from bench.nodes import SWARMD, Node, Swarm, swarm

pytestmark = pytest.mark.no_leak_check

PROMPT = "Once upon a time, in a village by the sea, there lived"
NEW_TOKENS = 64
MEMORY = ("--memory", "380MB")


def peers(running: Swarm) -> dict[str, Any]:
    (model,) = json.loads(running.run("peers", "--json").stdout)["models"]
    found: dict[str, Any] = model
    return found


def wait_until(condition: Callable[[], bool], seconds: float = 30.0) -> None:
    give_up = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < give_up, "it did not come about in time"
        time.sleep(0.2)


@pytest.fixture(scope="module")
def four(smollm2: Path) -> Iterator[Swarm]:
    """Four daemons that start at the same moment, each with memory for half of the model."""
    with swarm(options=MEMORY) as running:
        running.start("auto")
        nodes = [running.launch("auto") for _ in range(3)]
        for node in nodes:
            running.wait_ready(node)
        yield running


@pytest.fixture(scope="module")
def undisturbed(four: Swarm) -> dict[str, Any]:
    found = answer(four)
    assert found["new_tokens"] == NEW_TOKENS, "the answer is too short to disturb it in the middle"
    return found


def answer(
    running: Swarm, disturb: Callable[[Node], None] | None = None, *options: str
) -> dict[str, Any]:
    """`swarmd generate --json`; `disturb` gets the node of the last hop in mid-answer."""
    nodes = {p["id"][:8]: running.by_address(p["address"]) for p in peers(running)["peers"]}
    process = subprocess.Popen(
        [*SWARMD, "generate", PROMPT, "-n", str(NEW_TOKENS), "--json", *options],
        env=running.environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    notes = process.stderr.readline()
    while notes and "Route found" not in notes:
        notes = process.stderr.readline()
    if disturb is not None:
        time.sleep(1.0)  # some tokens in; every token is tried in tests/chain/test_failover.py
        disturb(nodes[notes.split()[-1]])
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    found: dict[str, Any] = json.loads(out)
    return found


def revive(running: Swarm, node: Node) -> None:
    """Replace a dead node, and wait until the swarm is covered twice again."""
    node.process.kill()
    node.process.wait()
    running.nodes.remove(node)
    running.start(node.blocks)
    wait_until(lambda: min(peers(running)["coverage"]) == 2)


def test_nodes_that_start_together_cover_every_block_twice(four: Swarm) -> None:
    model = peers(four)
    assert model["coverage"] == [2] * 30
    assert model["holes"] == []
    assert sorted(peer["blocks"] for peer in model["peers"]) == [[0, 15]] * 2 + [[15, 30]] * 2
    for peer in model["peers"]:
        assert peer["state"] == "online"
        assert peer["tokens_per_second"] > 0
        assert peer["rtt_ms"] >= 0
        assert peer["kv_free"] == 4096
        assert peer["age_seconds"] < 120
        assert peer["model"] == model["name"]
        assert len(peer["id"]) == 40


def test_the_table_for_people_names_every_peer(four: Swarm) -> None:
    text = four.run("peers").stdout
    assert all(node.address in text for node in four.nodes)
    assert "coverage  0 " + "2" * 30 in text


def test_text_goes_to_stdout_and_the_route_to_stderr(four: Swarm) -> None:
    done = four.run("generate", "The capital of France is", "--max-new-tokens", "8")
    assert done.stdout.startswith(" Paris")
    assert "Route found: 0:15 via" in done.stderr
    assert "15:30 via" in done.stderr
    assert "tokens/s" in done.stderr


def test_stop_strings_seed_and_stdin(four: Swarm) -> None:
    stopped = four.run("generate", "Count: one, two, three,", "-n", "24", "--stop", "six")
    assert "six" not in stopped.stdout
    sampled = [
        four.run("generate", "A poem:", "-n", "12", "--temperature", "1", "--seed", "3").stdout
        for _ in range(2)
    ]
    assert sampled[0] == sampled[1]
    piped = subprocess.run(
        [*SWARMD, "generate", "-", "-n", "4"],
        env=four.environment, input="The capital of France is", capture_output=True, text=True,
        check=True,
    )  # fmt: skip
    assert piped.stdout.startswith(" Paris")


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP, signal.SIGTERM])
def test_an_answer_survives_its_peer(
    number: signal.Signals, four: Swarm, undisturbed: dict[str, Any]
) -> None:
    victims: list[Node] = []

    def disturb(node: Node) -> None:
        victims.append(node)
        node.kill(number)

    found = answer(four, disturb)
    assert found["token_ids"] == undisturbed["token_ids"]
    assert found["text"] == undisturbed["text"]
    if number != signal.SIGTERM:  # a node that leaves in good order lets its sessions finish
        (recovery,) = found["recoveries"]
        assert recovery["lost"].startswith("15:30")
    revive(four, victims[0])


def test_sigterm_announces_that_the_node_leaves(four: Swarm) -> None:
    node = four.nodes[-1]
    node.process.terminate()
    assert node.process.wait(20) == 0
    assert node.address not in [peer["address"] for peer in peers(four)["peers"]]
    assert "left the swarm" in node.log.read_text()
    revive(four, node)


def test_missing_blocks_are_named_or_waited_for(smollm2: Path) -> None:
    with swarm("0:15") as running:
        done = running.run("generate", "Hello", check=False)
        assert done.returncode == 1
        assert done.stdout == ""
        (line,) = done.stderr.strip().splitlines()
        assert "no live peer holds blocks 15:30" in line
        assert "swarmd serve --blocks 15:30" in line
        waiting = subprocess.Popen(
            [*SWARMD, "generate", "The capital of France is", "-n", "4", "--wait", "90"],
            env=running.environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        running.start("15:30")
        out, err = waiting.communicate(timeout=120)
        assert waiting.returncode == 0, err
        assert out.startswith(" Paris")


def test_interrupting_a_client_frees_its_caches(four: Swarm) -> None:
    process = subprocess.Popen(
        [*SWARMD, "generate", PROMPT, "-n", "400"],
        env=four.environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout is not None
    process.stdout.read(10)
    os.kill(process.pid, signal.SIGINT)
    process.communicate(timeout=20)
    assert process.returncode == 130
    follow_up = answer(four)
    assert follow_up["new_tokens"] == NEW_TOKENS
