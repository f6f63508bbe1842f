"""What a client loads of a model: its two ends and its tokenizer."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from swarmd.client.text import TextCodec
from swarmd.compute.ends import ModelEnds
from swarmd.compute.model_folder import ModelFolder
from swarmd.compute.source import resolve_model

__all__ = ["ClientModel", "eos_token_ids", "load_client", "resolve_client_folder"]


@dataclass(frozen=True, slots=True)
class ClientModel:
    """A model as a client holds it: everything but the blocks."""

    folder: ModelFolder
    ends: ModelEnds
    text: TextCodec


async def resolve_client_folder(
    spec: str | None, progress: Callable[[str, int, int], None] | None
) -> ModelFolder:
    """The model's folder with what a client needs of it. Raises ModelError, UsageError."""
    return await asyncio.to_thread(resolve_model, spec, client=True, progress=progress)


async def load_client(folder: ModelFolder, dtype: str, threads: int | None = None) -> ClientModel:
    """Embeddings, head and tokenizer, read off the event loop; computed on `threads` threads
    (None: all cores). Raises ModelError, UnsupportedModel."""
    if threads is not None:
        torch.set_num_threads(threads)

    def load() -> ClientModel:
        ends = ModelEnds(folder, dtype=dtype)
        text = TextCodec(folder.path, eos_token_ids=eos_token_ids(folder.path, folder.config))
        return ClientModel(folder, ends, text)

    return await asyncio.to_thread(load)


def eos_token_ids(folder: Path, config: dict[str, object]) -> list[int]:
    """The ids that end an answer: by generation_config.json, else by config.json."""
    found: object = None
    try:
        generation = json.loads((folder / "generation_config.json").read_text())
        found = generation.get("eos_token_id") if isinstance(generation, dict) else None
    except (OSError, ValueError):
        pass  # the file is optional
    found = config.get("eos_token_id") if found is None else found
    ids = found if isinstance(found, list) else [found]
    return [value for value in ids if isinstance(value, int)]
