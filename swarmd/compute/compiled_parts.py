"""On a GPU: the many small steps of normalisation and rotation as one kernel each.

`torch.compile` fuses what the stock modules write as five to ten element-wise operations. Only
these parts are compiled: it takes seconds, not minutes, and the products are fast as they are.
It needs a C compiler on the machine; without one all stays as it was.
"""

from __future__ import annotations

import functools
import logging
import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

__all__ = ["compile_parts"]

log = logging.getLogger(__name__)

ROTATION = "apply_rotary_pos_emb"
"""The function by which the attention modules of `transformers` rotate queries and keys."""


def compile_parts(model: nn.Module) -> bool:
    """Compile the norms of `model`, and the rotation where its modules use the usual function.

    Classes are changed, so models of the same family in this process share the gain. False if
    nothing was compiled: there is no compiler, or what it makes differs from the original.
    """
    norms = {type(m): m for m in model.modules() if type(m).__name__.endswith("RMSNorm")}
    try:
        for cls, module in norms.items():
            _compile_norm(cls, module)
        _compile_rotation(model)
    except Exception as error:  # no C compiler, an unsupported GPU, a bug of the compiler's
        log.info("nothing is compiled for the GPU: %s: %s", type(error).__name__, error)
        return False
    return bool(norms)


def _compile_norm(cls: type[nn.Module], module: nn.Module) -> None:
    original: Callable[..., torch.Tensor] = cls.forward
    if hasattr(original, "on_gpu"):
        return
    forward = _on_gpu(original)
    width = next(module.parameters()).shape[-1]
    parameter = next(module.parameters())
    for rows in (1, 3):  # one row is a case of its own to the compiler
        sample = torch.randn(rows, 1, width, dtype=parameter.dtype, device=parameter.device)
        _check(forward(module, sample), original(module, sample))
    cls.forward = forward


def _compile_rotation(model: nn.Module) -> None:
    for name in {type(module).__module__ for module in model.modules()}:
        home = sys.modules[name]
        original = getattr(home, ROTATION, None)
        if original is not None and not hasattr(original, "on_gpu"):
            setattr(home, ROTATION, _on_gpu(original))


def _on_gpu(original: Callable[..., Any]) -> Callable[..., Any]:
    """Compiled where the first tensor is on a GPU, else the original."""
    compiled = torch.compile(original, dynamic=True)

    @functools.wraps(original)
    def either(*args: Any, **kwargs: Any) -> Any:
        tensors = [argument for argument in args if isinstance(argument, torch.Tensor)]
        return (compiled if tensors and tensors[0].is_cuda else original)(*args, **kwargs)

    either.on_gpu = compiled  # type: ignore[attr-defined]
    return either


def _check(found: torch.Tensor, expected: torch.Tensor) -> None:
    if not torch.allclose(found.float(), expected.float(), rtol=2e-2, atol=1e-3):
        raise ArithmeticError("a compiled norm differs from the original")
