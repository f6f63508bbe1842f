"""Rounding passes and lies do not: measured over tiny models of many families, in each dtype."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest
import torch

from swarmd.blocks import Span
from swarmd.client.agreement import TOLERANCE, check_supported, compare, tolerance_of
from swarmd.compute.block_span import BlockSpan
from swarmd.compute.ends import ModelEnds
from swarmd.compute.model_folder import open_folder
from swarmd.compute.sole_session import SoleSession
from swarmd.errors import UsageError
from swarmd.peers import Arithmetic
from tests.families import CHARACTERISTIC, N_BLOCKS, save_tiny

HIDDEN = 32
MARGIN = {"float32": 10.0, "bfloat16": 2.0, "float16": 2.0}
STEPWISE = [37, *range(38, 81)]
"""Where the steps of a hop end: a prompt, then tokens one by one."""
CHUNKS = ([80], [37, 57, 60, 80])
"""Where those of a verifier end."""


def raw(tensor: torch.Tensor) -> bytes:
    return tensor.contiguous().view(torch.uint8).numpy().tobytes()


def run(blocks: BlockSpan, span: Span, hidden: torch.Tensor, ends: list[int]) -> torch.Tensor:
    session, start, outputs = SoleSession(blocks, 128, span), 0, []
    for end in ends:
        outputs.append(session.step(hidden[:, start:end], start))
        start = end
    return torch.cat(outputs, dim=1)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("family", CHARACTERISTIC)
def test_honest_peers_differ_by_far_less_than_the_tolerance(
    family: str, dtype: str, tmp_path: Path
) -> None:
    folder = open_folder(save_tiny(family, tmp_path / family))
    try:
        check_supported(Arithmetic(dtype), folder.config)
    except UsageError:
        assert "expert" in str(folder.config)
        assert dtype != "float32"
        return
    ends, blocks = ModelEnds(folder, dtype=dtype), BlockSpan(folder, Span(0, 6), dtype=dtype)
    generator = torch.Generator().manual_seed(4)
    hidden = ends.embed(torch.randint(3, 96, (1, 80), generator=generator), 0)
    largest, inputs = 0.0, hidden
    for span in (Span(0, N_BLOCKS), Span(0, 3), Span(3, 6)):
        inputs = hidden if span.start == 0 else inputs
        stepwise = run(blocks, span, inputs, STEPWISE)
        for chunks in CHUNKS:
            chunked = run(blocks, span, inputs, chunks)
            found = compare(
                raw(stepwise), raw(chunked), dtype=dtype, hidden_size=HIDDEN, tolerance=1.0
            )
            largest = max(largest, found.largest)
        inputs = stepwise
    assert largest * MARGIN[dtype] < TOLERANCE[dtype], largest


@pytest.mark.parametrize("quantization", ["int8", "int4"])
@pytest.mark.parametrize("family", ["llama", "qwen2", "gpt_neox"])
def test_quantized_peers_differ_by_far_less_than_the_tolerance(
    family: str, quantization: str, tmp_path: Path
) -> None:
    path = save_tiny(family, tmp_path / family, intermediate_size=64)
    folder, whole = open_folder(path), Span(0, N_BLOCKS)
    ends = ModelEnds(folder, dtype="float32")
    blocks = BlockSpan(folder, whole, dtype="float32", quantization=quantization)
    generator = torch.Generator().manual_seed(4)
    hidden = ends.embed(torch.randint(3, 96, (1, 80), generator=generator), 0)
    stepwise = run(blocks, whole, hidden, STEPWISE)
    found = [
        compare(
            raw(stepwise), raw(run(blocks, whole, hidden, chunks)),
            dtype="float32", hidden_size=HIDDEN, tolerance=1.0,
        ).largest
        for chunks in CHUNKS
    ]  # fmt: skip
    assert 2 * max(found) < tolerance_of(Arithmetic("float32", quantization)), found


def floats(*rows: list[float]) -> bytes:
    return b"".join(struct.pack(f"<{len(row)}f", *row) for row in rows)


def first(a: bytes, b: bytes) -> int | None:
    tolerance = TOLERANCE["float32"]
    return compare(a, b, dtype="float32", hidden_size=4, tolerance=tolerance).first


HONEST = [1.0, -2.0, 0.0, 1000.0]


@pytest.mark.parametrize(
    "lie",
    [
        [0.0, 0.0, 0.0, 0.0],
        [1.0, -2.0, 0.0, 1002.0],
        [-1.0, 2.0, 0.0, -1000.0],
        [1.0, -2.0, 0.0, 3.4e38],
        [3.4e38] * 4,
        [-3.4e38, 3.4e38, 1e-45, 1000.0],
    ],
)
def test_a_lie_differs_in_either_order(lie: list[float]) -> None:
    good, bad = floats(HONEST, HONEST), floats(HONEST, lie)
    assert first(good, bad) == 1
    assert first(bad, good) == 1


@pytest.mark.parametrize("row", [HONEST, [0.0] * 4, [3.4e38] * 4, [1e-45] * 4])
def test_equal_outputs_agree(row: list[float]) -> None:
    assert first(floats(row), floats(row)) is None
    near = [value * (1 + 1e-6) for value in HONEST]
    assert first(floats(HONEST), floats(near)) is None


def test_models_with_experts_need_float32() -> None:
    with pytest.raises(UsageError, match="--dtype float32"):
        check_supported(Arithmetic("bfloat16"), {"text_config": {"num_local_experts": 4}})
    with pytest.raises(UsageError, match="without --quantize"):
        check_supported(Arithmetic("float32", "int8"), {"num_local_experts": 4})
    check_supported(Arithmetic("float32"), {"num_local_experts": 4})
    check_supported(Arithmetic("bfloat16"), {"n_routed_experts": None})
