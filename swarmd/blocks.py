"""Spans of transformer blocks, what `--blocks` may say, and coverage of a model by spans."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from swarmd.errors import BlocksOutOfRange, UsageError

__all__ = ["AUTO", "BlockRequest", "Span", "coverage", "holes", "parse_blocks"]


@dataclass(frozen=True, slots=True, order=True)
class Span:
    """A half-open range of blocks `[start, end)`; blocks are counted from 0. Never empty."""

    start: int
    end: int

    def __post_init__(self) -> None:
        if not 0 <= self.start < self.end:
            raise ValueError(f"not a span of blocks: {self.start}:{self.end}")

    def __len__(self) -> int:
        return self.end - self.start

    def __iter__(self) -> Iterator[int]:
        return iter(range(self.start, self.end))

    def __contains__(self, block: object) -> bool:
        return isinstance(block, int) and self.start <= block < self.end

    def covers(self, other: Span) -> bool:
        """Whether every block of `other` is in this span."""
        return self.start <= other.start and other.end <= self.end

    def __str__(self) -> str:
        return f"{self.start}:{self.end}"


@dataclass(frozen=True, slots=True)
class BlockRequest:
    """What `--blocks` asks for: `auto` (neither field set), a `count`, or a fixed `span`."""

    count: int | None = None
    span: Span | None = None

    def checked(self, n_blocks: int) -> BlockRequest:
        """Itself, if a model of `n_blocks` can satisfy it. Raises BlocksOutOfRange."""
        if self.span is not None and self.span.end > n_blocks:
            raise BlocksOutOfRange(
                f"--blocks {self.span}: the model has blocks 0:{n_blocks} ({n_blocks} blocks)"
            )
        if self.count is not None and self.count > n_blocks:
            raise BlocksOutOfRange(
                f"--blocks {self.count}: the model has only {n_blocks} blocks; use --blocks auto, "
                f"a count up to {n_blocks}, or a range such as 0:{n_blocks}"
            )
        return self

    def __str__(self) -> str:
        if self.span is not None:
            return str(self.span)
        return "auto" if self.count is None else str(self.count)


AUTO = BlockRequest()


def parse_blocks(text: str) -> BlockRequest:
    """Parse `auto`, a count (`12`) or a half-open range (`10:20`). Raises UsageError."""
    text = text.strip()
    if text == "auto":
        return AUTO
    if re.fullmatch(r"[0-9]{1,6}", text) and int(text) > 0:
        return BlockRequest(count=int(text))
    match = re.fullmatch(r"([0-9]{1,6}):([0-9]{1,6})", text)
    if match and int(match[1]) < int(match[2]):
        return BlockRequest(span=Span(int(match[1]), int(match[2])))
    raise UsageError(
        f"--blocks {text!r}: give auto, a count such as 12, or a range such as 10:20 "
        "(from block 10 up to, but without, block 20)"
    )


def coverage(spans: Iterable[Span], n_blocks: int) -> list[int]:
    """For each of `n_blocks` blocks, how many of `spans` hold it."""
    counts = [0] * n_blocks
    for span in spans:
        for block in range(span.start, min(span.end, n_blocks)):
            counts[block] += 1
    return counts


def holes(counts: Sequence[float]) -> list[Span]:
    """The maximal ranges of blocks whose count is zero, in order."""
    found: list[Span] = []
    start: int | None = None
    for block, count in enumerate([*counts, 1]):
        if count == 0 and start is None:
            start = block
        elif count > 0 and start is not None:
            found.append(Span(start, block))
            start = None
    return found
