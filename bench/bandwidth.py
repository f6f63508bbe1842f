"""The floor under a decode step: all weights read once from memory, at the rate measured here."""

from __future__ import annotations

import time

import torch

__all__ = ["seconds_to_read"]


def seconds_to_read(n_bytes: int, rounds: int = 7) -> float:
    """Least time that `torch` with all its threads takes to read so many bytes of float32, far
    larger than any cache of the processor."""
    there = torch.ones(1 << 28)
    times = []
    for _ in range(rounds):
        began = time.perf_counter()
        there.sum()
        times.append(time.perf_counter() - began)
    return min(times) * n_bytes / (there.numel() * there.element_size())
