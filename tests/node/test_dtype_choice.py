"""`--dtype auto`: the swarm's dtype, else the faster one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import pytest

from swarmd.blocks import Span
from swarmd.compute.model_folder import open_folder
from swarmd.identity import PeerId
from swarmd.node.dtype_choice import (
    GAIN,
    DtypeChoice,
    choose_dtype,
    faster,
    followed,
    linear_seconds,
    measured_dtype,
)
from swarmd.peers import Address, ModelId, PeerInfo, PeerState
from tests.conftest import Runner
from tests.families import save_tiny

ME = PeerId(bytes(20))


def peer(
    number: int, dtype: str, blocks: int = 10, state: PeerState = PeerState.ONLINE
) -> PeerInfo:
    return PeerInfo(
        PeerId(bytes([number]) * 20), Address("127.0.0.1", 1), ModelId(bytes(16)), "m", 30,
        Span(0, blocks), state, 1, 1, 1, dtype,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("peers", "dtype"),
    [
        ([], None),
        ([peer(1, "bfloat16")], "bfloat16"),
        ([peer(1, "bfloat16", 10), peer(2, "float32", 11)], "float32"),
        ([peer(1, "bfloat16", 10), peer(2, "float32", 10)], "bfloat16"),
        ([peer(1, "float16", 10, PeerState.JOINING)], "float16"),
        ([peer(1, "float16", 10, PeerState.DRAINING)], None),
        ([peer(0, "bfloat16")], None),  # this node's own record, of the run before
        ([peer(1, "float8", 30), peer(2, "float32", 1)], "float32"),  # of a newer peer
    ],
)
def test_the_dtype_of_most_blocks_is_followed(peers: Sequence[PeerInfo], dtype: str | None) -> None:
    found = followed(peers, ME)
    assert (found.dtype if found else None) == dtype


@pytest.mark.parametrize(
    ("row", "chunk", "dtype"),
    [
        (0.5, 1.0, "bfloat16"),
        (1.0, 1.0, "float32"),
        (1 / GAIN, 1 / GAIN, "bfloat16"),
        (0.95, 0.95, "float32"),  # too little to give up exactness for
        (0.5, 40.0, "float32"),  # prompts would take too long
    ],
)
def test_bfloat16_must_be_clearly_faster(row: float, chunk: float, dtype: str) -> None:
    found = faster({"float32": (1e-3, 5e-3), "bfloat16": (row * 1e-3 - 1e-9, chunk * 5e-3)})
    assert found.dtype == dtype
    assert "float32 1.00 ms a token and 5.0 ms for 64" in found.reason


def test_the_swarm_is_asked_before_and_after_the_measurement(run_async: Runner) -> None:
    async def work(*fetched: list[PeerInfo]) -> tuple[str, int]:
        answers, measured = list(fetched), 0

        async def fetch() -> list[PeerInfo]:
            return answers.pop(0)

        async def measure() -> DtypeChoice:
            nonlocal measured
            measured += 1
            return DtypeChoice("float32", "measured")

        return (await choose_dtype(fetch, measure, ME)).dtype, measured

    other = peer(1, "bfloat16")
    assert run_async(work([other])) == ("bfloat16", 0)
    assert run_async(work([], [other])) == ("bfloat16", 1)
    assert run_async(work([], [])) == ("float32", 1)


def test_the_measurement_covers_both_dtypes_and_chunks() -> None:
    seconds = linear_seconds(Counter({(512, 512): 2, (1024, 512): 1}), "cpu")
    assert set(seconds) == {"float32", "bfloat16"}
    for row, chunk in seconds.values():
        assert 0 < row < chunk


def test_a_quantized_node_stays_with_float32_and_says_why(tmp_path: Path) -> None:
    folder = open_folder(save_tiny("llama", tmp_path / "llama"))
    found = measured_dtype(folder, "int8", "cpu")
    assert found.dtype == "float32"
    assert "whatever the dtype" in found.reason
    assert measured_dtype(folder, "none", "cpu").dtype in ("float32", "bfloat16")
