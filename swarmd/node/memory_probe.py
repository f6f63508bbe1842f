"""What this machine has: free memory of the device, and the size of a token's cache entry."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import gc
from typing import Any

import psutil
import torch

from swarmd.compute.block_sizes import activation_bytes, block_bytes
from swarmd.compute.dry_run import stored_shapes
from swarmd.compute.memory import WORKSPACE_BYTES, MemoryPlan
from swarmd.compute.model_folder import ModelFolder
from swarmd.compute.pages import PAGE_TOKENS, pages_for
from swarmd.compute.quantized_loading import loading_bytes
from swarmd.compute.scheduler import CHUNK_TOKENS, MAX_ROWS
from swarmd.config import DaemonConfig
from swarmd.wire.tensors import ITEM_BYTES

__all__ = [
    "available_memory",
    "keep_trimmed",
    "kv_bytes_per_token",
    "memory_plan",
    "release_unused_memory",
    "trim_heap",
    "use_one_arena",
]

_M_ARENA_MAX = -8  # mallopt(3)

USABLE_SHARE = 0.8
"""Of what is free; the rest is for the machine's owner."""


TRIM_EVERY = 30.0
"""Seconds between two trims of the heap."""


def available_memory(device: str) -> int:
    """Bytes that a node may take without `--memory`."""
    if device == "cpu":
        return int(USABLE_SHARE * psutil.virtual_memory().available)
    free, _ = torch.cuda.mem_get_info(device)
    return int(USABLE_SHARE * free)


def kv_bytes_per_token(raw_config: dict[str, Any], dtype: str) -> int:
    """Bytes of keys and values that one token takes in one block: in the one that takes most,
    since blocks may differ. Raises UnsupportedModel for a model that cannot be cut."""
    return max(shape.elements for shape in stored_shapes(raw_config)) * ITEM_BYTES[dtype]


def memory_plan(
    config: DaemonConfig, folder: ModelFolder, dtype: str, *, loaded: int = 0
) -> MemoryPlan:
    """What fits into this node's memory, of which so many bytes are `loaded` already. Quantized
    weights are counted as they end up; what their loading takes beside them for a while is part of
    the workspace."""
    visible = min(config.kv_tokens, folder.max_positions)
    workspace = WORKSPACE_BYTES + activation_bytes(
        folder.config, dtype, CHUNK_TOKENS + MAX_ROWS, visible
    )
    if config.quantization != "none":
        workspace += loading_bytes(folder, dtype)
    tokens = pages_for(config.kv_tokens) * PAGE_TOKENS
    return MemoryPlan(
        limit=config.memory or loaded + available_memory(config.device),
        block_bytes=block_bytes(folder.config, dtype, config.quantization),
        kv_token_bytes=kv_bytes_per_token(folder.config, dtype),
        kv_tokens=tokens,
        n_blocks=folder.n_blocks,
        workspace=workspace,
        output_bytes=tokens * folder.hidden_size * ITEM_BYTES[dtype],
    )


def use_one_arena() -> None:
    """Let the allocator keep one heap for all threads: only the engine's allocates much, and a
    heap for each thread costs some megabytes that are never given back."""
    with contextlib.suppress(OSError, AttributeError):  # no glibc
        ctypes.CDLL("libc.so.6").mallopt(_M_ARENA_MAX, 1)


def release_unused_memory() -> None:
    """Give back what loading and measuring left in the allocator (glibc keeps it otherwise).

    What is alive now stays until the end (libraries, weights), and is not looked at again by the
    cycle collector (gc.freeze): a whole collection then takes milliseconds, and comes often enough
    that no buffer waits in a cycle with an exception's traceback for long.
    """
    gc.collect()
    gc.freeze()
    trim_heap()


def trim_heap() -> None:
    """Give free whole pages back to the system, also those between pages in use (malloc_trim(3)).
    Does nothing where the C library is not glibc."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").malloc_trim(0)


async def keep_trimmed(every: float = TRIM_EVERY) -> None:
    """Collect cycles, and trim the heap in a thread, every so many seconds until cancelled.

    With activations of ever new sizes glibc's heap becomes a comb of free pieces that stay
    resident, and refused steps leave their payloads in cycles of exception and traceback: without
    this, five minutes of `bench.soak` left 80 MB more.
    """
    while True:
        await asyncio.sleep(every)
        gc.collect()
        await asyncio.to_thread(trim_heap)
