"""A second layout of weights, for steps of several rows on the CPU: oneDNN's own.

For one row a product reads the weights as they lie, at the speed of memory (`row_linear`). For two
rows and more a BLAS first brings them into blocks of its own, anew for each product, which takes
longer than the product of a few rows. oneDNN can keep the weights in such blocks. That takes their
memory once more, so it is done where there is room for it, and for shapes where it is faster here.
"""

from __future__ import annotations

import itertools
import logging
import statistics
import time
from collections import defaultdict
from collections.abc import Sequence

import torch
from torch import nn

from swarmd.compute.row_linear import RowLinear, Shape

__all__ = ["pack_weights", "packable_bytes"]

log = logging.getLogger(__name__)

TRIAL_ROWS = 8
WORTH = 0.9
"""What share of the time without it a product of so many rows may take, to be worth the memory."""
TRIALS = 3
TRIAL_BYTES = 32 << 20
"""Weights of a shape that a trial reads."""
HINT_ROWS = 64
"""For which oneDNN is asked to lay them out: what is good for those is as good for 2 to 512."""


def packable_bytes(model: nn.Module) -> int:
    """How much memory `pack_weights` takes at most."""
    return sum(_bytes(layer) for layers in _shapes(model).values() for layer in layers)


def pack_weights(model: nn.Module) -> int:
    """Give a model's :class:`RowLinear` layers the second layout, where that is faster. Returns the
    bytes that it takes: 0 where this build of torch has no oneDNN."""
    taken = 0
    with torch.inference_mode():
        for layers in _shapes(model).values():
            try:
                worth = _is_worth_it(layers)
            except (RuntimeError, AttributeError, NotImplementedError) as error:
                log.info("no second layout for weights: %s", str(error).splitlines()[0])
                return taken
            if worth:
                for layer in layers:
                    layer.packed = _packed(layer.weight)
                    taken += _bytes(layer)
    return taken


def _shapes(model: nn.Module) -> dict[Shape, list[RowLinear]]:
    shapes: defaultdict[Shape, list[RowLinear]] = defaultdict(list)
    for module in model.modules():
        if isinstance(module, RowLinear) and module.weight.dtype == torch.float32:
            shapes[module.out_features, module.in_features].append(module)
    return shapes


def _bytes(layer: nn.Linear) -> int:
    return layer.weight.numel() * layer.weight.element_size()


def _packed(weight: torch.Tensor) -> torch.Tensor:
    whole = weight.detach().contiguous()
    packed: torch.Tensor = torch.ops.mkldnn._reorder_linear_weight(whole, HINT_ROWS)
    return packed


def _is_worth_it(layers: Sequence[RowLinear]) -> bool:
    sample = layers[: max(1, TRIAL_BYTES // _bytes(layers[0]))]
    rows = torch.ones(1, TRIAL_ROWS, layers[0].in_features)
    layouts: dict[bool, list[torch.Tensor | None]] = {
        True: [_packed(layer.weight) for layer in sample],
        False: [None] * len(sample),
    }
    seconds: dict[bool, list[float]] = {True: [], False: []}
    try:
        for _, (kind, packed) in itertools.product(range(TRIALS), layouts.items()):
            for layer, one in zip(sample, packed, strict=True):
                layer.packed = one
            began = time.perf_counter()
            for layer in sample:
                layer(rows)
            seconds[kind].append(time.perf_counter() - began)
    finally:
        for layer in sample:
            layer.packed = None
    return statistics.median(seconds[True]) < WORTH * statistics.median(seconds[False])
