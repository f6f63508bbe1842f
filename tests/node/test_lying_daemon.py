"""A real daemon that lies, seen by the public command: what is printed, kept and avoided."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bench import nodes
from bench.nodes import Node, Swarm, swarm

pytestmark = pytest.mark.no_leak_check

PROMPT = "The history of the steam engine begins in"
FIRST_LIE = 20
LIAR = f"""
import dataclasses
from swarmd.compute.engine import Engine
from swarmd.node.announced import Announced

step, describe = Engine.step, Announced.describe

async def lying(self, session, start, hidden, **options):
    result = await step(self, session, start, hidden, **options)
    changed = result.hidden.clone()
    for row in range(changed.shape[1]):
        if start + row >= {FIRST_LIE}:
            changed[0, row] = changed[0, row].flip(0)
    return dataclasses.replace(result, hidden=changed)

Engine.step = lying
Announced.describe = lambda self, state: dataclasses.replace(describe(self, state), decode_us=1)
from swarmd.cli import main
main()
"""


@pytest.fixture(scope="module")
def running(smollm2: Path) -> Iterator[tuple[Swarm, Node]]:
    """Three honest daemons and one that announces the highest speed and lies."""
    with swarm("0:15", "15:30", "15:30") as four:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(nodes, "SWARMD", [sys.executable, "-c", LIAR])
            liar = four.start("15:30")
        yield four, liar


def answer(four: Swarm, *options: str) -> dict[str, Any]:
    done = four.run("generate", PROMPT, "-n", "24", "--json", *options)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def forgiven(four: Swarm) -> None:
    (four.folder / "evidence.json").unlink(missing_ok=True)


def test_the_answer_is_corrected_and_the_liar_is_avoided_from_then_on(
    running: tuple[Swarm, Node],
) -> None:
    four, _ = running
    wrong = answer(four)
    assert wrong["verification"] is None
    found = answer(four, "--verify", "1")
    (verdict,) = found["verification"]["verdicts"]
    assert (verdict["verdict"], verdict["position"]) == ("hop lied", FIRST_LIE)
    assert verdict["liar"] == wrong["route"][1]["peer"]
    assert verdict["liar"] not in [hop["peer"] for hop in found["route"]]
    assert found["text"] != wrong["text"]
    assert found["new_tokens"] == 24
    kept = json.loads((four.folder / "evidence.json").read_text())["records"]
    assert kept == found["verification"]["verdicts"]
    honest = answer(four)  # the liar announces the best speed, and is known
    assert verdict["liar"] not in [hop["peer"] for hop in honest["route"]]
    assert honest["token_ids"] == found["token_ids"]
    assert honest["text"] == found["text"]
    forgiven(four)
    assert answer(four)["route"] == wrong["route"]


def test_a_stream_says_what_was_wrong_and_goes_on_from_there(running: tuple[Swarm, Node]) -> None:
    four, _ = running
    forgiven(four)
    streamed = four.run("generate", PROMPT, "-n", "24", "--verify", "1")
    right = four.run("generate", PROMPT, "-n", "24").stdout  # the liar is known now
    kept = streamed.stdout.split("\n")[0]
    assert "is withdrawn" in streamed.stderr
    assert "wrong from position" in streamed.stderr
    shared = next(n for n in range(len(right), -1, -1) if kept.startswith(right[:n]))
    assert right.strip("\n").endswith(streamed.stdout.strip("\n").split("\n")[-1])
    assert shared > 0
    forgiven(four)


def test_a_wrong_fraction_is_a_misuse(running: tuple[Swarm, Node]) -> None:
    done = running[0].run("generate", "x", "--verify", "1.5", check=False)
    assert done.returncode == 2
    assert "--verify" in done.stderr
