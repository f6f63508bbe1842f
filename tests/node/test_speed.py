"""`swarmd bench`: what is measured, and what follows from it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from swarmd.blocks import Span
from swarmd.cli import main
from swarmd.compute.model_folder import open_folder
from swarmd.compute.throughput import Throughput
from swarmd.config import DaemonConfig
from swarmd.node.memory_probe import memory_plan
from swarmd.node.speed import Speed, memory_bandwidth
from tests.families import save_tiny


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny("llama", tmp_path_factory.mktemp("bench") / "tiny")


def test_what_follows_from_the_measurement(model: Path) -> None:
    folder = open_folder(model)
    plan = memory_plan(DaemonConfig(), folder, "float32")
    speed = Speed(folder, Span(0, 2), "float32", Throughput(1000, 100), 1e9, plan)
    assert plan.blocks == 6
    assert speed.decode_tokens_per_second == pytest.approx(1e6 / 6000)
    assert speed.prefill_tokens_per_second == pytest.approx(1e6 / 600)
    assert speed.decode_bandwidth == pytest.approx(plan.block_bytes * 1000)


def test_bandwidth_is_that_of_a_memory() -> None:
    assert 1e8 < memory_bandwidth("cpu") < 1e13


@pytest.mark.parametrize(
    ("arguments", "blocks"),
    [([], [0, 4]), (["--blocks", "9"], [0, 6]), (["--blocks", "2:3"], [2, 3])],
)
def test_the_command(
    arguments: list[str], blocks: list[int], model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["bench", "--json", "--dtype", "float32", "--model", str(model), *arguments])
    assert not ended.value.code
    said = json.loads(capsys.readouterr().out)
    assert said["blocks"] == blocks
    assert said["decode_us"] > 0
    assert said["serve"]["blocks"] == 6
    assert said["id"] == str(open_folder(model).model_id)


def test_blocks_that_the_model_lacks(model: Path) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["bench", "--dtype", "float32", "--model", str(model), "--blocks", "4:9"])
    assert ended.value.code == 2
