"""How long a packet takes on its way: delay, jitter, rate and loss of each pair of sites. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from random import Random

__all__ = ["Link", "Links"]

QUEUE_SECONDS = 0.5
"""A packet that would wait longer than this for the line before it is dropped, as a router's full
buffer does."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Link:
    """One direction between two sites. Without a rate the line is as fast as the machine."""

    delay: float = 0.0
    """Seconds that each packet takes."""
    jitter: float = 0.0
    """Seconds: up to so much is added at random. Packets never overtake one another."""
    rate: float | None = None
    """Bits a second."""
    loss: float = 0.0
    """The share of packets that never arrive."""

    def __post_init__(self) -> None:
        if self.delay < 0 or self.jitter < 0 or not 0 <= self.loss <= 1:
            raise ValueError(f"no such link: {self}")
        if self.rate is not None and self.rate <= 0:
            raise ValueError(f"no such link: {self}")

    def to_json(self) -> dict[str, float | None]:
        """For the router's control line; `Link(**...)` reads it."""
        return asdict(self)


@dataclass(slots=True)
class _Line:
    """What is under way in one direction: when the line is free again, and the last arrival."""

    free_at: float = 0.0
    last: float = 0.0


@dataclass(slots=True)
class Links:
    """All pairs; those that are not named are as `default`."""

    rng: Random = field(default_factory=Random)
    default: Link = field(default_factory=Link)
    pairs: dict[tuple[int, int], Link] = field(default_factory=dict)
    _lines: dict[tuple[int, int], _Line] = field(default_factory=dict)

    def arrival(self, source: int, target: int, size: int, now: float) -> float | None:
        """When a packet of `size` bytes that is sent `now` arrives; None if it never does."""
        pair = source, target
        link, line = self.pairs.get(pair, self.default), self._lines.setdefault(pair, _Line())
        if link.loss and self.rng.random() < link.loss:
            return None
        sent = now
        if link.rate is not None:
            begins = max(now, line.free_at)
            if begins - now > QUEUE_SECONDS:
                return None
            sent = line.free_at = begins + 8 * size / link.rate
        arrives = sent + link.delay + (link.jitter * self.rng.random() if link.jitter else 0.0)
        line.last = max(line.last, arrives)
        return line.last

    def set(self, changes: Mapping[tuple[int, int] | None, Link]) -> None:
        """From now on; the key None is the default of all pairs that have no link of their own."""
        for pair, link in changes.items():
            if pair is None:
                self.default = link
            else:
                self.pairs[pair] = link
