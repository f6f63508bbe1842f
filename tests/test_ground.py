"""The ground floor: blocks, errors, addresses."""

from __future__ import annotations

import itertools
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from swarmd import errors
from swarmd.blocks import AUTO, BlockRequest, Span, coverage, holes, parse_blocks
from swarmd.errors import (
    BlocksOutOfRange,
    ReplayExhausted,
    SwarmdError,
    UsageError,
    error_classes,
)
from swarmd.peers import Address, parse_address

spans = st.tuples(st.integers(0, 40), st.integers(1, 12)).map(lambda t: Span(t[0], t[0] + t[1]))

# ---- blocks ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "request_"),
    [
        ("auto", AUTO),
        (" auto ", AUTO),
        ("12", BlockRequest(count=12)),
        ("0:1", BlockRequest(span=Span(0, 1))),
        ("10:20", BlockRequest(span=Span(10, 20))),
        (" 3:4\n", BlockRequest(span=Span(3, 4))),
    ],
)
def test_parse_blocks(text: str, request_: BlockRequest) -> None:
    assert parse_blocks(text) == request_
    assert parse_blocks(str(request_)) == request_


@pytest.mark.parametrize(
    "text",
    ["", "0", "-1", "5:5", "6:5", "a:b", "1:", ":2", "1-2", "1:2:3", "1.5", "٣", "1" * 5000],
)
def test_what_is_no_block_request(text: str) -> None:
    with pytest.raises(UsageError, match="10:20") as caught:
        parse_blocks(text)
    assert caught.value.exit_code == 2


def test_a_request_is_checked_against_the_model() -> None:
    for fits in ("auto", "6", "0:6", "5:6"):
        assert parse_blocks(fits).checked(6) == parse_blocks(fits)
    for too_much in ("7", "0:7", "6:7"):
        with pytest.raises(BlocksOutOfRange, match="0:6"):
            parse_blocks(too_much).checked(6)


@pytest.mark.parametrize(("start", "end"), [(0, 0), (1, 1), (2, 1), (-1, 1)])
def test_a_span_is_never_empty(start: int, end: int) -> None:
    with pytest.raises(ValueError):
        Span(start, end)


@given(spans, spans)
def test_spans_are_sets_of_blocks(one: Span, two: Span) -> None:
    assert list(one) == [block for block in range(60) if block in one]
    assert len(one) == len(list(one))
    assert one.covers(two) == (set(two) <= set(one))


@given(st.lists(spans, max_size=8), st.integers(1, 45))
def test_coverage_and_holes(held: list[Span], n_blocks: int) -> None:
    counts = coverage(held, n_blocks)
    assert counts == [sum(block in span for span in held) for block in range(n_blocks)]
    found = holes(counts)
    assert [b for hole in found for b in hole] == [b for b in range(n_blocks) if not counts[b]]
    for left, right in itertools.pairwise(found):
        assert left.end < right.start, "holes are maximal and in order"


# ---- errors ------------------------------------------------------------------------------------


def test_the_tree_in_the_docstring_is_the_tree() -> None:
    shown: list[tuple[int, str]] = []
    for line in (errors.__doc__ or "").splitlines():
        if match := re.match(r"    ([│├└─ ]*)([A-Z]\w+)(?:\s|$)", line):
            shown.append((len(match[1]) // 4, match[2]))
    by_depth: dict[int, str] = {}
    parents = {}
    for depth, name in shown:
        by_depth[depth] = name
        parents[name] = by_depth.get(depth - 1)
    ours = [cls for cls in error_classes() if cls.__module__ == "swarmd.errors"]
    assert parents == {
        cls.__name__: cls.__base__.__name__ if cls is not SwarmdError else None  # type: ignore[union-attr]
        for cls in ours
    }


def test_all_names_every_class() -> None:
    named = {name for name in errors.__all__ if isinstance(getattr(errors, name), type)}
    assert named == {cls.__name__ for cls in error_classes() if cls.__module__ == "swarmd.errors"}
    assert sorted(errors.__all__) == sorted(set(errors.__all__))


def test_exit_codes() -> None:
    for cls in error_classes():
        assert cls.exit_code == (2 if issubclass(cls, UsageError) else 1), cls
        assert cls.__doc__, f"{cls.__name__} says nothing of itself"


def test_only_what_may_go_better_is_retried_and_only_the_guilty_are_blamed() -> None:
    blamed = {cls for cls in error_classes() if cls.blames_peer}
    assert blamed == {errors.InternalError, *error_classes(errors.PeerFailure)}
    assert all(cls.retryable for cls in blamed)
    for cls in (*error_classes(UsageError), ReplayExhausted, errors.BadRequest, errors.BadTensor):
        assert not cls.retryable, cls
    transient = {cls for cls in error_classes() if cls.transient}
    assert transient == {errors.Busy, errors.DeadlineExceeded, errors.UnknownSession}
    assert all(cls.retryable and not cls.blames_peer for cls in transient)


def test_replay_exhausted_tells_its_story() -> None:
    error = ReplayExhausted("gave up:", story=["a lost", "b lost"])
    assert str(error).splitlines() == ["gave up:", "  a lost", "  b lost"]
    assert error.story == ("a lost", "b lost")


# ---- addresses ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("127.0.0.1:31330", Address("127.0.0.1", 31330)),
        (" host.example:1 ", Address("host.example", 1)),
        ("[::1]:65535", Address("::1", 65535)),
        ("[2001:db8::7]:80", Address("2001:db8::7", 80)),
    ],
)
def test_addresses(text: str, address: Address) -> None:
    assert parse_address(text) == address
    assert str(parse_address(str(address))) == text.strip()


@pytest.mark.parametrize(
    "text",
    [
        "", ":", "host", "host:", ":80", "::1:80", "[]:80", "host:0", "host:65536", "host:-1",
        "host:+1", "host:1e3", "host:８０", "host:٣", "host: 80", "[::1]", "host:99999999999",
    ],
)  # fmt: skip
def test_what_is_no_address(text: str) -> None:
    with pytest.raises(UsageError):
        parse_address(text)


def test_an_endless_port_is_no_address() -> None:
    with pytest.raises(UsageError):
        parse_address("host:" + "9" * 5000)


def test_loopback() -> None:
    for host in ("127.0.0.1", "127.9.9.9", "::1", "localhost"):
        assert Address(host, 1).is_loopback
    for host in ("10.0.0.1", "0.0.0.0", "::", "example.org"):
        assert not Address(host, 1).is_loopback
