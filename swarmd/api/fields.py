"""Reads the fields of a JSON object one by one; what nobody read is refused by name. Pure."""

from __future__ import annotations

import math
from typing import Any

from swarmd.api.errors import ApiError, not_honoured, wrong_value

__all__ = ["Fields"]


class Fields:
    """The fields of one object. A field that is null counts as absent.

    Every reader raises ApiError (422) with the field's name for a value that is not what it must
    be, and returns `default` for an absent one.
    """

    def __init__(self, body: object, *, prefix: str = "") -> None:
        if not isinstance(body, dict):
            what = prefix.rstrip(".") or "the body"
            raise ApiError(422, f"{what} must be a JSON object", code="invalid_value")
        self._left = {name: value for name, value in body.items() if value is not None}
        self._prefix = prefix

    def take(self, name: str, default: Any = None) -> Any:
        """The value, of whatever type."""
        return self._left.pop(name, default)

    def name(self, name: str) -> str:
        """The name with the object's own, for errors."""
        return self._prefix + name

    def text(self, name: str, default: str | None = None) -> str | None:
        value = self.take(name, default)
        if value is not None and not isinstance(value, str):
            raise wrong_value(self.name(name), "a string")
        return value

    def flag(self, name: str, default: bool = False) -> bool:
        value = self.take(name, default)
        if not isinstance(value, bool):
            raise wrong_value(self.name(name), "true or false")
        return value

    def integer(self, name: str, low: int, high: int, default: int | None = None) -> int | None:
        """In `low..high`, both included."""
        value = self.take(name)
        if value is None:
            return default
        if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
            raise wrong_value(self.name(name), f"an integer in {low}..{high}")
        return value

    def number(self, name: str, low: float, high: float, default: float) -> float:
        """In `low..high`, both included."""
        value = self.take(name, default)
        good = isinstance(value, int | float) and not isinstance(value, bool)
        if not good or not math.isfinite(value) or not low <= value <= high:
            raise wrong_value(self.name(name), f"a number in {low:g}..{high:g}")
        return float(value)

    def only(self, name: str, *harmless: object) -> None:
        """A field of OpenAI's that asks for nothing with one of these values; others are refused.

        Raises ApiError (422) that names it.
        """
        value = self.take(name)
        if value is not None and not any(type(value) is type(v) and value == v for v in harmless):
            raise not_honoured(self.name(name))

    def end(self) -> None:
        """Refuse what is left. Raises ApiError (422) with the first name."""
        for name in self._left:
            raise not_honoured(self.name(name[:100]))
