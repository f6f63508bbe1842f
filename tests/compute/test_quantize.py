"""Quantized layers: what they stand for, what they compute, and which layers become one."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from swarmd.blocks import Span
from swarmd.compute import quantized_loading
from swarmd.compute.block_sizes import block_bytes
from swarmd.compute.block_span import BlockSpan
from swarmd.compute.cut_model import joined, layer_stack, parse_config
from swarmd.compute.model_folder import ModelFolder, open_folder
from swarmd.compute.quantize import (
    GROUP,
    Int4Linear,
    Int8Linear,
    check_quantization,
    int4_codes,
    quantizable,
    quantize_layers,
)
from swarmd.compute.sole_session import SoleSession
from swarmd.compute.weights import load_part, torch_dtype
from swarmd.config import DaemonConfig
from swarmd.errors import UnsupportedModel, UsageError
from swarmd.node.memory_probe import memory_plan
from tests.families import CHARACTERISTIC, N_BLOCKS, save_tiny

KINDS = ("int8", "int4")
WEIGHT_ERROR = {"int8": 0.01, "int4": 0.1}
"""Of normal weights, by norm; measured are 0.006 to 0.008 and 0.08."""
SHAPES = [(16, 32), (192, 576), (576, 1536), (64, 64)]
WHOLE = Span(0, N_BLOCKS)
HIDDEN = 32
DEVICES = [
    "cpu",
    pytest.param("cuda", marks=pytest.mark.cuda),
]


def linear(
    outputs: int, inputs: int, *, bias: bool = False, dtype: str = "float32", device: str = "cpu"
) -> nn.Linear:
    torch.manual_seed(outputs + inputs)
    return nn.Linear(inputs, outputs, bias=bias, dtype=torch_dtype(dtype)).to(device)


def quantized(layer: nn.Linear, kind: str) -> tuple[nn.Module, torch.Tensor]:
    """The layer, and the float32 weights that it stands for."""
    if kind == "int8":
        eight = Int8Linear(layer)
        return eight, eight.dequantized()
    codes, scales, zeros = int4_codes(layer.weight.detach())
    groups = (codes - 8).view(layer.out_features, -1, GROUP)
    weight = groups * scales.float().unsqueeze(-1) + zeros.float().unsqueeze(-1)
    return Int4Linear(layer), weight.view(layer.out_features, layer.in_features)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", SHAPES)
def test_products_are_those_of_the_weights_that_it_stands_for(
    shape: tuple[int, int], kind: str, dtype: str, device: str
) -> None:
    layer = linear(*shape, bias=True, dtype=dtype, device=device)
    module, weight = quantized(layer, kind)
    original = layer.weight.float()
    assert (weight - original).norm() < WEIGHT_ERROR[kind] * original.norm()
    for rows in ((1, 1), (1, 7), (3, 1)):
        input = torch.randn(*rows, shape[1], dtype=torch_dtype(dtype), device=device)
        output = module(input)
        assert output.dtype == input.dtype
        exact = input.bfloat16().float() @ weight.T + layer.bias.float()
        assert output.shape == exact.shape
        gap = (output.float() - exact).abs() / (exact.abs() + exact.abs().mean())
        assert gap.max() < 0.02, "more than bfloat16 rounds"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", SHAPES)
def test_a_row_does_not_depend_on_its_company(shape: tuple[int, int], kind: str) -> None:
    module, _ = quantized(linear(*shape), kind)
    input = torch.randn(1, 70, shape[1])
    together = module(input)
    for start, end in ((0, 1), (5, 6), (3, 12), (64, 70), (0, 64)):
        assert torch.equal(module(input[:, start:end]), together[:, start:end])


@pytest.mark.parametrize("kind", KINDS)
def test_weights_of_zero_stay_zero(kind: str) -> None:
    layer = linear(16, 32)
    layer.weight.data.zero_()
    module, weight = quantized(layer, kind)
    assert not weight.any()
    assert not module(torch.randn(1, 3, 32)).any()


def test_routers_and_odd_shapes_and_other_classes_are_left_alone() -> None:
    class Other(nn.Linear):
        pass

    block = nn.ModuleDict(
        {
            "gate_proj": nn.Linear(32, 16),
            "gate": nn.Linear(32, 16),
            "router": nn.ModuleDict({"inner": nn.Linear(32, 16)}),
            "inputs": nn.Linear(33, 16),
            "outputs": nn.Linear(32, 15),
            "other": Other(32, 16),
            "norm": nn.LayerNorm(32),
        }
    )
    assert [name for _, name, _ in quantizable(block)] == ["gate_proj"]
    assert quantize_layers(block, "int8") == 1
    assert type(block["gate_proj"]) is Int8Linear
    assert type(block["gate"]) is nn.Linear


def test_a_model_without_such_layers_is_refused(tmp_path: Path) -> None:
    folder = open_folder(save_tiny("gpt2", tmp_path / "gpt2"))
    with pytest.raises(UnsupportedModel, match="leave --quantize out"):
        BlockSpan(folder, Span(0, 1), dtype="float32", quantization="int8")


def test_an_unknown_quantization_is_refused() -> None:
    with pytest.raises(UsageError, match="--quantize int3: use one of none, int8, int4"):
        check_quantization("int3", "cpu")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> ModelFolder:
    path = tmp_path_factory.mktemp("m") / "llama"
    return open_folder(save_tiny("llama", path, intermediate_size=64))


def outputs(model: BlockSpan, span: Span) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    hidden = torch.randn(1, 20, HIDDEN, generator=generator)
    return SoleSession(model, 20, span).step(hidden)


def weight_bytes(model: nn.Module) -> int:
    """Bytes that the weights hold; fused layers are views of one memory, which counts once."""
    parts = (*model.parameters(), *model.buffers())
    held = {
        t.untyped_storage().data_ptr(): t.numel() * t.element_size()
        for t in sorted(parts, key=torch.Tensor.numel)
        if t.dtype != torch.int64
    }
    return sum(held.values())


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_span_is_smaller_and_near_to_the_original(
    kind: str, dtype: str, folder: ModelFolder
) -> None:
    plain = BlockSpan(folder, WHOLE, dtype=dtype)
    small = BlockSpan(folder, WHOLE, dtype=dtype, quantization=kind)
    before, after = weight_bytes(plain._model), weight_bytes(small._model)
    assert N_BLOCKS * block_bytes(folder.config, dtype) == pytest.approx(before, rel=0.01)
    assert N_BLOCKS * block_bytes(folder.config, dtype, kind) == pytest.approx(after, rel=0.01)
    assert after < before * {"float32": 0.4, "bfloat16": 0.65}[dtype]
    for span in (WHOLE, Span(2, 4)):
        a, b = outputs(plain, span), outputs(small, span)
        assert a.dtype == b.dtype
        error = ((a - b).norm() / a.norm()).item()
        assert 1e-4 < error < {"int8": 0.1, "int4": 0.5}[kind]


def test_a_part_at_a_time_is_loaded(folder: ModelFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Span] = []

    def noting(folder: ModelFolder, span: Span, **how: object) -> object:
        asked.append(span)
        return load_part(folder, span, **how)  # type: ignore[arg-type]

    monkeypatch.setattr(quantized_loading, "load_part", noting)
    at_once = BlockSpan(folder, WHOLE, dtype="float32", quantization="int4")
    assert asked == [WHOLE]
    asked.clear()
    monkeypatch.setattr(quantized_loading, "PART_BYTES", 1)
    progress: list[tuple[int, int]] = []
    one_by_one = BlockSpan(
        folder, WHOLE, dtype="float32", quantization="int4",
        progress=lambda done, total: progress.append((done, total)),
    )  # fmt: skip
    assert asked == [Span(block, block + 1) for block in WHOLE]
    assert {total for _, total in progress} == {N_BLOCKS}
    assert [done for done, _ in progress] == sorted(done for done, _ in progress)
    assert progress[-1] == (N_BLOCKS, N_BLOCKS)
    for span in (WHOLE, Span(1, 3)):
        assert torch.equal(outputs(at_once, span), outputs(one_by_one, span))


@pytest.mark.parametrize("family", CHARACTERISTIC)
def test_joined_parts_equal_the_span_that_is_loaded_at_once(family: str, tmp_path: Path) -> None:
    folder, span = open_folder(save_tiny(family, tmp_path / family)), Span(1, 6)
    blocks = BlockSpan(folder, span, dtype="float32", faster_rows=False)
    expected = outputs(blocks, span), outputs(blocks, Span(2, 4))
    parts = (load_part(folder, Span(a, b), dtype="float32") for a, b in ((1, 3), (3, 4), (4, 6)))
    blocks = BlockSpan.of_model(
        joined(parts, parse_config(folder.config), span), span, dtype="float32"
    )
    owner, name = layer_stack(blocks._model)
    assert len(getattr(owner, name)) == len(span)
    assert torch.equal(outputs(blocks, span), expected[0])
    assert torch.equal(outputs(blocks, Span(2, 4)), expected[1])


@pytest.mark.parametrize("kind", KINDS)
def test_the_memory_plan_counts_what_is_quantized(kind: str, smollm2: Path) -> None:
    folder = open_folder(smollm2)
    plans = [
        memory_plan(DaemonConfig(quantization=q, memory=2 << 30), folder, "float32")
        for q in ("none", kind)
    ]
    assert plans[0].block_bytes == 4 * folder.block_parameters(0)
    ratio = plans[1].block_bytes / plans[0].block_bytes
    assert ratio == pytest.approx({"int8": 0.251, "int4": 0.157}[kind], abs=0.003)
    assert plans[1].workspace > plans[0].workspace, "loading takes room as well"


@pytest.mark.cuda
@pytest.mark.parametrize("kind", KINDS)
def test_a_span_on_the_gpu_is_near_to_that_on_the_cpu(kind: str, folder: ModelFolder) -> None:
    here, there = (
        BlockSpan(folder, WHOLE, dtype="bfloat16", device=device, quantization=kind)
        for device in ("cpu", "cuda")
    )
    a, b = outputs(here, WHOLE).float(), outputs(there, WHOLE).cpu().float()
    assert (a - b).norm() < 0.1 * a.norm()
