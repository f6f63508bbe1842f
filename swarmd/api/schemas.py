"""What a request may ask for: the bodies of OpenAI's two endpoints, checked field by field. Pure.

Fields and their meaning are those of https://platform.openai.com/docs/api-reference. A field that
is not honoured is refused by name, unless its value asks for nothing (`tools: []`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeAlias

from swarmd.api.errors import not_honoured, wrong_value
from swarmd.api.fields import Fields

__all__ = ["MAX_CHOICES", "Ask", "Prompt", "read_chat", "read_completion"]

MAX_CHOICES = 16
"""Answers of one request, each a session of its own; the limit on all answers holds as well."""
MAX_STOPS = 4
"""As with OpenAI."""
MAX_MESSAGES = 2048
"""Bounds the work of a template; nobody's dialogue is longer."""
MAX_POSITIONS = 1 << 24
"""As the protocol's positions: a check of form, the model's own limit comes later."""
COMPLETION_TOKENS = 16
"""OpenAI's default of `max_tokens` for `/v1/completions`."""

Prompt: TypeAlias = str | list[int] | list[dict[str, str]]
"""A text, token ids, or the messages of a chat."""


@dataclass(frozen=True, slots=True)
class Ask:
    """One checked request. `max_tokens` None leaves the number to the gateway.

    `top_logprobs` None is no log-probabilities at all, 0 those of the chosen tokens only.
    """

    model: str
    prompts: tuple[Prompt, ...]
    chat: bool
    stream: bool
    include_usage: bool
    max_tokens: int | None
    n: int
    stops: tuple[str, ...]
    seed: int | None
    temperature: float
    top_p: float
    top_k: int
    presence_penalty: float
    frequency_penalty: float
    repetition_penalty: float
    top_logprobs: int | None

    @property
    def choices(self) -> int:
        """Answers that the whole request is for."""
        return len(self.prompts) * self.n


def read_chat(body: object) -> Ask:
    """The body of `/v1/chat/completions`. Raises ApiError (422)."""
    fields = Fields(body)
    messages = _messages(fields.take("messages"))
    newer = fields.integer("max_completion_tokens", 1, MAX_POSITIONS)
    older = fields.integer("max_tokens", 1, MAX_POSITIONS)
    if newer is not None and older is not None and newer != older:
        raise wrong_value("max_tokens", "left out where max_completion_tokens is given")
    wanted = fields.flag("logprobs")
    top = fields.integer("top_logprobs", 0, 20)
    if top is not None and not wanted:
        raise wrong_value("logprobs", "true where top_logprobs is given")
    fields.only("response_format", {"type": "text"})
    fields.only("tools", [])
    fields.only("tool_choice", "none", "auto")
    fields.only("parallel_tool_calls", True, False)  # speaks of tools, of which there are none
    fields.only("functions", [])
    fields.only("modalities", ["text"])
    return _shared(fields, (messages,), True, newer or older, (top or 0) if wanted else None)


def read_completion(body: object) -> Ask:
    """The body of `/v1/completions`. Raises ApiError (422)."""
    fields = Fields(body)
    prompts = _prompts(fields.take("prompt"))
    most = fields.integer("max_tokens", 1, MAX_POSITIONS, COMPLETION_TOKENS)
    top = fields.integer("logprobs", 0, 5)
    fields.only("echo", False)
    fields.only("suffix", "")
    return _shared(fields, prompts, False, most, top)


