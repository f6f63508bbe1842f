"""A dialogue whose turns share one session: what to send for the next answer. Pure, but for the
tokenizer that it is handed.

A session holds the tokens that went through it. The chat template's text of the next turn usually
begins with the text of the turns before, so its tokens are theirs and those of the rest: only these
are sent. Where it does not (a template that trims answers, a system message that was changed, text
that the tokenizer would cut otherwise), the text is tokenized anew and the session is cut back to
the tokens that both have in common.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

__all__ = ["Dialogue", "Prompt"]

Message = dict[str, str]


class _Codec(Protocol):
    """What is used of :class:`~swarmd.client.text.TextCodec`."""

    def template(self, messages: Sequence[Mapping[str, str]]) -> str: ...
    def encode_template(self, text: str) -> list[int]: ...
    def decode(self, token_ids: Sequence[int]) -> str: ...


@dataclass(frozen=True, slots=True)
class Prompt:
    """Token ids of the whole dialogue up to an answer; the session holds the first `held`."""

    token_ids: tuple[int, ...]
    held: int


@dataclass(frozen=True, slots=True)
class _Turn:
    """A question and its answer; `text` and `token_ids` are of the dialogue up to its end."""

    said: str
    answer: str
    text: str
    token_ids: tuple[int, ...]


class Dialogue:
    """`ask`, then `answered`; or, if the session did not do it, `forget_session`."""

    def __init__(self, codec: _Codec, system: str | None = None) -> None:
        self.system = system
        self._codec = codec
        self._turns: list[_Turn] = []
        self._held: tuple[int, ...] = ()

    @property
    def messages(self) -> list[Message]:
        """The dialogue so far: `role` and `content` each."""
        found = [] if self.system is None else [{"role": "system", "content": self.system}]
        for turn in self._turns:
            found.append({"role": "user", "content": turn.said})
            found.append({"role": "assistant", "content": turn.answer})
        return found

    def ask(self, said: str) -> Prompt:
        """What to send for an answer to `said`. Raises UsageError where the template refuses."""
        text = self._codec.template([*self.messages, {"role": "user", "content": said}])
        ids = tuple(self._continued(text) or self._codec.encode_template(text))
        return Prompt(ids, min(_common(ids, self._held), len(ids) - 1))

    def _continued(self, text: str) -> list[int] | None:
        """Tokens of `text` as those of the turns before and of the rest, if that is the same."""
        last = self._turns[-1] if self._turns else None
        if last is None or not text.startswith(last.text):
            return None
        ids = [*last.token_ids, *self._codec.encode_template(text[len(last.text) :])]
        whole = self._codec.encode_template(text)
        return ids if self._codec.decode(ids) == self._codec.decode(whole) else None

    def answered(self, said: str, prompt: Prompt, answer: str, token_ids: Sequence[int]) -> None:
        """The answer that came to `said`, whose tokens went through the session but for the last.
        One of no tokens is no turn: it only says what the session holds now."""
        ids = (*prompt.token_ids, *token_ids)
        self._held = ids[:-1]
        if token_ids:
            asked = self._codec.template([*self.messages, {"role": "user", "content": said}])
            self._turns.append(_Turn(said, answer, asked + answer, ids))

    def forget_session(self) -> None:
        """The session is gone: the next prompt is sent whole."""
        self._held = ()

    def undo(self) -> str | None:
        """Take the last question and its answer back; returns the question, None without one."""
        return self._turns.pop().said if self._turns else None

    def reset(self) -> None:
        """Forget all turns; the system message stays."""
        self._turns.clear()


def _common(one: Sequence[int], other: Sequence[int]) -> int:
    """How many tokens two sequences begin with alike."""
    for at, (a, b) in enumerate(zip(one, other, strict=False)):
        if a != b:
            return at
    return min(len(one), len(other))
