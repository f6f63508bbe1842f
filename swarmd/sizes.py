"""Sizes in bytes as people write them."""

from __future__ import annotations

import re

from swarmd.errors import UsageError

__all__ = ["parse_size"]

_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}


def parse_size(text: str) -> int:
    """Bytes of `350MB`, `1.5G`, `2GiB`, `500000000`. Units are powers of two. Raises UsageError."""
    pattern = r"\s*([0-9]{1,15}(?:\.[0-9]{1,9})?)\s*([KMGT]?)(?:i?B)?\s*"
    match = re.fullmatch(pattern, text, re.IGNORECASE)
    if match is None:
        raise UsageError(f"--memory {text!r}: give a size such as 350MB, 1.5G or 8GiB")
    return int(float(match[1]) * _UNITS[match[2].upper()])
