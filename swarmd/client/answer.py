"""An answer as text while it comes in tokens, of which the last ones may be withdrawn."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from swarmd.client.text import StopWatch

__all__ = ["AnswerText"]


class _Stream(Protocol):
    def push(self, token_id: int) -> str: ...


class AnswerText:
    """Tokens in, text out; `text` is what stands, without what was withdrawn."""

    def __init__(self, new_stream: Callable[[], _Stream], stops: Sequence[str]) -> None:
        """Raises UsageError for an empty stop string."""
        self.token_ids: list[int] = []
        self.text = ""
        self._new_stream = new_stream
        self._stops = tuple(stops)
        self._begin()

    def _begin(self) -> None:
        self._stream, self._watch = self._new_stream(), StopWatch(self._stops)

    @property
    def stopped(self) -> bool:
        """Whether a stop string ended the text."""
        return self._watch.stopped

    def push(self, token_id: int) -> str:
        """The text that is safe to give out now."""
        self.token_ids.append(token_id)
        text = self._watch.push(self._stream.push(token_id))
        self.text += text
        return text

    def withdraw(self, kept: int) -> str:
        """Only the first `kept` tokens hold. Returns the text that was given out for others; the
        next text goes on from before it."""
        before, tokens = self.text, self.token_ids[:kept]
        self.token_ids, self.text = [], ""
        self._begin()
        for token_id in tokens:
            self.push(token_id)
        return before[len(self.text) :]

    def finish(self) -> str:
        """What is still held back at the end."""
        text = self._watch.finish()
        self.text += text
        return text
