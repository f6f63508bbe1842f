"""Messages: strict in what they accept, and no garbage raises anything but a typed refusal."""

from __future__ import annotations

import random
from typing import Any

import msgpack
import pytest

from swarmd import errors
from swarmd.errors import (
    REMOTE_ERRORS,
    BadRequest,
    BadTensor,
    InternalError,
    RemoteError,
    UnknownMessage,
)
from swarmd.wire.fields import MAX_TEXT
from swarmd.wire.messages import (
    MAX_ERROR_TEXT,
    MESSAGES,
    WITH_PAYLOAD,
    ErrorMessage,
    Message,
    Pong,
    decode_header,
    encode_header,
)
from tests.wire.samples import SAMPLES, of_type

FIELDS = [(kind, name) for kind in MESSAGES.values() for name in kind.FIELDS]
NAMES = [f"{kind.TYPE}.{name}" for kind, name in FIELDS]

WRONG_FOR: dict[type, list[Any]] = {
    int: [None, True, -1, 1 << 33, 1.0, "1", b"1", [], {}],
    str: [None, 1, b"text", "x" * (MAX_TEXT + 1), ["x"]],
    bytes: [None, 1, "text", b"short", b"x" * 63, []],
    bool: [None, 0, 1, "true"],
    list: [None, 1, "x", [], ["float32"], {}, ["float32", [1], "raw", 1]],
}
WRONG_TENSOR: list[Any] = [
    ["float64", [1], "raw"],
    [1, [1], "raw"],
    [["float32"], [1], "raw"],
    ["float32", [], "raw"],
    ["float32", [0], "raw"],
    ["float32", [-1], "raw"],
    ["float32", [True], "raw"],
    ["float32", [1.0], "raw"],
    ["float32", [1 << 31], "raw"],
    ["float32", [1] * 5, "raw"],
    ["float32", 4, "raw"],
    ["float32", [1], "gzip"],
    ["float32", [1], ["raw"]],
]
WRONG_SUCCESSOR: list[Any] = [
    [],
    [b"short", "h", 1, 0, 1],
    [b"p" * 20, b"h", 1, 0, 1],
    [b"p" * 20, "h", 0, 0, 1],
    [b"p" * 20, "h", 65536, 0, 1],
    [b"p" * 20, "h", 1, -1, 1],
    [b"p" * 20, "h", 1, 0],
    "host:1",
]


def raw(message: Message) -> dict[str, Any]:
    return msgpack.unpackb(encode_header(message))


def wrong_values(kind: type, name: str) -> list[Any]:
    if name == "tensor":
        return WRONG_FOR[list] + WRONG_TENSOR
    if name == "next":
        return WRONG_SUCCESSOR
    if name in ("retry_after_ms", "step") and kind is ErrorMessage:
        return [True, -1, 1 << 33, "1", 1.0]
    return WRONG_FOR[type(raw(of_type(kind))[name])]


@pytest.mark.parametrize("message", SAMPLES, ids=lambda m: m.TYPE)
def test_round_trip(message: Message) -> None:
    payload = 32 if isinstance(message, WITH_PAYLOAD) else 0
    assert decode_header(encode_header(message), payload) == message


def test_every_message_has_a_sample_and_a_unique_name() -> None:
    assert {type(message) for message in SAMPLES} == set(MESSAGES.values())
    assert all(MESSAGES[kind.TYPE] is kind for kind in MESSAGES.values())


@pytest.mark.parametrize(("kind", "name"), FIELDS, ids=NAMES)
def test_a_wrongly_typed_field_is_refused(kind: type, name: str) -> None:
    values = wrong_values(kind, name)
    assert values
    for value in values:
        header = raw(of_type(kind)) | {name: value}
        with pytest.raises(BadRequest) as caught:
            decode_header(msgpack.packb(header), 0)
        assert type(caught.value) is (BadTensor if name == "tensor" else BadRequest), value


@pytest.mark.parametrize(("kind", "name"), FIELDS, ids=NAMES)
def test_a_missing_field_is_refused_by_name(kind: type, name: str) -> None:
    header = raw(of_type(kind))
    del header[name]
    with pytest.raises(BadRequest, match=name):
        decode_header(msgpack.packb(header), 0)


@pytest.mark.parametrize("kind", MESSAGES.values(), ids=list(MESSAGES))
def test_an_unknown_field_is_refused_by_name(kind: type) -> None:
    for extra in ("surplus", b"bytes"):
        with pytest.raises(BadRequest, match=r"surplus|bytes"):
            decode_header(msgpack.packb(raw(of_type(kind)) | {extra: 1}), 0)


@pytest.mark.parametrize("kind", MESSAGES.values(), ids=list(MESSAGES))
def test_a_payload_comes_only_with_a_tensor(kind: type) -> None:
    header = encode_header(of_type(kind))
    if kind in WITH_PAYLOAD:
        decode_header(header, 1)
    else:
        with pytest.raises(BadRequest, match="no payload"):
            decode_header(header, 1)


