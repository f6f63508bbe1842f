"""What is honoured is taken, what is not is refused by its name: no field is skipped in silence."""

from __future__ import annotations

from typing import Any

import pytest

from swarmd.api.body import parse_json
from swarmd.api.errors import ApiError, from_swarmd
from swarmd.api.keys import ApiKeys, read_keys
from swarmd.api.schemas import read_chat, read_completion
from swarmd.errors import Busy, NoRoute, ReplayExhausted, SessionTooLong, Unreachable, UsageError

HELLO = {"model": "m", "messages": [{"role": "user", "content": "hello"}]}
TEXT = {"model": "m", "prompt": "hello"}


def test_everything_that_is_honoured() -> None:
    ask = read_chat(
        {
            **HELLO, "stream": True, "stream_options": {"include_usage": True}, "n": 2, "seed": 7,
            "stop": ["a", "b"], "temperature": 0, "top_p": 0.5, "top_k": 3, "logprobs": True,
            "top_logprobs": 4, "max_completion_tokens": 9, "presence_penalty": 1,
            "frequency_penalty": -1, "repetition_penalty": 1.1,
        }
    )  # fmt: skip
    assert (ask.stream, ask.include_usage, ask.n, ask.seed, ask.stops) == (
        True,
        True,
        2,
        7,
        ("a", "b"),
    )
    assert (ask.temperature, ask.top_p, ask.top_k, ask.max_tokens) == (0.0, 0.5, 3, 9)
    assert (ask.presence_penalty, ask.frequency_penalty, ask.repetition_penalty) == (1, -1, 1.1)
    assert ask.top_logprobs == 4
    assert read_completion(TEXT).max_tokens == 16
    assert read_completion({**TEXT, "logprobs": 0}).top_logprobs == 0


def test_fields_that_ask_for_nothing_are_taken() -> None:
    nothing = {
        "tools": [], "tool_choice": "none", "logit_bias": {}, "store": False, "user": "me",
        "response_format": {"type": "text"}, "service_tier": "auto", "audio": None, "new": None,
    }  # fmt: skip
    assert read_chat({**HELLO, **nothing}) == read_chat(HELLO)


@pytest.mark.parametrize(
    ("fields", "name"),
    [
        ({"tools": [{"type": "function"}]}, "tools"),
        ({"response_format": {"type": "json_object"}}, "response_format"),
        ({"logit_bias": {"5": 1}}, "logit_bias"),
        ({"reasoning_effort": "low"}, "reasoning_effort"),
        ({"store": True}, "store"),
        ({"store": 0}, "store"),
        ({"audio": {}}, "audio"),
        ({"n": 0}, "n"),
        ({"n": 17}, "n"),
        ({"n": True}, "n"),
        ({"temperature": 2.5}, "temperature"),
        ({"temperature": "1"}, "temperature"),
        ({"top_p": 0}, "top_p"),
        ({"seed": -1}, "seed"),
        ({"stop": ["a"] * 5}, "stop"),
        ({"stop": ""}, "stop"),
        ({"stop": [1]}, "stop"),
        ({"stop": {"a": 1}}, "stop"),
        ({"stream": "yes"}, "stream"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"stream": True, "stream_options": {"x": 1}}, "stream_options.x"),
        ({"top_logprobs": 2}, "logprobs"),
        ({"max_tokens": 3, "max_completion_tokens": 4}, "max_tokens"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"model": ""}, "model"),
        ({"messages": []}, "messages"),
        ({"messages": "hello"}, "messages"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages[0].role"),
        ({"messages": [{"role": "user"}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": "x", "name": "y"}]}, "messages[0].name"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]},
            "messages[0].content[0].type",
        ),
    ],
)
def test_refused_by_name(fields: dict[str, Any], name: str) -> None:
    with pytest.raises(ApiError) as refusal:
        read_chat({**HELLO, **fields})
    assert (refusal.value.status, refusal.value.param) == (422, name)
    assert name in refusal.value.message


@pytest.mark.parametrize(
    ("fields", "name"),
    [
        ({"echo": True}, "echo"),
        ({"suffix": "x"}, "suffix"),
        ({"best_of": 2}, "best_of"),
        ({"logprobs": 6}, "logprobs"),
        ({"logprobs": True}, "logprobs"),
        ({"prompt": ""}, "prompt"),
        ({"prompt": []}, "prompt"),
        ({"prompt": [1, "a"]}, "prompt"),
        ({"prompt": [-1]}, "prompt"),
        ({"prompt": ["a"] * 9, "n": 2}, "n"),
        ({"messages": []}, "messages"),
    ],
)
def test_refused_by_name_in_completions(fields: dict[str, Any], name: str) -> None:
    with pytest.raises(ApiError) as refusal:
        read_completion({**TEXT, **fields})
    assert (refusal.value.status, refusal.value.param) == (422, name)


def test_prompts_of_each_form() -> None:
    for given, prompts in (
        ("a", ("a",)), (["a", "b"], ("a", "b")), ([1, 2], ([1, 2],)), ([[1], [2]], ([1], [2])),
    ):  # fmt: skip
        assert read_completion({**TEXT, "prompt": given}).prompts == prompts


@pytest.mark.parametrize(
    "raw", [b"", b"{", b"\xff", b'{"a": NaN}', b'"\\ud800"', b"[" * 200_000, b"1" * 5000]
)
def test_what_is_not_plain_json(raw: bytes) -> None:
    with pytest.raises(ApiError) as refusal:
        parse_json(raw)
    assert refusal.value.status == 400


def test_errors_of_the_swarm() -> None:
    try:
        raise ReplayExhausted("gave up") from Busy("full", retry_after=2.5)
    except ReplayExhausted as busy:
        error = from_swarmd(busy)
    assert (error.status, error.headers) == (429, {"Retry-After": "3"})
    error = from_swarmd(NoRoute("no live peer holds 3:6", missing=["3:6"]))
    assert (error.status, error.body["error"]["missing"]) == (503, ["3:6"])
    assert from_swarmd(SessionTooLong()).status == 400
    assert from_swarmd(UsageError("x")).status == 422
    assert from_swarmd(Unreachable("x")).status == 502


def test_keys_from_a_file(tmp_path: Any) -> None:
    path = tmp_path / "keys"
    path.write_text("# mine\nsecret-key-of-mine  # a remark\n\n")
    path.chmod(0o644)
    with pytest.raises(UsageError, match="chmod 600"):
        read_keys(path)
    path.chmod(0o600)
    keys = ApiKeys(read_keys(path))
    assert keys.holder("Bearer secret-key-of-mine")
    for wrong in ("", "secret-key-of-mine", "Bearer", "Bearer x", "Basic secret-key-of-mine"):
        assert keys.holder(wrong) is None
    with pytest.raises(UsageError, match="16"):
        ApiKeys(["short"])
