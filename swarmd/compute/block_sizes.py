"""What the blocks of a model take in memory, by their shapes alone; no weight is read."""

from __future__ import annotations

import copy
import functools
import json
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from swarmd.blocks import Span
from swarmd.compute.cut_model import cut_class, layer_stack, parse_config
from swarmd.compute.quantize import part_bytes
from swarmd.wire.tensors import ITEM_BYTES

__all__ = ["activation_bytes", "block_bytes"]

STATES_AT_ONCE = 8
"""Hidden states of a row that live at the same time: of a block they are the input, its normed
form, queries, keys, values, rotated ones, and what attention gives."""
WIDE_AT_ONCE = 6
"""Outputs of the widest layer that live at the same time: gate, up, and their product, or the steps
of a GELU that is written out. Of experts, those of all that a row goes to."""
SCORES_AT_ONCE = 5
"""Scores, those with a bias, those that are masked, and the weights made of them, twice."""
FLOAT32_BYTES = 4


def block_bytes(raw_config: Mapping[str, Any], dtype: str, quantization: str = "none") -> int:
    """Bytes of a block's weights in memory: those of the largest one, since the first blocks of a
    mixture of experts may be dense. Raises UnsupportedModel."""
    return max(part_bytes(block, quantization, ITEM_BYTES[dtype]) for block in _blocks(raw_config))


def activation_bytes(raw_config: Mapping[str, Any], dtype: str, rows: int, visible: int) -> int:
    """Bytes that a run of so many rows holds at once at most, beside weights and caches, where
    each row sees `visible` positions at most.

    Counted from the widest layer, so it is a bound for blocks of the usual make: attention, and a
    feed-forward part. Where no fused kernel does the attention (soft caps, sinks, code of the
    model's own), the scores of all heads are held as well. Raises UnsupportedModel.
    """
    config = parse_config(dict(raw_config))
    hidden, heads = int(config.hidden_size), int(config.num_attention_heads)
    experts = int(getattr(config, "num_experts_per_tok", None) or 1)
    blocks = _blocks(raw_config)
    matrices = [p for block in blocks for p in block.parameters() if p.dim() > 1]
    widest = max(p.shape[-2] * (experts if p.dim() > 2 else 1) for p in matrices)
    states = rows * ITEM_BYTES[dtype] * (STATES_AT_ONCE * hidden + WIDE_AT_ONCE * widest)
    group = heads // int(getattr(config, "num_key_value_heads", None) or heads)
    # What each row sees, for each query head that shares a key head; torch makes numbers of it.
    mask = rows * visible * (2 + group * (1 + 2 * ITEM_BYTES[dtype]))
    sinks = any(name.endswith("sinks") for name, _ in blocks[0].named_parameters())
    scores = SCORES_AT_ONCE * FLOAT32_BYTES * heads * rows * visible
    own = not getattr(cut_class(config, Span(0, 1)), "_supports_attention_backend", False)
    unfused = own or sinks or getattr(config, "attn_logit_softcapping", None)
    return states + (mask + scores if unfused else mask)


def _blocks(raw_config: Mapping[str, Any]) -> tuple[nn.Module, ...]:
    return _built(json.dumps(raw_config, sort_keys=True, default=str))


@functools.lru_cache(maxsize=1)
def _built(raw_config: str) -> tuple[nn.Module, ...]:
    """All blocks, on the meta device."""
    config = parse_config(json.loads(raw_config))
    span = Span(0, int(config.num_hidden_layers))
    with torch.device("meta"):
        model = cut_class(config, span)(copy.deepcopy(config))
    owner, name = layer_stack(model)
    return tuple(getattr(owner, name))
