"""A listener without TLS that greets well and then answers as a test tells it to."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable

from swarmd.blocks import Span
from swarmd.identity import Identity, PeerId
from swarmd.peers import Address, ModelId, PeerInfo, PeerState
from swarmd.swarm_key import PUBLIC_SWARM_KEY
from swarmd.wire.frames import FrameDecoder, encode_preamble
from swarmd.wire.messages import (
    PROTOCOL_VERSION,
    Challenge,
    Close,
    Closed,
    Hello,
    Message,
    Open,
    Opened,
    Output,
    Step,
    Welcome,
    decode_header,
    encode_header,
)
from swarmd.wire.proofs import PLAINTEXT_BINDING, listener_proof
from swarmd.wire.tensors import TensorMeta

HIDDEN = 4
MODEL = ModelId(b"m" * 16)
SPAN = Span(0, 6)
_NONCE = bytes(32)

Answer = Callable[["Hostile", Message, bytes], Awaitable[None]]


def framed(message: Message, payload: bytes = b"") -> bytes:
    return encode_preamble(encode_header(message), len(payload)) + payload


class Hostile:
    """`answers` maps a message type to what is done instead of the good answer (an echo)."""

    def __init__(
        self, answers: dict[type, Answer] | None = None, *, answers_as: PeerId | None = None
    ) -> None:
        self.answers = answers or {}
        self.peer_id = Identity.generate().peer_id
        self.answers_as = answers_as or self.peer_id
        self.writers: list[asyncio.StreamWriter] = []
        self.handlers: set[asyncio.Task[None]] = set()
        self.writer: asyncio.StreamWriter

    async def __aenter__(self) -> Hostile:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.address = Address("127.0.0.1", self._server.sockets[0].getsockname()[1])
        return self

    async def __aexit__(self, *exc: object) -> None:
        self._server.close()
        for writer in self.writers:
            writer.transport.abort()
        if self.handlers:
            await asyncio.wait(self.handlers)

    @property
    def info(self) -> PeerInfo:
        return PeerInfo(
            self.peer_id, self.address, MODEL, "tiny", 6, SPAN, PeerState.ONLINE, 100, 50, 1000,
            "float32",
        )  # fmt: skip

    def say(self, message: Message, payload: bytes = b"") -> None:
        self.say_raw(framed(message, payload))

    def say_raw(self, data: bytes) -> None:
        self.writer.write(data)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self.handlers.add(task)
        self.writer = writer
        self.writers.append(writer)
        self.say(Challenge(_NONCE, listener_proof(PUBLIC_SWARM_KEY, PLAINTEXT_BINDING, _NONCE)))
        decoder = FrameDecoder()
        with contextlib.suppress(OSError):
            while data := await reader.read(65536):
                decoder.feed(data)
                while (frame := decoder.next_frame()) is not None:
                    message = decode_header(frame.header, len(frame.payload))
                    answer = self.answers.get(type(message), good)
                    await answer(self, message, bytes(frame.payload))
        writer.close()


async def good(hostile: Hostile, message: Message, payload: bytes) -> None:
    match message:
        case Hello():
            hostile.say(
                Welcome(
                    PROTOCOL_VERSION,
                    "test",
                    hostile.answers_as,
                    MODEL,
                    0,
                    6,
                    "float32",
                    "none",
                    1 << 20,
                )
            )
        case Open():
            hostile.say(Opened(message.session, 1000))
        case Step():
            meta = TensorMeta(message.tensor.dtype, message.tensor.shape, message.tensor.codec)
            hostile.say(Output(message.session, message.step, 1, 2, 3, meta), payload)
        case Close():
            hostile.say(Closed(message.session))
