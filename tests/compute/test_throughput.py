"""What a node measures of its blocks before it serves them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from swarmd.blocks import Span
from swarmd.compute.block_span import BlockSpan
from swarmd.compute.model_folder import open_folder
from swarmd.compute.throughput import LEAST_US, Throughput, measure, measured_or_cached
from tests.families import save_tiny


@pytest.fixture(scope="module")
def blocks(tmp_path_factory: pytest.TempPathFactory) -> BlockSpan:
    folder = open_folder(save_tiny("llama", tmp_path_factory.mktemp("speed") / "tiny"))
    return BlockSpan(folder, Span(0, 2), dtype="float32")


def test_what_is_measured_on_a_processor(blocks: BlockSpan) -> None:
    found = measure(blocks)
    assert found.decode_us >= 1
    assert found.prefill_us >= 1
    assert found.row_us >= LEAST_US
    assert (found.piece_us, found.token_us) == (0.0, 0.0), "long pieces ride along"


def test_it_is_remembered(
    blocks: BlockSpan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "speed.json"
    file.write_text(json.dumps({"another": {"decode_us": 1, "prefill_us": 1}}))
    found = measured_or_cached(blocks, "model", file)
    assert len(json.loads(file.read_text())) == 2
    monkeypatch.setattr("swarmd.compute.throughput.measure", lambda _: pytest.fail("measured"))
    assert measured_or_cached(blocks, "model", file) == found


@pytest.mark.parametrize("lacks", ["row_us", "decode_us"])
def test_what_an_older_version_remembers_is_measured_anew(
    blocks: BlockSpan, tmp_path: Path, lacks: str
) -> None:
    file = tmp_path / "speed.json"
    measured_or_cached(blocks, "model", file)
    ((key, known),) = json.loads(file.read_text()).items()
    del known[lacks]
    file.write_text(json.dumps({key: known}))
    measured_or_cached(blocks, "model", file)
    assert lacks in json.loads(file.read_text())[key]


def test_what_the_scheduler_reckons_with() -> None:
    cost = Throughput(100, 20, row_us=10.0).turn_cost(batched=True)
    assert (cost.seconds(1), cost.seconds(2), cost.piece_seconds(3)) == (100, 110, 60)
    cost = Throughput(100, 20, row_us=10.0, piece_us=300.0, token_us=2.0).turn_cost(batched=True)
    assert cost.piece_seconds(10) == 320
    assert Throughput(100, 20, row_us=500.0).turn_cost(batched=True).seconds(2) == 200
    assert Throughput(100, 20).turn_cost(batched=True).seconds(2) == 120
    assert Throughput(100, 20, row_us=10.0).turn_cost(batched=False).seconds(2) == 200
