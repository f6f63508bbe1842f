"""Checks of a message's fields: each returns a value of the right type and size, or raises
ValueError."""

from __future__ import annotations

import ipaddress
from collections.abc import Callable

__all__ = ["MAX_TEXT", "U32", "boolean", "byte_string", "integer", "ip_literal", "text"]

MAX_TEXT = 1024
"""Characters; nothing needs more."""
U32 = (1 << 32) - 1


def integer(low: int, high: int) -> Callable[[object], int]:
    """An integer in `low..high`; a boolean is none."""

    def check(value: object) -> int:
        if type(value) is not int or not low <= value <= high:
            raise ValueError(f"not an integer in {low}..{high}")
        return value

    return check


def byte_string(length: int, *, or_empty: bool = False) -> Callable[[object], bytes]:
    """Exactly `length` bytes, or none where that may be."""

    def check(value: object) -> bytes:
        if not isinstance(value, bytes) or not (len(value) == length or (or_empty and not value)):
            raise ValueError(f"not {length} bytes")
        return value

    return check


def text(value: object) -> str:
    """A text of at most MAX_TEXT characters."""
    if not isinstance(value, str) or len(value) > MAX_TEXT:
        raise ValueError(f"not a text of at most {MAX_TEXT} characters")
    return value


def boolean(value: object) -> bool:
    """True or false."""
    if not isinstance(value, bool):
        raise ValueError("not a boolean")
    return value


def ip_literal(value: object) -> str:
    """An IPv4 or IPv6 address, as `ipaddress` writes it."""
    return str(ipaddress.ip_address(text(value)))