def _shared(
    fields: Fields,
    prompts: tuple[Prompt, ...],
    chat: bool,
    max_tokens: int | None,
    top_logprobs: int | None,
) -> Ask:
    model = fields.text("model")
    if not model:
        raise wrong_value("model", "the name of a model; /v1/models lists it")
    stream = fields.flag("stream")
    n = fields.integer("n", 1, MAX_CHOICES, 1) or 1
    if len(prompts) * n > MAX_CHOICES:
        raise wrong_value("n", f"such that prompts times n are at most {MAX_CHOICES}")
    if not chat:
        fields.only("best_of", n)
    fields.only("logit_bias", {})
    fields.only("store", False)
    fields.only("service_tier", "auto", "default")
    fields.text("user")  # names the asker's own user and asks for nothing
    ask = Ask(
        model=model,
        prompts=prompts,
        chat=chat,
        stream=stream,
        include_usage=_include_usage(fields.take("stream_options"), stream),
        max_tokens=max_tokens,
        n=n,
        stops=_stops(fields.take("stop")),
        seed=fields.integer("seed", 0, (1 << 63) - 1),
        temperature=fields.number("temperature", 0, 2, 1.0),
        top_p=fields.number("top_p", 1e-6, 1, 1.0),
        top_k=fields.integer("top_k", 0, MAX_POSITIONS, 0) or 0,
        presence_penalty=fields.number("presence_penalty", -2, 2, 0.0),
        frequency_penalty=fields.number("frequency_penalty", -2, 2, 0.0),
        repetition_penalty=fields.number("repetition_penalty", 0.01, 100, 1.0),
        top_logprobs=top_logprobs,
    )
    fields.end()
    return ask


def _include_usage(options: Any, stream: bool) -> bool:
    if options is None:
        return False
    if not stream:
        raise wrong_value("stream_options", "left out where stream is not true")
    fields = Fields(options, prefix="stream_options.")
    wanted = fields.flag("include_usage")
    fields.only("include_obfuscation", False)
    fields.end()
    return wanted


def _stops(value: Any) -> tuple[str, ...]:
    stops = [value] if isinstance(value, str) else value or []
    good = isinstance(stops, list) and len(stops) <= MAX_STOPS
    if not good or not all(isinstance(stop, str) and 0 < len(stop) <= 1024 for stop in stops):
        raise wrong_value("stop", f"a string, or up to {MAX_STOPS} of them, none of them empty")
    return tuple(stops)


def _prompts(value: Any) -> tuple[Prompt, ...]:
    prompts = value if isinstance(value, list) else [value]
    if prompts and all(_is_token(one) for one in prompts):
        prompts = [prompts]
    for one in prompts:
        text = isinstance(one, str) and one != ""
        if not text and not (isinstance(one, list) and one and all(_is_token(t) for t in one)):
            raise wrong_value("prompt", "a text, token ids, or a list of either, not empty")
    if not 1 <= len(prompts) <= MAX_CHOICES:
        raise wrong_value("prompt", f"one to {MAX_CHOICES} prompts")
    return tuple(prompts)


def _is_token(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 32


def _messages(value: Any) -> list[dict[str, str]]:
    if not isinstance(value, list) or not 1 <= len(value) <= MAX_MESSAGES:
        raise wrong_value("messages", f"a list of 1 to {MAX_MESSAGES} messages")
    return [_message(one, f"messages[{at}].") for at, one in enumerate(value)]


def _message(value: Any, prefix: str) -> dict[str, str]:
    fields = Fields(value, prefix=prefix)
    role = fields.text("role")
    if role not in ("system", "developer", "user", "assistant"):
        raise wrong_value(prefix + "role", "system, developer, user or assistant")
    content = fields.take("content")
    if isinstance(content, list):
        content = "".join(_part(part, f"{prefix}content[{at}].") for at, part in enumerate(content))
    if not isinstance(content, str):
        raise wrong_value(prefix + "content", "a text, or a list of parts of type text")
    fields.only("tool_calls", [])
    fields.only("annotations", [])
    fields.end()
    # OpenAI's newer name for the same role, which templates do not know
    return {"role": "system" if role == "developer" else role, "content": content}


def _part(value: Any, prefix: str) -> str:
    fields = Fields(value, prefix=prefix)
    if fields.take("type") != "text":
        raise not_honoured(prefix + "type", "send parts of type text only")
    text = fields.text("text")
    if text is None:
        raise wrong_value(prefix + "text", "a string")
    fields.end()
    return text
