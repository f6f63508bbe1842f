"""Stop strings in streamed text: the same cut however the text is cut into tokens."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from swarmd.client.text import StopWatch
from swarmd.errors import UsageError

letters = st.text("ab<", max_size=30)
stop_lists = st.lists(st.text("ab<", min_size=1, max_size=4), max_size=4)


def plain_search(text: str, stops: list[str]) -> tuple[str, bool]:
    """The first stop string to be complete ends the text where it began (the longest, in a tie)."""
    for end in range(1, len(text) + 1):
        ending = [stop for stop in stops if text[:end].endswith(stop)]
        if ending:
            return text[: end - max(map(len, ending))], True
    return text, False


def watched(pieces: list[str], stops: list[str]) -> tuple[str, bool]:
    watch = StopWatch(stops)
    given_out = "".join(watch.push(piece) for piece in pieces)
    return given_out + watch.finish(), watch.stopped


@given(letters, stop_lists)
def test_whole(text: str, stops: list[str]) -> None:
    assert watched([text], stops) == plain_search(text, stops)


@given(st.lists(letters, max_size=8), stop_lists)
def test_any_chunking(pieces: list[str], stops: list[str]) -> None:
    assert watched(pieces, stops) == plain_search("".join(pieces), stops)


@given(letters, stop_lists)
def test_letter_by_letter(text: str, stops: list[str]) -> None:
    assert watched(list(text), stops) == plain_search(text, stops)


@given(st.lists(letters, max_size=8), stop_lists)
def test_only_what_may_be_a_stop_string_is_held_back(pieces: list[str], stops: list[str]) -> None:
    watch, said, heard = StopWatch(stops), "", ""
    for piece in pieces:
        said += watch.push(piece)
        heard += piece
        if watch.stopped:
            break
        assert heard.startswith(said)
        held = heard[len(said) :]
        assert not held or any(stop.startswith(held) and stop != held for stop in stops)


def test_nothing_comes_after_a_stop_string() -> None:
    watch = StopWatch(["END"])
    assert watch.push("one EN") == "one "
    assert watch.push("D two") == ""
    assert watch.stopped
    assert watch.push("three") == ""
    assert watch.finish() == ""


def test_what_was_held_back_comes_at_the_end() -> None:
    watch = StopWatch(["<end>"])
    assert watch.push("a <en") == "a "
    assert watch.finish() == "<en"
    assert watch.finish() == ""
    assert not watch.stopped


def test_an_empty_stop_string_is_refused() -> None:
    with pytest.raises(UsageError):
        StopWatch(["a", ""])
