"""What this machine has: free memory of the device, and the size of a token's cache entry."""

from __future__ import annotations

import contextlib
import ctypes
import gc
from typing import Any

import psutil
import torch

from swarmd.compute.cut_model import parse_config
from swarmd.wire.tensors import ITEM_BYTES

__all__ = ["available_memory", "kv_bytes_per_token", "release_unused_memory", "use_one_arena"]

_M_ARENA_MAX = -8  # mallopt(3)

USABLE_SHARE = 0.8
"""Of what is free; the rest is for the machine's owner."""


def available_memory(device: str) -> int:
    """Bytes that a node may take without `--memory`."""
    if device == "cpu":
        return int(USABLE_SHARE * psutil.virtual_memory().available)
    free, _ = torch.cuda.mem_get_info(device)
    return int(USABLE_SHARE * free)


def kv_bytes_per_token(raw_config: dict[str, Any], dtype: str) -> int:
    """Bytes of keys and values that one token takes in one block.

    From the head counts of the config; models with compressed caches (MLA) store expanded keys
    and values in the stock modules, so their query heads count.
    """
    config = parse_config(raw_config)
    heads = config.num_attention_heads
    kv_heads = getattr(config, "num_key_value_heads", None) or heads
    width = getattr(config, "head_dim", None) or config.hidden_size // heads
    if getattr(config, "kv_lora_rank", None):
        key = config.qk_nope_head_dim + config.qk_rope_head_dim
        return int(heads * (key + config.v_head_dim) * ITEM_BYTES[dtype])
    return int(2 * kv_heads * width * ITEM_BYTES[dtype])


def use_one_arena() -> None:
    """Let the allocator keep one heap for all threads: only the engine's allocates much, and a
    heap for each thread costs some megabytes that are never given back."""
    with contextlib.suppress(OSError, AttributeError):  # no glibc
        ctypes.CDLL("libc.so.6").mallopt(_M_ARENA_MAX, 1)


def release_unused_memory() -> None:
    """Give back what loading and measuring left in the allocator (glibc keeps it otherwise)."""
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):  # no glibc
        ctypes.CDLL("libc.so.6").malloc_trim(0)