@pytest.mark.parametrize("name", ["", "HELLO", "hello ", "steps", "x" * 1000])
def test_an_unknown_type_is_refused(name: str) -> None:
    with pytest.raises(UnknownMessage):
        decode_header(msgpack.packb({"t": name}), 0)


@pytest.mark.parametrize(
    "header",
    [
        b"",
        b"\xc1",
        msgpack.packb(None),
        msgpack.packb([1, 2]),
        msgpack.packb({}),
        msgpack.packb({"t": 1}),
        msgpack.packb({"t": ["hello"]}),
        msgpack.packb({b"t": b"hello"}),
        msgpack.packb({1: 2}),
        msgpack.packb({"t": "ping", "nonce": 1}) + b"\x00",
        msgpack.packb({"t": "ping", "nonce": msgpack.ExtType(4, b"1234")}),
        b"\x81\xa1t\xa2\xff\xfe",
        b"\x91" * 5000,
        b"\xdd\xff\xff\xff\xff",
        b"\xdf\xff\xff\xff\xff",
        b"\xc6\xff\xff\xff\xff",
    ],
)
def test_what_is_no_map_with_a_type_is_refused(header: bytes) -> None:
    with pytest.raises(BadRequest):
        decode_header(header, 0)


def test_ten_thousand_random_headers() -> None:
    rng = random.Random(20)
    for _ in range(5_000):
        with pytest.raises(BadRequest):
            decode_header(rng.randbytes(rng.randrange(1, 200)), rng.choice((0, 5)))


def test_ten_thousand_mutated_headers() -> None:
    """A flipped bit, a cut, an insertion: a message or a BadRequest, never anything else."""
    rng = random.Random(21)
    whole = [encode_header(message) for message in SAMPLES]
    refused = 0
    for _ in range(10_000):
        header = bytearray(rng.choice(whole))
        for _ in range(rng.randrange(1, 4)):
            at = rng.randrange(len(header) + 1)
            match rng.randrange(4):
                case 0:
                    del header[at : at + rng.randrange(1, 5)]
                case 1:
                    header[at:at] = rng.randbytes(rng.randrange(1, 5))
                case _:
                    if at < len(header):
                        header[at] ^= 1 << rng.randrange(8)
        try:
            message = decode_header(bytes(header), rng.choice((0, 32)))
        except BadRequest:
            refused += 1
        else:
            again = decode_header(encode_header(message), 0)
            assert again == message, "what is accepted is said again in the same words"
    assert refused > 5_000


def test_every_remote_error_has_a_code_of_its_own() -> None:
    classes = errors.error_classes(RemoteError)[1:]  # the base never travels
    assert len({cls.code for cls in classes}) == len(classes)
    assert {cls.code: cls for cls in classes} == REMOTE_ERRORS
    for cls in classes:
        assert "code" in vars(cls), f"{cls.__name__} inherits its code"


@pytest.mark.parametrize("code", sorted(REMOTE_ERRORS))
@pytest.mark.parametrize("retry_after", [None, 0.0, 1.5])
def test_every_remote_error_survives_the_wire(code: str, retry_after: float | None) -> None:
    error = REMOTE_ERRORS[code]("what was wrong", retry_after=retry_after)
    message = ErrorMessage.of(error, step=4, fatal=False)
    decoded = decode_header(encode_header(message), 0)
    assert isinstance(decoded, ErrorMessage)
    again = decoded.to_error()
    assert type(again) is type(error)
    assert str(again) == "what was wrong"
    assert again.retry_after == retry_after
    assert (again.retryable, again.blames_peer) == (error.retryable, error.blames_peer)
    assert decoded.step == 4


def test_an_unknown_code_is_an_internal_error_of_the_peer() -> None:
    error = ErrorMessage("from_the_future", "new words").to_error()
    assert type(error) is InternalError
    assert str(error) == "new words"


def test_an_error_text_of_a_peer_prints_as_one_short_line() -> None:
    error = ErrorMessage("busy", "full\n\x1b[2Jgone \u202e" + "x" * 990).to_error()
    assert str(error).isprintable()
    assert str(error).startswith("full\\n\\x1b[2Jgone \\u202exxx")
    assert len(str(error)) == MAX_ERROR_TEXT == 500


def test_an_endless_error_text_is_cut_to_what_the_other_side_accepts() -> None:
    message = ErrorMessage.of(BadRequest("ä" * 10_000), fatal=True)
    assert decode_header(encode_header(message), 0) == message


def test_messages_are_hashable_values() -> None:
    assert Pong(3) == Pong(3)
    assert len({Pong(3), Pong(3)}) == 1
