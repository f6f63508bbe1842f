"""Linear layers that use the faster of two kernels for a single row, which is what decode runs.

A decode step is bound by reading the weights once. On processors without AVX-512, torch's fp32
matrix-vector product reaches half of the memory bandwidth, and numpy's (OpenBLAS) nearly all of
it; elsewhere it may be the other way round. So the choice is measured on the loaded weights.
Only fp32 on the CPU is concerned; several rows at a time always go through torch.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch
from threadpoolctl import threadpool_limits
from torch import nn

__all__ = ["RowLinear", "use_faster_rows"]

TRIALS = 5


class RowLinear(nn.Linear):
    """`nn.Linear` whose product with one row is numpy's. Weights and parameters are the same."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        if input.numel() != self.in_features:
            return super().forward(input)
        return _row_product(self, input)


def _row_product(layer: nn.Linear, row: torch.Tensor) -> torch.Tensor:
    product = layer.weight.numpy() @ row.numpy().reshape(-1)
    output = torch.from_numpy(product).view(*row.shape[:-1], layer.out_features)
    return output if layer.bias is None else output + layer.bias


def use_faster_rows(model: nn.Module) -> bool:
    """Turn the model's linear layers into :class:`RowLinear` if that is faster here.

    Returns whether it did. numpy's own threads are limited to one first: they and torch's would
    wait for one another's cores, which costs many times what they gain.
    """
    layers = [
        module
        for module in model.modules()
        if type(module) is nn.Linear
        and module.weight.dtype == torch.float32
        and module.weight.device.type == "cpu"
    ]
    if not layers:
        return False
    threadpool_limits(limits=1, user_api="blas")
    largest = sorted(layers, key=lambda layer: layer.weight.numel())[-TRIALS:]
    with torch.inference_mode():
        by_torch = _median_seconds(largest, nn.Linear.forward)
        by_numpy = _median_seconds(largest, _row_product)
    if by_numpy >= by_torch:
        return False
    for layer in layers:
        layer.__class__ = RowLinear
    return True


def _median_seconds(
    layers: list[nn.Linear], forward: Callable[[nn.Linear, torch.Tensor], torch.Tensor]
) -> float:
    """The median time a layer, over layers in turn, so that their weights are not in the cache."""
    times = []
    for _ in range(TRIALS):
        for layer in layers:
            row = torch.zeros(1, 1, layer.in_features)
            began = time.perf_counter()
            forward(layer, row)
            times.append(time.perf_counter() - began)
    return statistics.median(times)
