"""A client that says whatever it likes, and the healthy session beside which it does so.

The fixture `stage` sets the scene: when the stranger is done, the healthy session's next step must
give the same bits as in an undisturbed run, and no cache room may be lost.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Callable
from typing import Any

import torch

from swarmd.blocks import Span
from swarmd.client.chain_session import ChainSession
from swarmd.errors import RemoteError
from swarmd.wire.frames import FrameDecoder, encode_preamble
from swarmd.wire.greeting import Greeting
from swarmd.wire.messages import (
    PROTOCOL_VERSION,
    Challenge,
    ErrorMessage,
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
from swarmd.wire.proofs import PLAINTEXT_BINDING, dialler_proof, sign_hello
from swarmd.wire.tensors import TensorMeta
from tests.families import N_BLOCKS
from tests.local_swarm import LocalPeer

HIDDEN = 32
ALL = Span(0, N_BLOCKS)
KV_TOKENS = 1024
ID, OTHER_ID = b"s" * 16, b"o" * 16


def hidden(tokens: int, seed: int) -> bytes:
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn((1, tokens, HIDDEN), generator=generator)
    return values.view(torch.uint8).numpy().tobytes()


async def healthy_steps(session: ChainSession, first: int, count: int) -> list[bytes]:
    """A prompt of 7 positions as step 0, then single ones."""
    found = []
    for number in range(first, first + count):
        start, tokens = (0, 7) if number == 0 else (6 + number, 1)
        found.append(await session.step(start, hidden(tokens, number), tokens))
    return found


def step(
    start: int = 0, number: int = 1, *, tokens: int = 1, session: bytes = ID, **kwargs: Any
) -> Step:
    meta = TensorMeta("float32", (1, tokens, HIDDEN), **kwargs)
    return Step(session, number, start, 0, meta)


async def until(condition: Callable[[], bool], seconds: float = 20.0) -> None:
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.002)


class Stranger:
    """A bare TCP client that says whatever it likes."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer
        self._decoder = FrameDecoder()
        self.challenge: Challenge | None = None

    @classmethod
    @contextlib.asynccontextmanager
    async def dial(cls, peer: LocalPeer, *, deaf: bool = False) -> AsyncIterator[Stranger]:
        sock = socket.socket()
        if deaf:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        sock.setblocking(False)
        loop = asyncio.get_running_loop()
        await loop.sock_connect(sock, (peer.plain_address.host, peer.plain_address.port))
        reader, writer = await asyncio.open_connection(sock=sock, limit=4096)
        try:
            yield cls(reader, writer)
        finally:
            writer.transport.abort()
            with contextlib.suppress(OSError):
                await writer.wait_closed()

    def send(self, *messages: Message, payload: bytes = b"") -> None:
        for message in messages:
            self.send_raw(encode_header(message), payload)

    def send_raw(self, header: bytes, payload: bytes = b"") -> None:
        self.writer.write(encode_preamble(header, len(payload)) + payload)

    async def read(self) -> Message | None:
        """The next message, or None at the end of the stream. The challenge is kept aside."""
        message = await self._read()
        if isinstance(message, Challenge):
            self.challenge = message
            message = await self._read()
        return message

    async def _read(self) -> Message | None:
        async with asyncio.timeout(20):
            while (frame := self._decoder.next_frame()) is None:
                try:
                    data = await self.reader.read(4096)
                except OSError:  # reset: the peer had not read all that was sent
                    return None
                if not data:
                    return None
                self._decoder.feed(data)
        return decode_header(frame.header, len(frame.payload))

    async def expect(self, kind: type) -> Any:
        message = await self.read()
        assert type(message) is kind, message
        return message

    async def refused(self, kind: type[RemoteError]) -> ErrorMessage:
        message = await self.expect(ErrorMessage)
        assert type(message.to_error()) is kind, message
        return message

    async def ended(self) -> None:
        message = await self.read()
        assert message is None, message

    async def greet(self) -> None:
        await self.hello()
        await self.expect(Welcome)

    async def hello(self, model_id: bytes = b"") -> None:
        """Answer the challenge well."""
        if self.challenge is None:
            first = await self._read()
            assert isinstance(first, Challenge), first
            self.challenge = first
        greeting, nonce = Greeting(), self.challenge.nonce
        public_key = greeting.identity.public_key
        proof = dialler_proof(greeting.keys.current, PLAINTEXT_BINDING, nonce, public_key)
        signature = sign_hello(greeting.identity, PLAINTEXT_BINDING, nonce)
        self.send(Hello(PROTOCOL_VERSION, "stranger", model_id, public_key, proof, signature))

    async def open(self, max_length: int = 64, session: bytes = ID) -> None:
        self.send(Open(session, 0, N_BLOCKS, max_length))
        await self.expect(Opened)

    async def is_served(self, seed: int = 50) -> None:
        """The connection's session works still."""
        self.send(step(0, 99, tokens=2), payload=hidden(2, seed))
        output = await self.expect(Output)
        assert output.step == 99


class Scene:
    """One peer with a healthy session on it; `stranger()` dials the peer."""

    def __init__(self, peer: LocalPeer, session: ChainSession) -> None:
        self.peer = peer
        self.session = session

    def stranger(self, *, deaf: bool = False) -> contextlib.AbstractAsyncContextManager[Stranger]:
        return Stranger.dial(self.peer, deaf=deaf)


Stage = Callable[..., contextlib.AbstractAsyncContextManager[Scene]]


class Gate:
    """Holds the steps of every session but the healthy one at the engine's door."""

    def __init__(self, scene: Scene) -> None:
        self.waiting = 0
        self.open = asyncio.Event()
        engine = scene.peer.engine
        original = engine.step

        async def gated(session: Any, start: int, hidden: Any, **kwargs: Any) -> Any:
            if session.cache.limit != 64:
                self.waiting += 1
                await self.open.wait()
            return await original(session, start, hidden, **kwargs)

        engine.step = gated  # type: ignore[method-assign]


def small_send_buffers(peer: LocalPeer) -> None:
    for connection in peer.connections:
        transport = connection._transport
        if transport is not None and not transport.is_closing():
            raw = transport.get_extra_info("socket")
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
