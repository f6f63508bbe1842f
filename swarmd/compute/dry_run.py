"""Whether a model can be cut at all, found out before one of its weights is read.

A span is right only if a block takes nothing but the hidden states of the block before it and what
follows from the positions, and if all that it keeps of the past is keys and values for each
position, which a cut back can drop. No list of families says so: the stock modules are built
without weights and tried. On the CPU, without blocks, a server's part must give back what it is
handed. On the meta device, which knows shapes and no numbers, two tokens run through all blocks,
and what goes in, what comes out and what is stored is looked at.
"""

from __future__ import annotations

import copy
import functools
import inspect
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel
from transformers.cache_utils import (
    Cache,
    DummyLayer,
    DynamicCache,
    DynamicLayer,
    DynamicSlidingWindowLayer,
)

from swarmd.blocks import Span
from swarmd.compute.cut_model import (
    check_known_parts,
    cut_class,
    final_norm,
    keep_blocks,
    layer_stack,
    parse_config,
    without_head,
    without_prelude,
)
from swarmd.compute.family import family_of
from swarmd.errors import UnsupportedModel

__all__ = ["StoredShape", "check_can_be_cut", "stored_shapes"]

TOKENS = 2
KEPT_RESULTS = 16
"""Configs whose outcome is remembered; a process rarely meets more than one."""

_ATTENTION_LAYERS = (DynamicLayer, DynamicSlidingWindowLayer)


@dataclass(frozen=True, slots=True)
class StoredShape:
    """What one block stores for a position: `heads` keys and as many values of these widths."""

    heads: int
    key_width: int
    value_width: int

    @property
    def elements(self) -> int:
        return self.heads * (self.key_width + self.value_width)


def check_can_be_cut(raw_config: Mapping[str, Any]) -> None:
    """Raises UnsupportedModel, with the reason, for a model that swarmd would not run rightly."""
    stored_shapes(raw_config)


def stored_shapes(raw_config: Mapping[str, Any]) -> tuple[StoredShape, ...]:
    """What each block of the model stores. Raises UnsupportedModel like `check_can_be_cut`."""
    return _stored_shapes(json.dumps(raw_config, sort_keys=True, default=str))


@functools.lru_cache(maxsize=KEPT_RESULTS)
def _stored_shapes(raw_config: str) -> tuple[StoredShape, ...]:
    config = parse_config(json.loads(raw_config))
    _check_cache(config)
    _check_ends(config)
    return _run_blocks(config)


def _check_cache(config: PretrainedConfig) -> None:
    """The library's own cache must hold keys and values, those of each block and nothing else."""
    kind = config.model_type
    if reason := family_of({"model_type": kind}).refused:
        raise UnsupportedModel(f"{kind}: {reason}")
    if getattr(config, "is_heterogeneous", False):
        raise UnsupportedModel(f"{kind}: a config for each block (per_layer_config) is unsupported")
    if getattr(_stock_class(config), "_is_stateful", False):
        raise UnsupportedModel(
            f"{kind} keeps a recurrent state, which cannot be cut back to an earlier position"
        )
    try:
        layers = DynamicCache(config=config).layers
    except (KeyError, AttributeError, TypeError, ValueError) as error:
        raise UnsupportedModel(f"{kind}: transformers makes no cache for it: {error}") from error
    for index, layer in enumerate(layers):
        if type(layer) is DummyLayer:
            raise UnsupportedModel(
                f"{kind}: block {index} keeps no keys and values of its own; swarmd carries those "
                "of another block to no peer"
            )
        if type(layer) not in _ATTENTION_LAYERS:
            types = getattr(config, "layer_types", None) or []
            what = repr(types[index]) if index < len(types) else type(layer).__name__
            raise UnsupportedModel(
                f"{kind}: block {index} is of type {what}, which keeps more or less of the past "
                "than its keys and values; swarmd cannot cut it back"
            )


def _stock_class(config: PretrainedConfig) -> type[PreTrainedModel]:
    return cut_class(config, None).__mro__[1]


def _check_ends(config: PretrainedConfig) -> None:
    """A server's part must do nothing before its first block and nothing after its last one."""
    kind = config.model_type
    with torch.device("meta"):
        model = _built(_stock_class(config), config)
        check_known_parts(model)
        keep_blocks(model, None)
    without_prelude(model)
    owner = layer_stack(model)[0]
    norm = final_norm(owner)
    without_head(model)
    model = model.to_empty(device="cpu").eval()
    with torch.no_grad():
        for left in (*model.parameters(), *model.buffers()):
            left.fill_(1)  # whatever still adds or multiplies must show
    calls = 0

    def count(*_args: object) -> None:
        nonlocal calls
        calls += 1

    if norm is not None:
        getattr(owner, norm).register_forward_hook(count)
    hidden = torch.linspace(-2.0, 3.0, TOKENS * config.hidden_size).view(1, TOKENS, -1)
    with torch.inference_mode():
        output = _forward(owner, hidden.clone(), None)
    if calls > 1:
        raise UnsupportedModel(f"{kind}: its final norm also runs before the blocks")
    if output.shape != hidden.shape or not torch.equal(output, hidden):
        raise UnsupportedModel(
            f"{kind} changes the hidden states before or after its blocks in a way that swarmd "
            "does not know; see swarmd/compute/family.py"
        )


