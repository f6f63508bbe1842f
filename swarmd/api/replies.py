"""The bodies and stream events of OpenAI's two endpoints, from pieces of answers. Pure.

Their forms: https://platform.openai.com/docs/api-reference/chat/object (and `chat-streaming`,
`completions/object`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

__all__ = ["ChatReply", "Choice", "CompletionReply", "Reply", "Usage"]


class Score(Protocol):
    """A token with its log-probability and those of the likeliest tokens."""

    @property
    def token_id(self) -> int: ...
    @property
    def logprob(self) -> float: ...
    @property
    def top(self) -> Sequence[tuple[int, float]]: ...


@dataclass(slots=True)
class Choice:
    """One answer: as a whole, or the piece of it that an event carries."""

    index: int
    text: str = ""
    scores: list[Score] = field(default_factory=list)
    finish_reason: str | None = None


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens; each prompt is counted once, however many answers it gets."""

    prompt: int
    completion: int

    @property
    def body(self) -> dict[str, int]:
        return {
            "prompt_tokens": self.prompt,
            "completion_tokens": self.completion,
            "total_tokens": self.prompt + self.completion,
        }


@dataclass(slots=True)
class Reply:
    """What all events and the body of one answered request have in common."""

    request_id: str
    created: int
    model: str
    fingerprint: str
    spell: Callable[[int], str]
    scored: bool
    """Whether log-probabilities were asked for."""

    prefix = ""
    whole_object = ""
    chunk_object = ""

    def whole(self, choices: Sequence[Choice], usage: Usage) -> dict[str, Any]:
        """The body of an answer that is not streamed."""
        bodies = [self.whole_choice(choice) for choice in choices]
        return {**self._head(self.whole_object), "choices": bodies, "usage": usage.body}

    def chunk(self, choice: Choice) -> dict[str, Any]:
        """An event with one more piece of a choice, or with its end."""
        return {**self._head(self.chunk_object), "choices": [self.chunk_choice(choice)]}

    def last_chunk(self, usage: Usage) -> dict[str, Any]:
        """The event with the usage, after all choices."""
        return {**self._head(self.chunk_object), "choices": [], "usage": usage.body}

    def opening(self, index: int) -> dict[str, Any] | None:
        """The event before the first piece of a choice, if the endpoint has one."""
        return None

    def whole_choice(self, choice: Choice) -> dict[str, Any]:
        raise NotImplementedError

    def chunk_choice(self, choice: Choice) -> dict[str, Any]:
        raise NotImplementedError

    def _head(self, kind: str) -> dict[str, Any]:
        return {
            "id": f"{self.prefix}{self.request_id}",
            "object": kind,
            "created": self.created,
            "model": self.model,
            "system_fingerprint": self.fingerprint,
        }


@dataclass(slots=True)
class ChatReply(Reply):
    """`/v1/chat/completions`."""

    prefix = "chatcmpl-"
    whole_object = "chat.completion"
    chunk_object = "chat.completion.chunk"

    def opening(self, index: int) -> dict[str, Any] | None:
        delta = {"role": "assistant", "content": ""}
        choice = {"index": index, "delta": delta, "logprobs": None, "finish_reason": None}
        return {**self._head(self.chunk_object), "choices": [choice]}

    def whole_choice(self, choice: Choice) -> dict[str, Any]:
        message = {"role": "assistant", "content": choice.text, "refusal": None}
        return self._choice(choice, "message", message)

    def chunk_choice(self, choice: Choice) -> dict[str, Any]:
        return self._choice(choice, "delta", {"content": choice.text} if choice.text else {})

    def _choice(self, choice: Choice, key: str, value: dict[str, Any]) -> dict[str, Any]:
        logprobs = None
        if self.scored and (choice.scores or key == "message"):
            logprobs = {"content": [self._score(one) for one in choice.scores], "refusal": None}
        return {
            "index": choice.index,
            key: value,
            "logprobs": logprobs,
            "finish_reason": choice.finish_reason,
        }

    def _score(self, score: Score) -> dict[str, Any]:
        top = [self._token(token_id, logprob) for token_id, logprob in score.top]
        return {**self._token(score.token_id, score.logprob), "top_logprobs": top}

    def _token(self, token_id: int, logprob: float) -> dict[str, Any]:
        text = self.spell(token_id)
        whole = "\ufffd" not in text  # a part of a character has bytes that are not known here
        return {
            "token": text,
            "logprob": logprob,
            "bytes": list(text.encode()) if whole else None,
        }


@dataclass(slots=True)
class CompletionReply(Reply):
    """`/v1/completions`."""

    offsets: dict[int, int] = field(default_factory=dict)
    """Characters of the tokens of each choice so far, for `text_offset`."""

    prefix = "cmpl-"
    whole_object = "text_completion"
    chunk_object = "text_completion"

    def whole_choice(self, choice: Choice) -> dict[str, Any]:
        return {
            "index": choice.index,
            "text": choice.text,
            "logprobs": self._logprobs(choice) if self.scored else None,
            "finish_reason": choice.finish_reason,
        }

    def chunk_choice(self, choice: Choice) -> dict[str, Any]:
        return self.whole_choice(choice)

    def _logprobs(self, choice: Choice) -> dict[str, Any]:
        tokens, offsets = [], []
        for score in choice.scores:
            tokens.append(self.spell(score.token_id))
            offsets.append(self.offsets.get(choice.index, 0))
            self.offsets[choice.index] = offsets[-1] + len(tokens[-1])
        return {
            "tokens": tokens,
            "token_logprobs": [score.logprob for score in choice.scores],
            "top_logprobs": [
                {self.spell(token_id): logprob for token_id, logprob in score.top}
                for score in choice.scores
            ],
            "text_offset": offsets,
        }
