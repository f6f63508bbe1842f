"""What a stranger may send, and the error with which it is refused."""

from __future__ import annotations

import random
import struct

import msgpack
import zstandard

from swarmd.errors import (
    BadRequest,
    BadTensor,
    BlocksNotHeld,
    FrameTooLarge,
    PositionOutOfRange,
    RemoteError,
    UnknownMessage,
    UnknownSession,
    VersionMismatch,
)
from swarmd.wire.frames import encode_preamble
from swarmd.wire.messages import (
    PROTOCOL_VERSION,
    Close,
    Hello,
    Open,
    Opened,
    Output,
    Ping,
    Pong,
    Step,
    Welcome,
    encode_header,
)
from swarmd.wire.tensors import TensorMeta
from tests.families import N_BLOCKS
from tests.node.hostile_client import ID, OTHER_ID, hidden, step
from tests.wire.samples import UNPROVEN
from tests.wire.talk import HELLO

SCANS: dict[str, tuple[bytes, type[RemoteError]]] = {
    "http": (b"GET / HTTP/1.1\r\nHost: swarmd\r\n\r\n", FrameTooLarge),
    "tls": (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(500), FrameTooLarge),
    "ssh": (b"SSH-2.0-OpenSSH_9.6\r\n", FrameTooLarge),
    "zeros": (bytes(4096), BadRequest),
    "random": (random.Random(3).randbytes(4096), FrameTooLarge),
    "header too long": (struct.pack(">II", 1 << 20, 0), FrameTooLarge),
    "payload too long": (struct.pack(">II", 10, (128 << 20) + 1), FrameTooLarge),
    "lengths all ones": (b"\xff" * 8, FrameTooLarge),
    "no msgpack": (encode_preamble(b"\xc1" * 30, 0), BadRequest),
    "msgpack, but no map": (encode_preamble(msgpack.packb([1, 2, 3]), 0), BadRequest),
    "unknown message": (encode_preamble(msgpack.packb({"t": "gossip"}), 0), UnknownMessage),
    "a field is missing": (encode_preamble(msgpack.packb({"t": "hello"}), 0), BadRequest),
    "ping first": (encode_preamble(encode_header(Ping(1)), 0), BadRequest),
    "open first": (encode_preamble(encode_header(Open(ID, 0, 1, 1)), 0), BadRequest),
    "step first": (encode_preamble(encode_header(step()), 128) + bytes(128), FrameTooLarge),
    "close first": (encode_preamble(encode_header(Close(ID)), 0), UnknownSession),
    "welcome": (
        encode_preamble(
            encode_header(
                Welcome(PROTOCOL_VERSION, "", b"p" * 20, b"m" * 16, 0, 1, "float32", "none", 1)
            ),
            0,
        ),
        BadRequest,
    ),
    "another version": (
        encode_preamble(encode_header(Hello(1, "", b"", *UNPROVEN)), 0),
        VersionMismatch,
    ),
    "a hello that proves nothing": (encode_preamble(encode_header(HELLO), 0), BadRequest),
    "a hello with a payload": (
        encode_preamble(encode_header(HELLO), 3) + b"abc",
        FrameTooLarge,
    ),
}


IDLE: dict[str, tuple[bytes, bytes, type[RemoteError]]] = {
    "hello again": (encode_header(HELLO), b"", BadRequest),
    "step before open": (encode_header(step()), hidden(1, 1), UnknownSession),
    "close before open": (encode_header(Close(ID)), b"", UnknownSession),
    "unknown message": (msgpack.packb({"t": "opens"}), b"", UnknownMessage),
    "garbage": (b"\xde\xad\xbe\xef", b"", BadRequest),
    "a ping with a payload": (encode_header(Ping(1)), b"x", BadRequest),
    "no span": (encode_header(Open(ID, 3, 3, 10)), b"", BadRequest),
    "a session of no positions": (encode_header(Open(ID, 0, 6, 0)), b"", BadRequest),
    "an output": (encode_header(Output(ID, 1, 0, 0, 0, step().tensor)), bytes(128), BadRequest),
    "opened": (encode_header(Opened(ID, 1)), b"", BadRequest),
    "pong": (encode_header(Pong(1)), b"", BadRequest),
}


OPENS: dict[str, tuple[Open, type[RemoteError]]] = {
    "blocks not held": (Open(ID, 0, N_BLOCKS + 1, 10), BlocksNotHeld),
    "blocks far away": (Open(ID, 60_000, 65_536, 10), BlocksNotHeld),
    "beyond the model's positions": (Open(ID, 0, 6, 257), PositionOutOfRange),
    "an endless session": (Open(ID, 0, 6, 1 << 24), PositionOutOfRange),
}


def raw_step(start: int, dtype: str, shape: tuple[int, ...], codec: str = "raw") -> Step:
    return Step(ID, 1, start, 0, TensorMeta(dtype, shape, codec))


BOMB = zstandard.compress(bytes(64 << 20))


STEPS: dict[str, tuple[Step, bytes, type[RemoteError]]] = {
    "wrong dtype": (raw_step(0, "bfloat16", (1, 1, 32)), bytes(64), BadTensor),
    "wrong hidden size": (raw_step(0, "float32", (1, 1, 33)), bytes(132), BadTensor),
    "hidden size 1": (raw_step(0, "float32", (1, 32, 1)), bytes(128), BadTensor),
    "two dimensions": (raw_step(0, "float32", (1, 32)), bytes(128), BadTensor),
    "four dimensions": (raw_step(0, "float32", (1, 1, 1, 32)), bytes(128), BadTensor),
    "a batch": (raw_step(0, "float32", (2, 1, 32)), bytes(256), BadTensor),
    "too many tokens": (step(tokens=17), hidden(17, 1), BadTensor),
    "beyond the cache": (step(3), hidden(1, 1), PositionOutOfRange),
    "far beyond the cache": (step(1 << 24), hidden(1, 1), PositionOutOfRange),
    "beyond the session's limit": (step(0, tokens=11), hidden(11, 1), PositionOutOfRange),
    "zstd garbage": (step(codec="zstd"), b"garbage", BadTensor),
    "zstd of nothing": (step(codec="zstd"), b"", BadTensor),
    "a zstd bomb": (step(codec="zstd"), BOMB, BadTensor),
    "a zstd frame that is too short": (
        step(codec="zstd"), zstandard.compress(bytes(124)), BadTensor,
    ),
}  # fmt: skip


FATAL_IN_SESSION: dict[str, tuple[Step | Open | Close | Hello, bytes, type[RemoteError]]] = {
    "payload too short": (step(), bytes(127), BadTensor),
    "payload too long": (step(), bytes(129), BadTensor),
    "no payload": (step(), b"", BadTensor),
    "a second open": (Open(OTHER_ID, 0, 6, 10), b"", BadRequest),
    "the same open again": (Open(ID, 0, 6, 10), b"", BadRequest),
    "a step of an unknown session": (step(session=OTHER_ID), hidden(1, 1), UnknownSession),
    "a close of an unknown session": (Close(OTHER_ID), b"", UnknownSession),
    "hello": (HELLO, b"", BadRequest),
    "a tensor larger than a frame": (
        Step(ID, 1, 0, 0, TensorMeta("float32", (1, 1 << 25, 32), "zstd")), b"x", BadTensor,
    ),
}  # fmt: skip
