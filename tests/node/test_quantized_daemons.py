"""`--quantize`, `--quantization` and `--dtype auto` by the public commands, on a tiny model."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bench.nodes import swarm
from swarmd.compute.model_folder import open_folder
from tests.families import save_tiny

pytestmark = pytest.mark.no_leak_check


def test_an_int4_node_is_smaller_and_announced_and_chosen(smollm2: Path) -> None:
    with swarm(options=("--threads", "1", "--kv-tokens", "256")) as running:
        plain = running.start("0:30")
        small = running.launch("0:30", "--quantize", "int4", "--dtype", "auto")
        running.wait_ready(small)
        log = small.log.read_text()
        assert "--dtype auto: float32, because the peers of this model compute in it" in log
        assert small.resident_mb < plain.resident_mb - 200
        (found,) = json.loads(running.run("peers", "--json").stdout)["models"]
        assert {p["address"]: p["quantization"] for p in found["peers"]} == {
            plain.address: "none",
            small.address: "int4",
        }
        done = running.run(
            "generate", "The capital of France is", "-n", "4", "--json", "--quantization", "int4"
        )
        answer = json.loads(done.stdout)
        assert [hop["quantization"] for hop in answer["route"]] == ["int4"]
        assert "Paris" in answer["text"]
        refused = running.run("generate", "x", "--quantization", "int8", check=False)
        assert refused.returncode == 1
        assert "--quantization int8 leaves out 2 live peers" in refused.stderr
        misused = running.run(
            "generate", "x", "--quantization", "any", "--verify", "0.5", check=False
        )
        assert misused.returncode == 2
        assert "--quantization one" in misused.stderr


def test_a_model_that_cannot_be_quantized_is_one_clear_line(tmp_path: Path) -> None:
    folder = open_folder(save_tiny("gpt2", tmp_path / "gpt2"))
    with swarm() as running:
        done = running.run(
            "serve", "--model", str(folder.path), "--blocks", "0:6", "--quantize", "int8",
            check=False,
        )  # fmt: skip
        assert done.returncode == 2
        assert "none of its layers can be quantized; leave --quantize out" in done.stderr
        assert "Traceback" not in done.stderr