def _run_blocks(config: PretrainedConfig) -> tuple[StoredShape, ...]:
    """Run all blocks on the meta device."""
    kind = config.model_type
    config = copy.deepcopy(config)
    n_blocks = config.num_hidden_layers
    config._experts_implementation = "batched_mm"  # the one whose shapes follow from no number
    with torch.device("meta"):
        model = _built(cut_class(config, Span(0, n_blocks)), config).eval()
    owner, blocks = layer_stack(model)
    watch = _Watch(kind)
    for index, block in enumerate(getattr(owner, blocks)):
        block.register_forward_pre_hook(functools.partial(watch.before, index), with_kwargs=True)
        block.register_forward_hook(functools.partial(watch.after, index))
    cache = DynamicCache()
    hidden = torch.zeros(1, TOKENS, config.hidden_size, device="meta")
    try:
        with torch.inference_mode():
            output = _forward(owner, hidden, cache)
    except _NeedsNumbers:
        return (_reckoned(config),) * n_blocks
    watch.check(n_blocks)
    if output.shape != hidden.shape:
        raise UnsupportedModel(
            f"{kind}: hidden states of shape {tuple(hidden.shape)} come out "
            f"of its blocks as {tuple(output.shape)}"
        )
    return tuple(_stored_by(cache, index, kind) for index in range(n_blocks))


def _built(cls: type[PreTrainedModel], config: PretrainedConfig) -> PreTrainedModel:
    """The modules, as the library would make them. Raises UnsupportedModel."""
    try:
        return cls._from_config(copy.deepcopy(config))
    except UnsupportedModel:
        raise
    except Exception as error:  # whatever a model's constructor makes of the config
        raise UnsupportedModel(
            f"the installed transformers cannot build this {config.model_type}: {error}"
        ) from error


def _forward(owner: nn.Module, hidden: torch.Tensor, cache: Cache | None) -> torch.Tensor:
    """Hidden states in and out of the modules that own the blocks. Raises UnsupportedModel."""
    arguments: dict[str, Any] = {}
    if "position_ids" in inspect.signature(type(owner).forward).parameters:
        arguments["position_ids"] = torch.arange(TOKENS, device=hidden.device).unsqueeze(0)
    try:
        output: torch.Tensor = owner(
            inputs_embeds=hidden, past_key_values=cache, use_cache=cache is not None, **arguments
        ).last_hidden_state
    except UnsupportedModel:
        raise
    except Exception as error:  # whatever the library's code makes of hidden states alone
        if isinstance(error, NotImplementedError) or "meta tensor" in str(error):
            raise _NeedsNumbers from error
        raise UnsupportedModel(
            f"{type(owner).__name__} does not run from hidden states alone: "
            f"{type(error).__name__}: {error}"
        ) from error
    return output


class _NeedsNumbers(Exception):
    """A block's shapes follow from numbers, which the meta device does not know."""


def _reckoned(config: PretrainedConfig) -> StoredShape:
    """What a block stores by the head counts of the config: the usual attention's."""
    heads = config.num_attention_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // heads
    return StoredShape(getattr(config, "num_key_value_heads", None) or heads, width, width)


def _stored_by(cache: DynamicCache, index: int, kind: str) -> StoredShape:
    layer: Any = cache.layers[index] if index < len(cache.layers) else None
    keys, values = getattr(layer, "keys", None), getattr(layer, "values", None)
    if keys is None or values is None or keys.dim() != 4 or keys.shape[2] != TOKENS:
        raise UnsupportedModel(
            f"{kind}: block {index} stores no keys and values of its own for each position; "
            "swarmd cannot cut it back"
        )
    return StoredShape(keys.shape[1], keys.shape[3], values.shape[3])


class _Watch:
    """Sees what each block takes and gives."""

    def __init__(self, kind: str) -> None:
        self._kind = kind
        self._calls: list[int] = []
        self._given: dict[int, torch.Tensor] = {}

    def before(
        self, index: int, _block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> None:
        self._calls.append(index)
        state = args[0] if args else kwargs.get("hidden_states")
        for tensor in _tensors((args, kwargs)):
            if id(tensor) in self._given and tensor is not state:
                raise UnsupportedModel(
                    f"{self._kind}: block {index} takes more from the block before it than its "
                    "hidden states; swarmd carries nothing else between peers"
                )

    def after(self, index: int, _block: nn.Module, _args: Any, output: Any) -> None:
        self._given.update((id(tensor), tensor) for tensor in _tensors(output))

    def check(self, n_blocks: int) -> None:
        if self._calls != list(range(n_blocks)):
            raise UnsupportedModel(
                f"{self._kind} does not run its blocks once each, in their order"
            )


def _tensors(value: Any) -> Iterator[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from _tensors(item)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _tensors(item)
