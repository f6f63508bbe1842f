"""The blocks that a node holds, ready to run: hidden states in, hidden states out."""

from __future__ import annotations

import inspect
from collections import OrderedDict
from typing import Any

import torch
from transformers import PreTrainedModel

from swarmd.blocks import Span
from swarmd.compute.cut_model import forked, keep_blocks, layer_stack
from swarmd.compute.kv_cache import KvBudget, SessionCache
from swarmd.compute.row_linear import use_faster_rows
from swarmd.compute.weights import BlockProgress, WeightFolder, load_part, torch_dtype
from swarmd.errors import BlocksNotHeld

__all__ = ["BlockSpan"]

MAX_VIEWS = 32
"""Sub-spans kept ready. A view shares all weights; it costs only its Python objects."""


class BlockSpan:
    """Blocks `[span.start, span.end)` of a model on one device.

    A session may enter and leave anywhere within the span; each sub-span in use is a view of the
    stock model with the other blocks left out. Not thread-safe: the engine's thread owns it.
    """

    def __init__(
        self,
        folder: WeightFolder,
        span: Span,
        *,
        dtype: str,
        device: str = "cpu",
        progress: BlockProgress | None = None,
        faster_rows: bool = True,
    ) -> None:
        """Read the blocks' weights. Raises ModelError, UnsupportedModel, and what `progress`
        raises. Without `faster_rows` they stay as they were loaded (benches compare)."""
        self.span = span
        self.dtype = dtype
        self.device = device
        self.torch_dtype = torch_dtype(dtype)
        self._model = load_part(folder, span, dtype=dtype, device=device, progress=progress)
        if faster_rows:
            use_faster_rows(self._model)
        self.hidden_size = int(self._model.config.hidden_size)
        self._views: OrderedDict[Span, Any] = OrderedDict()
        owner = layer_stack(self._model)[0]
        accepted = inspect.signature(type(owner).forward).parameters
        self._takes_positions = "position_ids" in accepted

    def new_cache(self, blocks: Span, limit: int, budget: KvBudget) -> SessionCache:
        """An empty cache for a session over `blocks`, of at most `limit` tokens."""
        self.check(blocks)
        return SessionCache(len(blocks), limit, budget)

    def check(self, blocks: Span) -> None:
        """Raises BlocksNotHeld unless all of `blocks` are held here."""
        if not self.span.covers(blocks):
            raise BlocksNotHeld(f"blocks {blocks} were asked for; this peer holds {self.span}")

    @torch.inference_mode()
    def run(self, blocks: Span, hidden: torch.Tensor, cache: SessionCache) -> torch.Tensor:
        """Run `hidden` (1, tokens, hidden size) through `blocks` at the cache's position.

        Appends to the cache. If the library raises, the cache is as before.
        """
        start, tokens = cache.position, hidden.shape[1]
        arguments: dict[str, Any] = {}
        if self._takes_positions:
            arguments["position_ids"] = torch.arange(
                start, start + tokens, device=self.device
            ).unsqueeze(0)
        try:
            output: torch.Tensor = self._view(blocks)(
                inputs_embeds=hidden.to(self.device, self.torch_dtype),
                past_key_values=cache,
                use_cache=True,
                **arguments,
            ).last_hidden_state
        except BaseException:
            cache.cut(start)
            raise
        cache.advance(tokens)
        return output

    def _view(self, blocks: Span) -> Any:
        view = self._views.pop(blocks, None)
        if view is None:
            model: PreTrainedModel = self._model
            if blocks != self.span:
                model = forked(model)
                keep_blocks(
                    model, Span(blocks.start - self.span.start, blocks.end - self.span.start)
                )
            view = layer_stack(model)[0]
        self._views[blocks] = view
        while len(self._views) > MAX_VIEWS:
            self._views.popitem(last=False)
        return view
