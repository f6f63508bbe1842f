"""How much the API takes on: of one request, of one key, and of all together."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass

from swarmd.api.errors import ApiError

__all__ = ["ApiLimits", "Places"]


@dataclass(frozen=True, slots=True)
class ApiLimits:
    """Sizes in bytes, times in seconds."""

    body: int = 1 << 20
    """A prompt of a hundred thousand words; checked before anything is parsed."""
    body_timeout: float = 30.0
    """For the body to come."""
    concurrent: int = 16
    """Answers under way; each is a session at every hop, and a node grants one client so many."""
    requests_a_minute: float = 600.0
    """Of one key, or of one address where no keys are asked for."""
    chat_tokens: int = 1024
    """New tokens of a chat answer whose request names no number."""
    keep_alive: float = 10.0
    """Silence after which a stream gets a comment, so that nobody in between closes it."""
    head_start: float = 10.0
    """How long a stream's first token is waited for before its status is sent: what fails until
    then gets an honest status, what fails later is an event of the stream."""
    write_timeout: float = 60.0
    """For a client to read on; one that does not would hold its caches for ever."""
    busy_patience: float = 10.0
    """For how long peers without room are asked again before the request is refused as busy."""

    @property
    def burst(self) -> float:
        """Requests at once: those of ten seconds, one at least."""
        return max(1.0, self.requests_a_minute / 6)


class Places:
    """Counts the answers under way."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.taken = 0

    @contextlib.contextmanager
    def take(self, answers: int) -> Iterator[None]:
        """Hold places for so many answers. Raises ApiError (429) where there are too few, and
        (422) for more than there ever are."""
        if answers > self.limit:
            raise ApiError(
                422,
                f"{answers} answers at once are more than the {self.limit} that this server gives",
                code="invalid_value",
                param="n",
            )
        if self.taken + answers > self.limit:
            raise ApiError(
                429,
                f"{self.taken} of {self.limit} answers are under way; try again in a moment",
                code="too_many_answers",
                retry_after=1.0,
            )
        self.taken += answers
        try:
            yield
        finally:
            self.taken -= answers
