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
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from threadpoolctl import threadpool_limits
from torch import nn

from swarmd.compute.fused_linears import FusedLinear, fuse_linears
from swarmd.compute.second_thread import SecondThread

__all__ = [
    "Kernel",
    "RowLinear",
    "Shape",
    "kernel_seconds",
    "linear_shapes",
    "one_thread",
    "use_faster_rows",
]

FEW_PACKED = 4
"""Up to so many rows torch's threads take longer to wake up than they save, with packed weights."""

FEW_ROWS = 32
"""Up to so many rows numpy's product was the faster one where it is for one row (`bench.rows`)."""

NEVER = FEW_ROWS + 1
SPLITS = (1, 2, 4, 8)
"""From how many rows on a product may be split between two threads, if at all."""
WORTH = 0.9
"""What share of its time a split product may take to be worth it."""

TORCH_GAIN = 0.8
"""What share of numpy's time torch's products must take to be chosen: with numpy's, the many small
steps between the products are spared the waking of threads."""

TRIALS = 3
SAMPLE_BYTES = 64 << 20
"""Weights of a shape that a trial reads: more than processors cache, where there are so many."""


Shape: TypeAlias = tuple[int, int]
"""Outputs and inputs of a layer."""


@dataclass(frozen=True, slots=True)
class Kernel:
    """How a shape's products with one row are computed. The default is what checkpoints give."""

    by_columns: bool = False
    by_numpy: bool = False


class RowLinear(nn.Linear):
    """`nn.Linear` whose product with few rows is numpy's. Weights and parameters are the same.

    From `split_from` rows on, a second thread computes half of the outputs. With `packed`, a second
    layout of the weights, two rows and more are oneDNN's (:mod:`swarmd.compute.packed_weights`).
    """

    split_from = NEVER
    packed: torch.Tensor | None = None

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        if self.packed is not None and input.numel() > self.in_features:
            output: torch.Tensor = torch.ops.mkldnn._linear_pointwise(
                input, self.packed, self.bias, "none", [], ""
            )
            return output
        if input.numel() > FEW_ROWS * self.in_features:
            return super().forward(input)
        rows, columns = input.numpy().reshape(-1, self.in_features), self.weight.numpy().T
        product = rows @ columns if len(rows) < self.split_from else _by_halves(rows, columns)
        output = torch.from_numpy(product).view(*input.shape[:-1], self.out_features)
        return output if self.bias is None else output + self.bias


_second_thread = SecondThread()


def _by_halves(
    rows: npt.NDArray[np.float32], columns: npt.NDArray[np.float32]
) -> npt.NDArray[np.float32]:
    product = np.empty((len(rows), columns.shape[1]), dtype=rows.dtype)
    half = columns.shape[1] // 2
    _second_thread.run(
        lambda: np.matmul(rows, columns[:, :half], out=product[:, :half]),
        lambda: np.matmul(rows, columns[:, half:], out=product[:, half:]),
    )
    return product


def linear_shapes(model: nn.Module) -> dict[Shape, list[nn.Linear]]:
    """The plain linear layers on the CPU, by shape (outputs, inputs)."""
    shapes: defaultdict[Shape, list[nn.Linear]] = defaultdict(list)
    for module in model.modules():
        if type(module) is nn.Linear and module.weight.device.type == "cpu":
            shapes[module.out_features, module.in_features].append(module)
    return shapes


def use_faster_rows(model: nn.Module) -> dict[Shape, Kernel]:
    """Give the model's linear layers the layout and the kernel that are fastest here.

    Returns what was chosen, by shape (outputs, inputs).
    """
    fuse_linears(model)
    shapes = linear_shapes(model)
    parts = [module for module in model.modules() if isinstance(module, FusedLinear)]
    with torch.inference_mode():
        chosen = _fastest(shapes)
        for shape, layers in shapes.items():
            split = _splits_from(layers, chosen[shape])
            for layer in layers:
                _apply(chosen[shape], layer)
                if isinstance(layer, RowLinear):
                    layer.split_from = split
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
def one_thread(rows: int, few: int = FEW_ROWS) -> Iterator[None]:
    """For a run of up to `few` rows on the CPU, keep torch's other threads out of it: each of its
    many small operations would wait for them to wake up, and the products are numpy's."""
    threads = torch.get_num_threads()
    if rows > few or threads == 1:
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


def _fastest(shapes: Mapping[Shape, Sequence[nn.Linear]]) -> dict[Shape, Kernel]:
    """The layout of each shape, and one library for all, that are fastest for one row; what they
    take for eight counts as well, by a fourth, since sessions run together.

    It is numpy for all shapes or for none, since it wants torch to keep to one thread meanwhile.
    """
    best: dict[bool, dict[Shape, Kernel]] = {False: {}, True: {}}
    total = {False: 0.0, True: 0.0}
    for shape, layers in shapes.items():
        one, eight = kernel_seconds(layers), kernel_seconds(layers, 8)
        seconds = {k: statistics.median(one[k]) + statistics.median(eight[k]) / 4 for k in one}
        for by_numpy in {kernel.by_numpy for kernel in seconds}:
            of_it = [kernel for kernel in seconds if kernel.by_numpy is by_numpy]
            best[by_numpy][shape] = min(of_it, key=seconds.__getitem__)
            total[by_numpy] += len(layers) * seconds[best[by_numpy][shape]]
    numpy_has_all = len(best[True]) == len(shapes)
    return best[numpy_has_all and total[True] * TORCH_GAIN < total[False]]


def _splits_from(layers: Sequence[nn.Linear], kernel: Kernel) -> int:
    """From how many rows on it is worth while to split the product; `NEVER` where this process is
    to use one thread."""
    if not kernel.by_numpy or torch.get_num_threads() == 1:
        return NEVER
    weight = layers[0].weight
    sample = layers[: max(1, SAMPLE_BYTES // (weight.numel() * weight.element_size()))]
    bare = [_bare(kernel, _laid_out(of.weight, by_columns=kernel.by_columns)) for of in sample]
    for split in SPLITS:
        row = torch.ones(1, split, layers[0].in_features, dtype=weight.dtype)
        seconds: dict[int, list[float]] = {NEVER: [], split: []}
        for _, (split_from, times) in itertools.product(range(TRIALS), seconds.items()):
            for layer in bare:
                layer.split_from = split_from  # type: ignore[assignment]
            began = time.perf_counter()
            for layer in bare:
                layer(row)
            times.append(time.perf_counter() - began)
        if statistics.median(seconds[split]) < WORTH * statistics.median(seconds[NEVER]):
            return split
    return NEVER


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
