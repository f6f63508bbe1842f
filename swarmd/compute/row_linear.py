"""Linear layers laid out and computed so that a single row, which is what decode runs, is fast.

A decode step reads every weight once and does little else, so it should run at the speed of
memory. How near it comes depends on the kernel, and the kernel on the order of the weights in
memory: row by row, as checkpoints have them, a product with one row is a dot product an output;
column by column it is a scaled sum of columns, which on some processors reads twice as fast.
Which is faster differs by shape and processor, as does torch's kernel against numpy's
(OpenBLAS), so each shape is measured on the loaded weights. Values, shapes and names of the
weights stay as they are: a layout is a matter of strides.

Only the CPU is concerned; many rows at a time always go through torch, in either layout.
"""

from __future__ import annotations

import contextlib
import itertools
import statistics
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from threadpoolctl import threadpool_limits
from torch import nn

from swarmd.compute.fused_linears import FusedLinear, fuse_linears

__all__ = [
    "Kernel",
    "RowLinear",
    "kernel_seconds",
    "linear_shapes",
    "one_thread",
    "use_faster_rows",
]

FEW_ROWS = 32
"""Up to so many rows numpy's product was the faster one where it is for one row (`bench.rows`)."""

TRIALS = 3
SAMPLE_BYTES = 64 << 20
"""Weights of a shape that a trial reads: more than processors cache, where there are so many."""


@dataclass(frozen=True, slots=True)
class Kernel:
    """How a shape's products with one row are computed. The default is what checkpoints give."""

    by_columns: bool = False
    by_numpy: bool = False


class RowLinear(nn.Linear):
    """`nn.Linear` whose product with few rows is numpy's. Weights and parameters are the same."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        if input.numel() > FEW_ROWS * self.in_features:
            return super().forward(input)
        product = input.numpy().reshape(-1, self.in_features) @ self.weight.numpy().T
        output = torch.from_numpy(product).view(*input.shape[:-1], self.out_features)
        return output if self.bias is None else output + self.bias


def linear_shapes(model: nn.Module) -> dict[tuple[int, int], list[nn.Linear]]:
    """The plain linear layers on the CPU, by shape (outputs, inputs)."""
    shapes: defaultdict[tuple[int, int], list[nn.Linear]] = defaultdict(list)
    for module in model.modules():
        if type(module) is nn.Linear and module.weight.device.type == "cpu":
            shapes[module.out_features, module.in_features].append(module)
    return shapes


def use_faster_rows(model: nn.Module) -> dict[tuple[int, int], Kernel]:
    """Give the model's linear layers the layout and the kernel that are fastest here.

    Returns what was chosen, by shape (outputs, inputs).
    """
    fuse_linears(model)
    shapes = linear_shapes(model)
    parts = [module for module in model.modules() if isinstance(module, FusedLinear)]
    chosen = {}
    with torch.inference_mode():
        for shape, layers in shapes.items():
            chosen[shape] = _fastest(layers)
            for layer in layers:
                _apply(chosen[shape], layer)
        copied = {
            id(layer.weight)
            for shape, layers in shapes.items()
            for layer in layers
            if chosen[shape].by_columns
        }
        copied |= {id(part.weight) for part in parts}
        if copied:
            _leave_the_file(model, copied)
        for part in parts:
            part.share_weight()
    return chosen


def _leave_the_file(model: nn.Module, copied: set[int]) -> None:
    """Copy all other parameters as well: weights are views of a mapped file, and one small tensor
    would keep all of its pages, also those of weights that were copied into the other layout."""
    for parameter in model.parameters():
        if id(parameter) not in copied:
            parameter.data = parameter.data.clone(memory_format=torch.preserve_format)


def _apply(kernel: Kernel, layer: nn.Linear) -> None:
    if kernel.by_columns:
        layer.weight.data = _laid_out(layer.weight, by_columns=True)
    if kernel.by_numpy:
        layer.__class__ = RowLinear


@contextlib.contextmanager
def one_thread(rows: int) -> Iterator[None]:
    """For a run of few rows on the CPU, keep torch's other threads out of it: each of its many
    small operations would wait for them to wake up, and the products are numpy's."""
    threads = torch.get_num_threads()
    if rows > FEW_ROWS or threads == 1:
        yield
        return
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def kernel_seconds(layers: Sequence[nn.Linear], rows: int = 1) -> dict[Kernel, list[float]]:
    """Seconds that a product of each of some `layers` with few rows takes by each kernel.

    All `layers` have one shape. Some are copied, tried in turn, `TRIALS` times over. numpy's own
    threads are limited to one, for good: they and torch's would wait for one another's cores,
    which costs many times what they gain.
    """
    threadpool_limits(limits=1, user_api="blas")
    weight = layers[0].weight
    sample = layers[: max(1, SAMPLE_BYTES // (weight.numel() * weight.element_size()))]
    row = torch.ones(1, rows, layers[0].in_features, dtype=weight.dtype)
    layouts = {
        by_columns: [_laid_out(layer.weight, by_columns=by_columns) for layer in sample]
        for by_columns in (False, True)
    }
    trials = {
        kernel: [_bare(kernel, weight) for weight in layouts[kernel.by_columns]]
        for kernel in (Kernel(*flags) for flags in itertools.product((False, True), repeat=2))
        if not kernel.by_numpy or weight.dtype == torch.float32
    }
    seconds: dict[Kernel, list[float]] = {kernel: [] for kernel in trials}
    for _, (kernel, copies) in itertools.product(range(TRIALS), trials.items()):
        began = time.perf_counter()
        for copy in copies:
            copy(row)
        seconds[kernel].append((time.perf_counter() - began) / len(copies))
    return seconds


def _fastest(layers: Sequence[nn.Linear]) -> Kernel:
    """The kernel that is fastest for one row; what it takes for eight counts as well, by a fourth,
    since sessions run together."""
    one, eight = kernel_seconds(layers), kernel_seconds(layers, 8)
    return min(one, key=lambda k: statistics.median(one[k]) + statistics.median(eight[k]) / 4)


def _laid_out(weight: torch.Tensor, *, by_columns: bool) -> torch.Tensor:
    return weight.detach().t().contiguous().t() if by_columns else weight.detach()


def _bare(kernel: Kernel, weight: torch.Tensor) -> nn.Linear:
    """A layer of this weight that uses the kernel, without a bias."""
    outputs, inputs = weight.shape
    layer = nn.Linear(inputs, outputs, bias=False, device="meta")
    layer.weight = nn.Parameter(weight, requires_grad=False)
    if kernel.by_numpy:
        layer.__class__ = RowLinear
    return layer
