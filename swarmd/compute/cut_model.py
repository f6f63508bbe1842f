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
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig, PreTrainedModel

from swarmd.blocks import Span
from swarmd.compute.family import Family, family_of
from swarmd.errors import UnsupportedModel

__all__ = [
    "check_known_parts",
    "cut_class",
    "final_norm",
    "forked",
    "joined",
    "keep_blocks",
    "layer_stack",
    "parse_config",
    "without_final_norm",
    "without_head",
    "without_prelude",
]


_BLOCK_LISTS = ("layers", "h", "blocks", "layer")
_FINAL_NORMS = (
    "norm", "ln_f", "norm_f", "final_layer_norm", "final_layernorm", "layer_norm", "layernorm",
    "final_norm",
)  # fmt: skip
_BLOCK_NUMBERS = ("layer_idx", "layer_id")
"""Attributes that say which part of the cache is a block's."""
_ROTARY = ("rotary", "rope")
"""What the name of a module that makes rotary embeddings holds; it needs no weights."""


class _ZeroPositions(nn.Module):
    """Stands for learned positions on a server: the client has added them already."""

    def forward(self, positions: Any = None, *_args: Any, **_kwargs: Any) -> torch.Tensor:
        device = positions.device if isinstance(positions, torch.Tensor) else None
        return torch.zeros((), device=device)


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
    except Exception as error:  # validators of many kinds look at a config
        why = " ".join(str(error).split())
        raise UnsupportedModel(
            f"the installed transformers cannot read this {model_type!r} config: {why}"
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


def cut_class(
    config: PretrainedConfig, span: Span | None, task: Any = AutoModelForCausalLM
) -> type[PreTrainedModel]:
    """A subclass of the stock model whose constructor keeps only the blocks of `span` (a server's
    part), or everything but the blocks (a client's part, `span` is None). `task` is the library's
    auto class of what the model is for.

    The stock name is kept, so that the library finds its weight conversions.
    """
    try:
        stock = task._model_mapping[type(config)]
    except KeyError as error:
        kind = "causal model" if task is AutoModelForCausalLM else "sequence classifier"
        raise UnsupportedModel(f"transformers has no {kind} {config.model_type}") from error

    def construct(self: PreTrainedModel, config: PretrainedConfig, *args: Any, **kw: Any) -> None:
        stock.__init__(self, config, *args, **kw)
        keep_blocks(self, span)
        if span is not None:
            without_prelude(self)
            without_head(self)

    return type(stock.__name__, (stock,), {"__init__": construct, "__module__": stock.__module__})


def forked(model: PreTrainedModel) -> PreTrainedModel:
    """A second model object over the very same parameters, buffers and other tensors that modules
    hold, such as a second layout of weights (of which there are no copies)."""
    held = (value for module in model.modules() for value in vars(module).values())
    others = (value for value in held if isinstance(value, torch.Tensor))
    shared = {id(t): t for t in (*model.parameters(), *model.buffers(), *others)}
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
    for key in family.switches:
        setattr(owner.config, key, False)


def without_head(model: PreTrainedModel) -> None:
    """Make model and stack's owner return hidden states as they leave the last block."""
    model.set_output_embeddings(nn.Identity())
    model.config.tie_word_embeddings = False
    model.all_tied_weights_keys = {}
    model._tied_weights_keys = None
    without_final_norm(layer_stack(model)[0])


def without_final_norm(owner: nn.Module) -> None:
    """Make the stack's owner return hidden states as they leave its last block."""
    name = final_norm(owner)
    if name is not None:
        setattr(owner, name, nn.Identity())


def final_norm(owner: nn.Module) -> str | None:
    """The attribute of the norm after the last block. None where the blocks end with theirs
    (the first GPT, OPT-350M)."""
    for name in _FINAL_NORMS:
        if isinstance(getattr(owner, name, None), nn.Module):
            return name
    return None


def check_known_parts(model: PreTrainedModel) -> None:
    """Raises UnsupportedModel if there are weights beside the blocks, and not before or after
    them, of which nobody knows where they come in."""
    owner, blocks = layer_stack(model)
    if not isinstance(owner, PreTrainedModel):
        raise UnsupportedModel(
            f"{model.config.model_type}: its blocks are in a {type(owner).__name__} that cannot "
            "run by itself"
        )
    family = _family(model)
    known = {blocks, final_norm(owner), *family.positions, *family.norms}
    embedding = owner.get_input_embeddings()
    strange = [name for name, _ in owner.named_parameters(recurse=False)]
    for name, child in owner.named_children():
        if name in known or child is embedding or any(part in name for part in _ROTARY):
            continue
        if next(child.parameters(), None) is not None:
            strange.append(name)
    if strange:
        raise UnsupportedModel(
            f"{model.config.model_type}: `{strange[0]}` belongs to no block, to no embedding and "
            "to no head; swarmd does not know who should run it"
        )


def _family(model: PreTrainedModel) -> Family:
    return family_of({"model_type": model.config.model_type})


def keep_blocks(model: PreTrainedModel, span: Span | None) -> None:
    """Leave out all blocks but those of `span`, counted from the model's first block."""
    owner, name = layer_stack(model)
    projections = _family(model).projections
    if any(getattr(owner, attribute, None) is not None for attribute in projections):
        raise UnsupportedModel(f"{model.config.model_type}: word_embed_proj_dim is not supported")
    start, end = (span.start, span.end) if span else (0, 0)
    kept = list(getattr(owner, name))[start:end]
    whole = copy.copy(model.config)
    _put_blocks(model, owner, name, kept, whole, slice(start, end))


def joined(
    parts: Iterable[PreTrainedModel], config: PretrainedConfig, span: Span
) -> PreTrainedModel:
    """One model of parts that hold the blocks of `span` in order; `config` is the whole model's.

    The parts are asked for one at a time, and used up.
    """
    remaining = iter(parts)
    model = next(remaining)
    owner, name = layer_stack(model)
    blocks = list(getattr(owner, name))
    for part in remaining:
        part_owner, _ = layer_stack(part)
        blocks += getattr(part_owner, name)
    _put_blocks(model, owner, name, blocks, config, slice(span.start, span.end))
    return model


def _put_blocks(
    model: PreTrainedModel,
    owner: Any,
    name: str,
    blocks: Sequence[nn.Module],
    whole: PretrainedConfig,
    kept: slice,
) -> None:
    """Let `blocks` be the model's only ones: those that `kept` takes of the config `whole`."""
    n_blocks = whole.num_hidden_layers
    for index, layer in enumerate(blocks):
        module: Any
        for module in layer.modules():
            for number in _BLOCK_NUMBERS:
                if isinstance(getattr(module, number, None), int):
                    setattr(module, number, index)
    for config in {id(c): c for c in (model.config, owner.config)}.values():
        for key, value in list(vars(whole).items()):
            if isinstance(value, (list, tuple)) and len(value) == n_blocks:
                setattr(config, key, copy.copy(value[kept]))
        config.num_hidden_layers = len(blocks)
    setattr(owner, name, nn.ModuleList(blocks))
