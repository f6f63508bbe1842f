"""Layouts and kernels of linear layers: the same products, whatever was chosen."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import nn

from swarmd.compute import row_linear
from swarmd.compute.row_linear import (
    Kernel,
    RowLinear,
    kernel_seconds,
    linear_shapes,
    use_faster_rows,
)

KERNELS = [Kernel(*flags) for flags in itertools.product((False, True), repeat=2)]


def model(*, bias: bool = True, dtype: torch.dtype = torch.float32) -> nn.Sequential:
    torch.manual_seed(3)
    return nn.Sequential(
        nn.Linear(24, 40, bias=bias), nn.Linear(40, 40, bias=bias), nn.Linear(40, 8, bias=bias)
    ).to(dtype)


def choose(kernel: Kernel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(row_linear, "_fastest", lambda shapes: dict.fromkeys(shapes, kernel))


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("rows", [1, 2, 7])
def test_products_weights_and_names_stay(
    kernel: Kernel, bias: bool, rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    choose(kernel, monkeypatch)
    plain, fast = model(bias=bias), model(bias=bias)
    assert set(use_faster_rows(fast).values()) == {kernel}
    assert plain.state_dict().keys() == fast.state_dict().keys()
    for before, after in zip(plain.parameters(), fast.parameters(), strict=True):
        assert torch.equal(before, after)
        assert before.shape == after.shape
    assert all(isinstance(layer, RowLinear) is kernel.by_numpy for layer in fast)
    layers = [layer for layer in fast if isinstance(layer, nn.Linear)]
    assert all(layer.weight.t().is_contiguous() is kernel.by_columns for layer in layers)
    hidden = torch.randn(1, rows, 24)
    with torch.inference_mode():
        torch.testing.assert_close(fast(hidden), plain(hidden), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(("by_numpy", "by_torch"), [(1.0, 1.0), (1.2, 1.0), (1.0, 0.7)])
def test_numpy_has_all_shapes_or_none(
    by_numpy: float, by_torch: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    def seconds(layers: list[nn.Linear], rows: int = 1) -> dict[Kernel, list[float]]:
        odd = 0.9 if layers[0].in_features == 24 else 1.0  # torch is faster for this shape alone
        return {k: [by_numpy if k.by_numpy else odd * by_torch] for k in KERNELS}

    monkeypatch.setattr(row_linear, "kernel_seconds", seconds)
    chosen = use_faster_rows(model())
    assert {kernel.by_numpy for kernel in chosen.values()} == {by_torch == 1.0}


def test_a_tied_weight_stays_tied(monkeypatch: pytest.MonkeyPatch) -> None:
    choose(Kernel(by_columns=True, by_numpy=True), monkeypatch)
    embedding, head = nn.Embedding(16, 8), nn.Linear(8, 16, bias=False)
    head.weight = embedding.weight
    before = embedding.weight.detach().clone()
    use_faster_rows(nn.ModuleList([embedding, head]))
    assert head.weight is embedding.weight
    assert torch.equal(embedding(torch.arange(16)), before)


def test_each_shape_is_measured_and_half_precision_stays_with_torch() -> None:
    assert set(kernel_seconds(linear_shapes(model())[40, 40])) == set(KERNELS)
    halves = kernel_seconds(linear_shapes(model(dtype=torch.bfloat16))[40, 40])
    assert {kernel.by_numpy for kernel in halves} == {False}
    chosen = use_faster_rows(model())
    assert set(chosen) == {(40, 24), (40, 40), (8, 40)}
    assert use_faster_rows(nn.Embedding(3, 4)) == {}
