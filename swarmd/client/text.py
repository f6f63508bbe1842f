"""Between text and token ids: the tokenizer, the chat template, streaming, stop strings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import TemplateError
from tokenizers.decoders import DecodeStream

from swarmd.errors import ModelError, UsageError

__all__ = ["StopWatch", "TextCodec", "TextStream"]


class TextCodec:
    """The tokenizer of a model folder."""

    def __init__(self, folder: Path, *, eos_token_ids: Sequence[int]) -> None:
        """Raises ModelError if the folder holds no usable tokenizer."""
        from transformers import AutoTokenizer

        try:
            self.tokenizer: Any = AutoTokenizer.from_pretrained(str(folder), local_files_only=True)
        except (OSError, ValueError, KeyError, ImportError) as error:
            reason = str(error).splitlines()[0]
            raise ModelError(f"{folder}: no usable tokenizer: {reason}") from error
        self.eos_token_ids = frozenset(eos_token_ids) | (
            {self.tokenizer.eos_token_id} - {None}  # some models name it only here
        )

    def encode(self, prompt: str, *, chat: bool = False, system: str | None = None) -> list[int]:
        """Token ids of a prompt; with `chat`, of the model's chat template around it.

        Raises UsageError for an empty prompt, or for `chat` without a template.
        """
        if chat:
            turns = [{"role": "user", "content": prompt}]
            if system is not None:
                turns.insert(0, {"role": "system", "content": system})
            return self.encode_messages(turns)
        ids = self.tokenizer(prompt)["input_ids"]
        if not ids:
            raise UsageError("the prompt is empty")
        return list(ids)

    def encode_messages(self, messages: Sequence[Mapping[str, str]]) -> list[int]:
        """Token ids of a dialogue (`role` and `content` each) in the model's chat template, up to
        where its answer begins. Raises UsageError without a template, and where it refuses."""
        return self.encode_template(self.template(messages))

    def encode_template(self, text: str) -> list[int]:
        """Token ids of text that a template made, or a part of it: nothing is put around it."""
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def decode(self, token_ids: Sequence[int]) -> str:
        """The text of token ids, special ones as they are written."""
        return str(self.tokenizer.decode(list(token_ids)))

    def template(self, messages: Sequence[Mapping[str, str]]) -> str:
        """A dialogue as text, up to where its answer begins. Raises as `encode_messages` does."""
        if not self.tokenizer.chat_template:
            raise UsageError("this model has no chat template: give it a plain prompt, not a chat")
        try:
            return str(
                self.tokenizer.apply_chat_template(
                    list(messages), tokenize=False, add_generation_prompt=True
                )
            )
        except TemplateError as error:
            raise UsageError(f"the model's chat template refuses this dialogue: {error}") from error

    def spell(self, token_id: int) -> str:
        """One token by itself as text, special ones as they are written; a part of a character is
        the replacement character."""
        return str(self.tokenizer.decode([token_id]))

    def stream(self) -> TextStream:
        return TextStream(self.tokenizer)


class TextStream:
    """Token by token to text; a character is given out when all of its bytes are there."""

    def __init__(self, tokenizer: Any) -> None:
        self._backend = tokenizer.backend_tokenizer
        self._decoder = DecodeStream(skip_special_tokens=True)

    def push(self, token_id: int) -> str:
        """The text that this token completes; often a word, sometimes nothing."""
        return self._decoder.step(self._backend, token_id) or ""


class StopWatch:
    """Finds stop strings in streamed text, also across tokens. Pure.

    The stop string that is complete first ends the text where it began (the longest, if several
    end together), so the cut does not depend on how the text came in tokens. Text that may be
    the beginning of a stop string is held back until that is decided.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        if any(not stop for stop in stops):
            raise UsageError("--stop: a stop string must not be empty")
        self._stops = tuple(stops)
        self._held = ""
        self.stopped = False

    def push(self, text: str) -> str:
        """The text that is safe to give out now. After a stop string nothing is."""
        if self.stopped:
            return ""
        held = self._held + text
        found = [(at + len(stop), at) for stop in self._stops if (at := held.find(stop)) >= 0]
        if found:
            self.stopped = True
            self._held = ""
            return held[: min(found)[1]]
        keep = max((self._overlap(held, stop) for stop in self._stops), default=0)
        self._held = held[len(held) - keep :]
        return held[: len(held) - keep]

    def finish(self) -> str:
        """What is still held back when the answer ends without a stop string."""
        held, self._held = self._held, ""
        return held

    @staticmethod
    def _overlap(text: str, stop: str) -> int:
        return next(
            (n for n in range(min(len(text), len(stop) - 1), 0, -1) if text.endswith(stop[:n])), 0
        )
