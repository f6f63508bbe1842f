"""A stock `transformers` model with all but some of its blocks left out.

A server keeps the blocks `[a, b)` and neither prelude (embedding and what the family does to it)
nor head (final norm, output layer, soft-caps and scales): hidden states in, hidden states out. A
client keeps prelude and head and no block; :func:`forked` makes two views of it, one that ends
before block 0 and one that starts after the last block, over the same weights.

The cut is made in the constructor of a subclass, on the meta device, before any weight is read,
so the library's own `from_pretrained` loads and converts exactly the tensors that are left.
Masks, rotary embeddings and sliding windows stay the library's.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig, PreTrainedModel

from swarmd.blocks import Span
from swarmd.compute.family import Family, family_of
from swarmd.errors import UnsupportedModel

__all__ = [
    "cut_class",
    "forked",
    "keep_blocks",
    "layer_stack",
    "parse_config",
    "without_head",
    "without_prelude",
]


_BLOCK_LISTS = ("layers", "h", "blocks")
_FINAL_NORMS = ("norm", "ln_f", "final_layer_norm", "final_layernorm")


class _ZeroPositions(nn.Module):
    """Stands for learned positions on a server: the client has added them already."""

    def forward(self, *_args: Any, **_kwargs: Any) -> torch.Tensor:
        return torch.zeros(())


class _ForeignTokens(nn.Module):
    """Stands for the token embedding where only hidden states come in."""

    def __init__(self, dtype_source: nn.Module) -> None:
        super().__init__()
        weight = next(dtype_source.parameters())
        self.register_buffer("weight", torch.empty(0, dtype=weight.dtype), persistent=False)

    def forward(self, _tokens: torch.Tensor) -> torch.Tensor:
        raise UnsupportedModel("this model looks at token ids inside its blocks; not supported")


def parse_config(raw: dict[str, Any]) -> PretrainedConfig:
    """The library's config object of a decoder-only text model. Raises UnsupportedModel."""
    raw = dict(raw)
    model_type = raw.pop("model_type", None)
    if not isinstance(model_type, str):
        raise UnsupportedModel("config.json has no model_type")
    raw.pop("quantization_config", None)
    try:
        config = AutoConfig.for_model(model_type, **raw)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise UnsupportedModel(
            f"the installed transformers cannot read a {model_type!r} config: {error}"
        ) from error
    if config.is_encoder_decoder:
        raise UnsupportedModel(f"{model_type} is an encoder-decoder model; swarmd runs decoders")
    return config.get_text_config(decoder=True)


def layer_stack(model: PreTrainedModel) -> tuple[Any, str]:
    """The module that owns the list of blocks, and the list's attribute name."""
    n_blocks = model.config.num_hidden_layers
    for module in model.modules():
        for name in _BLOCK_LISTS:
            child = getattr(module, name, None)
            if isinstance(child, nn.ModuleList) and len(child) == n_blocks:
                return module, name
    raise UnsupportedModel(f"{type(model).__name__}: no list of {n_blocks} blocks was found")


def cut_class(config: PretrainedConfig, span: Span | None) -> type[PreTrainedModel]:
    """A subclass of the stock causal model whose constructor keeps only the blocks of `span`
    (a server's part), or everything but the blocks (a client's part, `span` is None).

    The stock name is kept, so that the library finds its weight conversions.
    """
    try:
        stock = AutoModelForCausalLM._model_mapping[type(config)]
    except KeyError as error:
        raise UnsupportedModel(f"transformers has no causal model {config.model_type}") from error

    def construct(self: PreTrainedModel, config: PretrainedConfig, *args: Any, **kw: Any) -> None:
        stock.__init__(self, config, *args, **kw)
        keep_blocks(self, span)
        if span is not None:
            without_prelude(self)
            without_head(self)

    return type(stock.__name__, (stock,), {"__init__": construct, "__module__": stock.__module__})


def forked(model: PreTrainedModel) -> PreTrainedModel:
    """A second model object over the very same parameters and buffers."""
    shared = {id(t): t for t in (*model.parameters(), *model.buffers())}
    return copy.deepcopy(model, shared)


def without_prelude(model: PreTrainedModel) -> None:
    """Make the model take hidden states as they enter a block, by `inputs_embeds`."""
    owner, family = layer_stack(model)[0], _family(model)
    owner.set_input_embeddings(_ForeignTokens(owner.get_input_embeddings()))
    for attribute in family.positions:
        setattr(owner, attribute, _ZeroPositions())
    for attribute in family.norms:
        setattr(owner, attribute, nn.Identity())
    for attribute in family.scales:
        setattr(owner, attribute, 1.0)


def without_head(model: PreTrainedModel) -> None:
    """Make the stack's owner return hidden states as they leave its last block."""
    owner = layer_stack(model)[0]
    model.set_output_embeddings(nn.Identity())
    model.config.tie_word_embeddings = False
    model.all_tied_weights_keys = {}
    model._tied_weights_keys = None
    for attribute in _FINAL_NORMS:
        if isinstance(getattr(owner, attribute, None), nn.Module):
            setattr(owner, attribute, nn.Identity())
            return
    raise UnsupportedModel(f"{type(owner).__name__}: its final norm was not found")


def _family(model: PreTrainedModel) -> Family:
    return family_of({"model_type": model.config.model_type})


def keep_blocks(model: PreTrainedModel, span: Span | None) -> None:
    """Leave out all blocks but those of `span`, counted from the model's first block."""
    owner, name = layer_stack(model)
    projections = _family(model).projections
    if any(getattr(owner, attribute, None) is not None for attribute in projections):
        raise UnsupportedModel(f"{model.config.model_type}: word_embed_proj_dim is not supported")
    start, end = (span.start, span.end) if span else (0, 0)
    n_blocks = model.config.num_hidden_layers
    kept = list(getattr(owner, name))[start:end]
    for index, layer in enumerate(kept):
        for module in layer.modules():
            if isinstance(getattr(module, "layer_idx", None), int):
                module.layer_idx = index
    for config in {id(c): c for c in (model.config, owner.config)}.values():
        for key, value in list(vars(config).items()):
            if isinstance(value, (list, tuple)) and len(value) == n_blocks:
                setattr(config, key, copy.copy(value[start:end]))
        config.num_hidden_layers = end - start
    setattr(owner, name, nn.ModuleList(kept))
