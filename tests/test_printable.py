"""Text of a stranger moves no cursor, starts no line and has an end."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from swarmd.printable import printable


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("", ""),
        ("SmolLM2-135M (größer, 模型)", "SmolLM2-135M (größer, 模型)"),
        ("[bold]name[/bold]", "[bold]name[/bold]"),
        ("\x1b[31mred\x1b[0m", "\\x1b[31mred\\x1b[0m"),
        ("\x9b2J", "\\x9b2J"),
        ("one\ntwo\r\tthree\x7f\x00", "one\\ntwo\\r\\tthree\\x7f\\x00"),
        ("gnp\u202egnp.exe\u2066", "gnp\\u202egnp.exe\\u2066"),
        ("a\u200bb\ufeffc\u2028d", "a\\u200bb\\ufeffc\\u2028d"),
        ("\ud800", "\\ud800"),
        ("\U000e0041", "\\U000e0041"),
    ],
)
def test_what_does_not_print_is_shown_as_an_escape(text: str, shown: str) -> None:
    assert printable(text, 100) == shown


def test_what_is_too_long_is_cut_with_a_sign() -> None:
    assert printable("x" * 10, 10) == "x" * 10
    assert printable("x" * 11, 10) == "x" * 9 + "…"
    assert printable("\n" * 10, 10) == "\\n\\n\\n\\n\\…"
    assert printable("xx", 1) == "…"


@given(
    text=st.text(alphabet=st.characters(exclude_categories=()), max_size=60),
    limit=st.integers(1, 40),
)
def test_any_text_becomes_one_short_line(text: str, limit: int) -> None:
    shown = printable(text, limit)
    assert shown.isprintable()
    assert len(shown) <= limit
    assert printable(shown, limit) == shown
    shown.encode("utf-8")
