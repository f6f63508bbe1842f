"""From a step's payload to hidden states, and from those to an output's payload."""

from __future__ import annotations

import torch

from swarmd.compute.weights import torch_dtype
from swarmd.errors import BadTensor
from swarmd.node.served import ServedModel
from swarmd.wire.messages import Step
from swarmd.wire.tensors import TensorMeta, decode, encode

__all__ = ["hidden_of", "payload_of"]


def hidden_of(
    step: Step, payload: bytearray, model: ServedModel, *, max_tokens: int
) -> torch.Tensor:
    """The hidden states `(1, tokens, hidden size)` of a step. Raises BadTensor."""
    meta = step.tensor
    if meta.dtype != model.dtype:
        raise BadTensor(f"dtype {meta.dtype}; this node computes in {model.dtype}")
    if len(meta.shape) != 3 or meta.shape[0] != 1 or meta.shape[2] != model.hidden_size:
        raise BadTensor(f"shape {list(meta.shape)}; expected [1, tokens, {model.hidden_size}]")
    if meta.shape[1] > max_tokens:
        raise BadTensor(f"{meta.shape[1]} tokens in a step; at most {max_tokens}")
    raw = decode(payload, meta, max_bytes=meta.n_bytes)
    return torch.frombuffer(raw, dtype=torch_dtype(model.dtype)).reshape(meta.shape)


def payload_of(
    hidden: torch.Tensor, model: ServedModel, codec: str
) -> tuple[TensorMeta, memoryview]:
    """An output's description and bytes."""
    meta = TensorMeta(model.dtype, tuple(hidden.shape), codec)
    raw = hidden.contiguous().view(torch.uint8).numpy().data.cast("B")
    return meta, memoryview(encode(raw, meta))
