"""Attention over pages, as the stock modules of `transformers` call it.

The library lets a model's attention be any function that was registered under a name
(`transformers.AttentionInterface`). Ours runs a *ragged batch*: tokens of many sessions, each a row
of its own, at whatever positions they are. All other layers work row by row anyway. What a row may
see follows from its session and its position, so no mask is ever made for a whole batch.
"""

from __future__ import annotations

import threading
from typing import Any, Protocol

import torch
from transformers import AttentionInterface
from transformers.cache_utils import Cache

__all__ = ["PAGED", "Attended", "PagedCache", "running"]

PAGED = "swarmd_paged"
"""The name under which the library knows this attention."""


class Attended(Protocol):
    """A batch that is running: it stores its rows' keys and values, and attends to them."""

    def write(self, layer: int, keys: torch.Tensor, values: torch.Tensor) -> None:
        """Store (rows, heads, 1, width) in the places of the rows."""

    def attend(
        self,
        module: Any,
        query: torch.Tensor,
        scaling: float,
        window: int | None,
        softcap: float | None,
        sinks: torch.Tensor | None,
    ) -> torch.Tensor:
        """Attend with (rows, heads, 1, width); returns (rows, 1, heads, value width). `module` is
        the library's: its `layer_idx` counts from the run's first block, and where it stores
        keys and values compressed, its `expand_kv` expands them."""


_thread = threading.local()


class running:
    """While it lasts, the attention of this thread is that of `batch`."""

    def __init__(self, batch: Attended) -> None:
        self._batch = batch

    def __enter__(self) -> None:
        _thread.batch = self._batch

    def __exit__(self, *_exc: object) -> None:
        _thread.batch = None


class PagedCache(Cache):
    """What the stock modules take for their cache: it hands all new keys and values to the batch
    and gives them back, since the attention function reads the earlier ones itself."""

    def __init__(self, batch: Attended) -> None:
        super().__init__(layers=[])
        self._batch = batch

    def update(
        self,
        key_states: torch.Tensor,
        value_states: torch.Tensor,
        layer_idx: int,
        *_args: Any,
        **_kwargs: Any,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        self._batch.write(layer_idx, key_states, value_states)
        return key_states, value_states

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return 0


def _attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None = None,
    scaling: float | None = None,
    dropout: float = 0.0,
    softcap: float | None = None,
    s_aux: torch.Tensor | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """The names are the library's: some models pass all of them by name."""
    batch: Attended | None = getattr(_thread, "batch", None)
    if batch is None:
        raise RuntimeError("paged attention was called outside a batch")
    scale = query.shape[-1] ** -0.5 if scaling is None else float(scaling)
    window = kwargs["sliding_window"] if "sliding_window" in kwargs else _window_of(module)
    return batch.attend(module, query, scale, window, softcap, s_aux).contiguous(), None


def _window_of(module: Any) -> int | None:
    """The sliding window of a model that tells it to its masks only (Phi-3.5-MoE): the one that
    the library's own cache would keep."""
    window: int | None = getattr(module.config, "sliding_window", None)
    types = getattr(module.config, "layer_types", None)
    if types and types[module.layer_idx] != "sliding_attention":
        return None
    return window


AttentionInterface.register(PAGED, _attention)
