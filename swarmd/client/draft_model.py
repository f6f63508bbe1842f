"""A small model on this machine that drafts for a large one in the swarm."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, DynamicCache

from swarmd.blocks import Span
from swarmd.client.text import TextCodec
from swarmd.compute.source import resolve_model
from swarmd.compute.weights import torch_dtype
from swarmd.errors import ModelError, UsageError

__all__ = ["DraftModel", "load_draft_model"]

SURE = 0.4
"""A drafted token of less probability ends the draft: the next one would hang on it."""


class DraftModel:
    """Greedy drafts of a whole causal model of the library, with a cache that is cut back to what
    the text kept."""

    def __init__(self, model: Any) -> None:
        """Raises UsageError for a model whose state cannot be cut back."""
        self._model = model
        self._cache = self._new_cache()
        self._cached: list[int] = []

    def _new_cache(self) -> DynamicCache:
        cache = DynamicCache(config=self._model.config)
        if not all(hasattr(layer, "crop") for layer in cache.layers) or any(
            getattr(layer, "is_sliding", False) for layer in cache.layers
        ):
            raise UsageError("--draft: a draft model needs full attention in all blocks")
        return cache

    async def propose(self, token_ids: Sequence[int], longest: int) -> list[int]:
        """Up to `longest` tokens; computed in a thread. Not for concurrent calls. Who cancels this
        waits until the token at hand is done."""
        stop = threading.Event()
        work = asyncio.ensure_future(
            asyncio.to_thread(self._propose, list(token_ids), longest, stop)
        )
        try:
            return await asyncio.shield(work)
        except asyncio.CancelledError:
            stop.set()
            await asyncio.wait([work])
            raise

    @torch.inference_mode()
    def _propose(self, token_ids: list[int], longest: int, stop: threading.Event) -> list[int]:
        same = _same(self._cached, token_ids[:-1])
        if same < len(self._cached):
            self._cache.crop(same - len(self._cached))  # negative: so many are removed
            self._cached = self._cached[:same]
        new, drafted = token_ids[same:], list[int]()
        while len(drafted) < longest and not stop.is_set():
            output = self._model(
                input_ids=torch.tensor([new]), past_key_values=self._cache, use_cache=True,
                logits_to_keep=1,
            )  # fmt: skip
            self._cached += new
            likely, token = torch.softmax(output.logits[0, -1].float(), dim=-1).max(dim=-1)
            if float(likely) < SURE:
                break
            drafted.append(int(token))
            new = [int(token)]
        return drafted


def _same(one: Sequence[int], other: Sequence[int]) -> int:
    length = min(len(one), len(other))
    return next((i for i in range(length) if one[i] != other[i]), length)


def load_draft_model(
    spec: str, text: TextCodec, dtype: str, progress: Callable[[str, int, int], None] | None
) -> DraftModel:
    """The whole model that `spec` names (see :func:`resolve_model`). Blocks while it is fetched and
    loaded. Raises ModelError, and UsageError if its tokens are not those of `text`."""
    folder = resolve_model(spec, client=True, progress=progress)
    folder = resolve_model(spec, span=Span(0, folder.n_blocks), client=True, progress=progress)
    _check_vocabulary(folder.path, text)
    try:
        model = AutoModelForCausalLM.from_pretrained(
            str(folder.path), dtype=torch_dtype(dtype), use_safetensors=True, local_files_only=True
        )
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise ModelError(f"--draft {spec}: {str(error).splitlines()[0]}") from error
    return DraftModel(model.eval())


def _check_vocabulary(folder: Path, text: TextCodec) -> None:
    drafts = TextCodec(folder, eos_token_ids=()).tokenizer.get_vocab()
    if drafts != text.tokenizer.get_vocab():
        raise UsageError(
            "--draft: the draft model's vocabulary is not that of the model; take one of its family"
        )
