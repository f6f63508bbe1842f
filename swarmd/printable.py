"""Text of a stranger, made safe to print and to log. Pure."""

from __future__ import annotations

__all__ = ["printable"]


def printable(text: str, limit: int) -> str:
    """`text` on one line of at most `limit` (1 or more) printable characters.

    Control characters, line ends, bidi marks, lone surrogates and the like are shown as Python
    escapes, so that they are seen and do nothing. What is too long ends in an ellipsis. Printable
    text that fits is returned as it is. Markup is left alone: print it where none is read.
    """
    # The rest is cut first: a text without end must not cost time.
    shown = "".join(map(_visible, text[: limit + 1]))
    return shown if len(shown) <= limit else shown[: limit - 1] + "…"


def _visible(character: str) -> str:
    if character.isprintable():
        return character
    return character.encode("unicode_escape").decode("ascii")
