"""What the API has done since it was started; for its metrics. Pure."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from swarmd.histogram import Histogram

__all__ = ["ApiCounts"]

FIRST_TOKEN = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0)
"""Bounds in seconds: from a short prompt nearby to a long one over slow links."""


@dataclass(slots=True)
class ApiCounts:
    """Counts since start."""

    requests: Counter[tuple[str, str, int]] = field(default_factory=Counter)
    """By method, route and status. The route is the pattern, not the path, so they are few; a
    request whose client went away has the status 499."""
    prompt_tokens: int = 0
    completion_tokens: int = 0
    recoveries: int = 0
    """Hops that were lost and replaced in answers that have ended."""
    replayed_positions: int = 0
    moves: int = 0
    """To a better chain, in answers that have ended."""
    broken_streams: int = 0
    """Streams that ended with an error event after their status was sent."""
    first_token: Histogram = field(default_factory=lambda: Histogram(FIRST_TOKEN))
    """Seconds from a request that was read to the first token of each of its answers."""
