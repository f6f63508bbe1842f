"""Whether two peers computed the same: a comparison that lets rounding pass and nothing else.

A verifier runs many positions at once where the hop took them one by one, perhaps on another
processor, so honest outputs differ in their last bits. For one position with the values a and b::

    difference = max over i of |a_i - b_i| / (min(|a_i|, |b_i|) + min(mean|a|, mean|b|))

The mean keeps values near zero from counting, and the minima keep a liar from hiding behind large
values of its own: a vector of zeros is infinitely far from any other.

`TOLERANCE` is set from measurements: `tests/client/test_agreement.py` runs every tiny family of
the tests step by step and in chunks, and demands a margin of ten below it in float32 and of two
in the half precisions. Blocks that route to experts make a jump where two experts are nearly
tied; no tolerance covers that, so :func:`check_supported` wants float32 of such models.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from swarmd.compute.weights import torch_dtype
from swarmd.errors import UsageError
from swarmd.peers import Arithmetic

__all__ = ["TOLERANCE", "Comparison", "check_supported", "compare", "tolerance_of"]

TOLERANCE: dict[str, float] = {"float32": 1e-3, "bfloat16": 0.25, "float16": 0.05}
"""The greatest difference of a position, by dtype, that counts as rounding."""


def tolerance_of(arithmetic: Arithmetic) -> float:
    """The tolerance for peers of one arithmetic. Quantized layers round to bfloat16 whatever the
    dtype, so theirs is that of bfloat16."""
    quantized = arithmetic.quantization != "none"
    return max(TOLERANCE[arithmetic.dtype], TOLERANCE["bfloat16"] if quantized else 0.0)


@dataclass(frozen=True, slots=True)
class Comparison:
    """`largest` difference of all positions; `first` row beyond the tolerance, or None."""

    largest: float
    first: int | None


def compare(
    a: bytes | bytearray, b: bytes | bytearray, *, dtype: str, hidden_size: int, tolerance: float
) -> Comparison:
    """Compare raw outputs of the same positions, `[tokens, hidden_size]` each, finite."""
    one, other = (
        torch.frombuffer(bytearray(data), dtype=torch_dtype(dtype)).reshape(-1, hidden_size)
        .double() for data in (a, b)
    )  # fmt: skip
    gap = (one - other).abs()
    one, other = one.abs(), other.abs()
    mean = torch.minimum(one.mean(dim=1), other.mean(dim=1)).unsqueeze(1)
    rows = torch.where(gap == 0, 0.0, gap / (torch.minimum(one, other) + mean)).amax(dim=1)
    beyond = (rows > tolerance).nonzero()
    return Comparison(float(rows.max()), int(beyond[0]) if len(beyond) else None)


def check_supported(arithmetic: Arithmetic, config: Mapping[str, Any]) -> None:
    """Raises UsageError where rounding alone can make an honest peer look like a liar: a model
    whose `config` (of `config.json`) names experts, in less than float32, or quantized."""
    parts = [config, *(value for value in config.values() if isinstance(value, dict))]
    has_experts = any("expert" in key and value for part in parts for key, value in part.items())
    if has_experts and arithmetic != Arithmetic("float32"):
        raise UsageError(
            f"--verify: a model with experts in {arithmetic} rounds too differently on honest "
            "peers; leave --verify out, or use peers that serve it with --dtype float32 and "
            "without --quantize"
        )
