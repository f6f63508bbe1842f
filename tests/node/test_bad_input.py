"""Nothing that a stranger sends touches anybody else's session, leaks cache, or is untyped.

Each test runs beside a healthy session on the same peer. When the stranger is done, that session's
next step must give the same bits as in an undisturbed run.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import socket
import struct
from collections.abc import AsyncIterator, Callable
from typing import Any

import msgpack
import pytest
import torch
import zstandard

from swarmd.blocks import Span
from swarmd.client.chain_session import ChainSession
from swarmd.compute.model_folder import ModelFolder, open_folder
from swarmd.errors import (
    BadRequest,
    BadTensor,
    BlocksNotHeld,
    Busy,
    DeadlineExceeded,
    Draining,
    FrameTooLarge,
    InternalError,
    ModelMismatch,
    PositionOutOfRange,
    RemoteError,
    UnknownMessage,
    UnknownSession,
    VersionMismatch,
)
from swarmd.node.sessions import SessionLimits
from swarmd.wire.frames import FrameDecoder, encode_preamble
from swarmd.wire.messages import (
    PROTOCOL_VERSION,
    Close,
    Closed,
    ErrorMessage,
    Hello,
    Message,
    Open,
    Opened,
    Output,
    Ping,
    Pong,
    Step,
    Successor,
    Welcome,
    decode_header,
    encode_header,
)
from swarmd.wire.protocol import MAX_STEPS_UNDER_WAY
from swarmd.wire.tensors import TensorMeta
from tests.conftest import Runner
from tests.families import N_BLOCKS, save_tiny
from tests.local_swarm import LocalPeer, LocalSwarm

HIDDEN = 32
ALL = Span(0, N_BLOCKS)
KV_TOKENS = 1024
ID, OTHER_ID = b"s" * 16, b"o" * 16


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> ModelFolder:
    return open_folder(save_tiny("llama", tmp_path_factory.mktemp("bad") / "llama"))


@pytest.fixture(scope="module")
def swarm(folder: ModelFolder) -> LocalSwarm:
    return LocalSwarm(folder)


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


@pytest.fixture(scope="module")
def undisturbed(swarm: LocalSwarm) -> list[bytes]:
    async def work() -> list[bytes]:
        async with swarm.running([ALL]):
            async with await swarm.session(max_length=64) as session:
                return await healthy_steps(session, 0, 3)

    return asyncio.run(work())


class Stranger:
    """A bare TCP client that says whatever it likes."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer
        self._decoder = FrameDecoder()

    @classmethod
    @contextlib.asynccontextmanager
    async def dial(cls, peer: LocalPeer, *, deaf: bool = False) -> AsyncIterator[Stranger]:
        sock = socket.socket()
        if deaf:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        sock.setblocking(False)
        loop = asyncio.get_running_loop()
        await loop.sock_connect(sock, (peer.address.host, peer.address.port))
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
        """The next message, or None at the end of the stream."""
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
        self.send(Hello(PROTOCOL_VERSION, "stranger", b"", b""))
        await self.expect(Welcome)

    async def open(self, max_length: int = 64, session: bytes = ID) -> None:
        self.send(Open(session, 0, N_BLOCKS, max_length))
        await self.expect(Opened)

    async def is_served(self, seed: int = 50) -> None:
        """The connection's session works still."""
        self.send(step(0, 99, tokens=2), payload=hidden(2, seed))
        output = await self.expect(Output)
        assert output.step == 99


def step(
    start: int = 0, number: int = 1, *, tokens: int = 1, session: bytes = ID, **kwargs: Any
) -> Step:
    meta = TensorMeta("float32", (1, tokens, HIDDEN), **kwargs)
    return Step(session, number, start, 0, meta)


async def until(condition: Callable[[], bool], seconds: float = 20.0) -> None:
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.002)


class Scene:
    """One peer with a healthy session on it; `stranger()` dials the peer."""

    def __init__(self, peer: LocalPeer, session: ChainSession) -> None:
        self.peer = peer
        self.session = session

    def stranger(self, *, deaf: bool = False) -> contextlib.AbstractAsyncContextManager[Stranger]:
        return Stranger.dial(self.peer, deaf=deaf)


Stage = Callable[..., contextlib.AbstractAsyncContextManager[Scene]]


@pytest.fixture
def stage(swarm: LocalSwarm, undisturbed: list[bytes], caplog: pytest.LogCaptureFixture) -> Stage:
    """Sets the scene, and checks at its end that nobody was harmed."""
    caplog.set_level(logging.DEBUG, logger="swarmd")

    @contextlib.asynccontextmanager
    async def staged(
        *, limits: SessionLimits | None = None, kv_tokens: int = KV_TOKENS
    ) -> AsyncIterator[Scene]:
        async with swarm.running([ALL], limits=limits, kv_tokens=kv_tokens):
            (peer,) = swarm.peers
            async with await swarm.session(max_length=64) as session:
                assert await healthy_steps(session, 0, 2) == undisturbed[:2]
                yield Scene(peer, session)
                assert await healthy_steps(session, 2, 1) == undisturbed[2:]
                assert session.statistics.recoveries == [], "the healthy session was hurt"
            await until(lambda: peer.engine.kv_free == kv_tokens)
            assert peer.server.open_sessions == 0
            await swarm.pool.__aexit__()
            await until(lambda: peer.server._open_connections == 0)
        for record in caplog.records:
            assert record.levelno < logging.ERROR, record.getMessage()
            assert record.levelno < logging.WARNING or not record.exc_info
            assert record.name != "swarmd.tasks" or record.levelno < logging.WARNING, (
                f"a connection's handler raised: {record.getMessage()}"
            )

    return staged


# ---- before hello ------------------------------------------------------------------------------

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
        encode_preamble(encode_header(Welcome(1, "", b"p" * 20, b"m" * 16, 0, 1, "float32", 1)), 0),
        BadRequest,
    ),
    "another version": (encode_preamble(encode_header(Hello(2, "", b"", b"")), 0), VersionMismatch),
    "another model": (
        encode_preamble(encode_header(Hello(1, "", b"", b"m" * 16)), 0),
        ModelMismatch,
    ),
    "a hello with a payload": (
        encode_preamble(encode_header(Hello(1, "", b"", b"")), 3) + b"abc",
        FrameTooLarge,
    ),
}


@pytest.mark.parametrize("scan", SCANS)
def test_what_comes_instead_of_a_hello(scan: str, stage: Stage, run_either: Runner) -> None:
    data, kind = SCANS[scan]

    async def work() -> None:
        async with stage() as scene, scene.stranger() as stranger:
            stranger.writer.write(data)
            await stranger.refused(kind)
            await stranger.ended()

    run_either(work())


def test_a_fatal_error_instead_of_a_hello(stage: Stage, run_async: Runner) -> None:
    async def work() -> None:
        for greeted in (False, True):
            async with stage() as scene, scene.stranger() as stranger:
                if greeted:
                    await stranger.greet()
                stranger.send(ErrorMessage("bad_request", "I do not like you", fatal=True))
                await stranger.ended()

    run_async(work())


def test_a_silent_connection_is_closed(stage: Stage, run_async: Runner) -> None:
    async def work() -> None:
        limits = SessionLimits(hello_timeout=0.1)
        async with stage(limits=limits) as scene:
            async with scene.stranger() as stranger:
                await stranger.ended()
            async with scene.stranger() as stranger:
                stranger.writer.write(b"\x00\x00\x00")  # one byte does not buy more time
                await stranger.ended()

    run_async(work())


def test_too_many_connections(stage: Stage, run_async: Runner) -> None:
    async def work() -> None:
        async with stage(limits=SessionLimits(connections=2)) as scene:
            async with scene.stranger() as second:
                await second.greet()
                async with scene.stranger() as third:
                    message = await third.refused(Busy)
                    assert message.fatal
                    assert message.to_error().retry_after is not None
                    await third.ended()
                await second.open()
                await second.is_served()
            await until(lambda: scene.peer.server._open_connections == 1)
            async with scene.stranger() as again:
                await again.greet()

    run_async(work())


# ---- after the greeting ------------------------------------------------------------------------

IDLE: dict[str, tuple[bytes, bytes, type[RemoteError]]] = {
    "hello again": (encode_header(Hello(1, "", b"", b"")), b"", BadRequest),
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


@pytest.mark.parametrize("case", IDLE)
def test_what_breaks_the_protocol_ends_the_connection(
    case: str, stage: Stage, run_either: Runner
) -> None:
    header, payload, kind = IDLE[case]

    async def work() -> None:
        async with stage() as scene, scene.stranger() as stranger:
            await stranger.greet()
            stranger.send_raw(header, payload)
            await stranger.refused(kind)
            await stranger.ended()

    run_either(work())


OPENS: dict[str, tuple[Open, type[RemoteError]]] = {
    "blocks not held": (Open(ID, 0, N_BLOCKS + 1, 10), BlocksNotHeld),
    "blocks far away": (Open(ID, 60_000, 65_536, 10), BlocksNotHeld),
    "beyond the model's positions": (Open(ID, 0, 6, 257), PositionOutOfRange),
    "an endless session": (Open(ID, 0, 6, 1 << 24), PositionOutOfRange),
    "next is set": (Open(ID, 0, 6, 10, Successor(b"p" * 20, "::1", 1, 1, 2)), BadRequest),
}


@pytest.mark.parametrize("case", OPENS)
def test_an_open_that_is_refused_leaves_the_connection(
    case: str, stage: Stage, run_async: Runner
) -> None:
    message, kind = OPENS[case]

    async def work() -> None:
        async with stage() as scene, scene.stranger() as stranger:
            await stranger.greet()
            for _ in range(2):
                stranger.send(message)
                assert not (await stranger.refused(kind)).fatal
            await stranger.open()
            await stranger.is_served()

    run_async(work())


def test_a_draining_peer_serves_who_is_there_and_nobody_new(
    stage: Stage, run_async: Runner
) -> None:
    async def work() -> None:
        async with stage() as scene, scene.stranger() as stranger:
            await stranger.greet()
            scene.peer.server.draining = True
            stranger.send(Open(ID, 0, N_BLOCKS, 10))
            assert not (await stranger.refused(Draining)).fatal

    run_async(work())


# ---- in a session ------------------------------------------------------------------------------


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


@pytest.mark.parametrize("case", STEPS)
def test_a_step_that_is_refused_leaves_the_session(
    case: str, stage: Stage, run_async: Runner
) -> None:
    message, payload, kind = STEPS[case]

    async def work() -> None:
        limits = SessionLimits(step_tokens=16)
        async with stage(limits=limits) as scene, scene.stranger() as stranger:
            await stranger.greet()
            await stranger.open(max_length=10)
            for number in (5, 6):
                again = Step(ID, number, message.start, 0, message.tensor)
                stranger.send(again, payload=payload)
                refusal = await stranger.refused(kind)
                assert refusal.step == number
                assert not refusal.fatal
            await stranger.is_served()
            stranger.send(Close(ID))
            await stranger.expect(Closed)
            await stranger.open()

    run_async(work())


def test_values_that_are_no_numbers_stay_in_their_session(stage: Stage, run_async: Runner) -> None:
    async def work() -> None:
        async with stage() as scene, scene.stranger() as stranger:
            await stranger.greet()
            await stranger.open()
            stranger.send(step(tokens=3), payload=b"\xff" * 3 * HIDDEN * 4)
            await stranger.expect(Output)

    run_async(work())


FATAL_IN_SESSION: dict[str, tuple[Step | Open | Close | Hello, bytes, type[RemoteError]]] = {
    "payload too short": (step(), bytes(127), BadTensor),
    "payload too long": (step(), bytes(129), BadTensor),
    "no payload": (step(), b"", BadTensor),
    "a second open": (Open(OTHER_ID, 0, 6, 10), b"", BadRequest),
    "the same open again": (Open(ID, 0, 6, 10), b"", BadRequest),
    "a step of an unknown session": (step(session=OTHER_ID), hidden(1, 1), UnknownSession),
    "a close of an unknown session": (Close(OTHER_ID), b"", UnknownSession),
    "hello": (Hello(1, "", b"", b""), b"", BadRequest),
    "a tensor larger than a frame": (
        Step(ID, 1, 0, 0, TensorMeta("float32", (1, 1 << 25, 32), "zstd")), b"x", BadTensor,
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", FATAL_IN_SESSION)
def test_what_ends_a_session(case: str, stage: Stage, run_either: Runner) -> None:
    message, payload, kind = FATAL_IN_SESSION[case]

    async def work() -> None:
        async with stage() as scene, scene.stranger() as stranger:
            await stranger.greet()
            await stranger.open()
            await stranger.is_served()
            stranger.send(message, payload=payload)
            await stranger.refused(kind)
            await stranger.ended()

    run_either(work())


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


def test_more_steps_under_way_than_are_allowed(stage: Stage, run_async: Runner) -> None:
    async def work() -> None:
        async with stage() as scene, scene.stranger() as stranger:
            gate = Gate(scene)
            await stranger.greet()
            await stranger.open(max_length=100)
            for number in range(MAX_STEPS_UNDER_WAY + 1):
                stranger.send(step(0, number), payload=hidden(1, 1))
            await stranger.refused(BadRequest)
            await stranger.ended()
            assert gate.waiting == 1, "one step of a session is at the engine at a time"

    run_async(work())


def test_steps_that_wait_are_answered_in_order(stage: Stage, run_async: Runner) -> None:
    async def work() -> None:
        async with stage() as scene, scene.stranger() as stranger:
            gate = Gate(scene)
            await stranger.greet()
            await stranger.open(max_length=100)
            for number in range(MAX_STEPS_UNDER_WAY):
                stranger.send(step(number, number), payload=hidden(1, number))
            await until(lambda: gate.waiting == 1)
            gate.open.set()
            for number in range(MAX_STEPS_UNDER_WAY):
                assert (await stranger.expect(Output)).step == number

    run_async(work())


def test_a_deadline_that_passes_at_the_door(stage: Stage, run_async: Runner) -> None:
    async def work() -> None:
        async with stage() as scene, scene.stranger() as stranger:
            gate = Gate(scene)
            await stranger.greet()
            await stranger.open(max_length=100)
            late = Step(ID, 3, 0, 1, TensorMeta("float32", (1, 1, HIDDEN)))
            stranger.send(late, payload=hidden(1, 1))
            await until(lambda: gate.waiting == 1)
            passed = asyncio.get_running_loop().time() + 0.002
            await until(lambda: asyncio.get_running_loop().time() > passed)
            gate.open.set()
            assert (await stranger.refused(DeadlineExceeded)).step == 3
            await stranger.is_served()

    run_async(work())


def test_a_bug_in_one_step_is_that_steps_trouble(
    stage: Stage, run_async: Runner, caplog: pytest.LogCaptureFixture
) -> None:
    async def work() -> None:
        async with stage() as scene, scene.stranger() as stranger:
            await stranger.greet()
            await stranger.open(max_length=100)
            original = scene.peer.engine.step

            async def buggy(session: Any, start: int, hidden: Any, **kwargs: Any) -> Any:
                if session.cache.limit == 100 and start == 1:
                    raise ZeroDivisionError("secret of the house")
                return await original(session, start, hidden, **kwargs)

            scene.peer.engine.step = buggy  # type: ignore[method-assign]
            await stranger.is_served()
            stranger.send(step(1), payload=hidden(1, 1))
            refusal = await stranger.refused(InternalError)
            assert "secret" not in refusal.message
            await stranger.is_served()
            assert "ZeroDivisionError" in caplog.text, "our bug is told at home"
            caplog.clear()

    run_async(work())


# ---- cuts and silence --------------------------------------------------------------------------


@pytest.mark.parametrize("keep", [1, 7, 8, 20, -1])
@pytest.mark.parametrize("opened", [False, True])
def test_a_stream_that_ends_in_mid_frame(
    keep: int, opened: bool, stage: Stage, run_async: Runner
) -> None:
    async def work() -> None:
        async with stage() as scene, scene.stranger() as stranger:
            await stranger.greet()
            if opened:
                await stranger.open()
                await stranger.is_served()
            whole = encode_preamble(encode_header(step()), 128) + bytes(128)
            stranger.writer.write(whole[:keep])
            stranger.writer.write_eof()
            await stranger.ended()

    run_async(work())


def test_a_connection_cut_during_a_step(stage: Stage, run_either: Runner) -> None:
    async def work() -> None:
        async with stage() as scene:
            gate = Gate(scene)
            async with scene.stranger() as stranger:
                await stranger.greet()
                await stranger.open(max_length=100)
                stranger.send(step(tokens=50), payload=hidden(50, 1))
                await until(lambda: gate.waiting == 1)
            await until(lambda: scene.peer.server.open_sessions == 1)
            gate.open.set()

    run_either(work())


def test_a_connection_cut_while_the_engine_runs_its_step(stage: Stage, run_async: Runner) -> None:
    async def work() -> None:
        async with stage() as scene:
            for _ in range(5):
                async with scene.stranger() as stranger:
                    await stranger.greet()
                    await stranger.open(max_length=256)
                    stranger.send(step(tokens=256), payload=hidden(256, 1))
                    await until(lambda: scene.peer.engine.queue_length > 0)

    run_async(work())


def test_a_close_while_steps_are_under_way(stage: Stage, run_async: Runner) -> None:
    async def work() -> None:
        async with stage() as scene, scene.stranger() as stranger:
            gate = Gate(scene)
            await stranger.greet()
            await stranger.open(max_length=100)
            stranger.send(step(0, 1), payload=hidden(1, 1))
            stranger.send(step(1, 2), payload=hidden(1, 1))
            await until(lambda: gate.waiting == 1)
            stranger.send(Close(ID))
            await stranger.expect(Closed)
            assert gate.waiting == 1
            gate.open.set()
            await stranger.open(session=OTHER_ID, max_length=90)

    run_async(work())


def test_a_session_whose_client_went_silent(stage: Stage, run_async: Runner) -> None:
    async def work() -> None:
        async with stage(limits=SessionLimits(idle_timeout=1.0)) as scene:
            async with scene.stranger() as in_session, scene.stranger() as idle:
                await idle.greet()
                await in_session.greet()
                await in_session.open(max_length=100)
                in_session.send(step(), payload=hidden(1, 1))
                await in_session.expect(Output)
                assert scene.peer.server.open_sessions == 2
                ends = [asyncio.ensure_future(s.ended()) for s in (in_session, idle)]
                while not all(end.done() for end in ends):  # who speaks is not closed
                    await scene.session.step(7, hidden(1, 1), 1)
                    await asyncio.wait(ends, timeout=0.05)
                await asyncio.gather(*ends)
                await until(lambda: scene.peer.server.open_sessions == 1)

    run_async(work())


def small_send_buffers(peer: LocalPeer) -> None:
    for connection in peer.connections:
        transport = connection._transport
        if transport is not None and not transport.is_closing():
            raw = transport.get_extra_info("socket")
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)


def test_a_client_that_does_not_read_its_outputs(stage: Stage, run_either: Runner) -> None:
    async def work() -> None:
        async with stage(limits=SessionLimits(send_timeout=0.1)) as scene:
            async with scene.stranger(deaf=True) as stranger:
                await stranger.greet()
                await stranger.open(max_length=256)
                small_send_buffers(scene.peer)
                for number in range(20):
                    stranger.send(step(0, number, tokens=256), payload=hidden(256, 1))
                await until(lambda: scene.peer.server.open_sessions == 1)

    run_either(work())


@pytest.mark.parametrize("opened", [False, True])
def test_a_client_that_pings_and_never_reads(
    opened: bool, stage: Stage, run_either: Runner
) -> None:
    async def work() -> None:
        async with stage(limits=SessionLimits(send_timeout=0.1)) as scene:
            async with scene.stranger(deaf=True) as stranger:
                await stranger.greet()
                if opened:
                    await stranger.open(max_length=100)
                small_send_buffers(scene.peer)
                ping = encode_preamble(encode_header(Ping(1)), 0)
                stranger.writer.write(ping * 100_000)
                await until(lambda: scene.peer.server._open_connections == 1)

    run_either(work())


def test_a_client_that_sends_bad_steps_and_never_reads(stage: Stage, run_async: Runner) -> None:
    async def work() -> None:
        async with stage(limits=SessionLimits(send_timeout=0.1)) as scene:
            async with scene.stranger(deaf=True) as stranger:
                await stranger.greet()
                await stranger.open(max_length=100)
                small_send_buffers(scene.peer)

                async def flood() -> None:
                    with contextlib.suppress(OSError):
                        number = 0
                        while True:
                            for _ in range(16):  # few enough to be answered before the next
                                number += 1
                                stranger.send(step(5, number), payload=hidden(1, 1))
                            refusals = scene.peer.server.statistics.refusals
                            await stranger.writer.drain()
                            with contextlib.suppress(TimeoutError):
                                await until(
                                    lambda n=refusals: (  # type: ignore[misc]
                                        scene.peer.server.statistics.refusals >= n + 16
                                    ),
                                    seconds=0.5,
                                )

                flooding = asyncio.ensure_future(flood())
                await until(lambda: scene.peer.server._open_connections == 1)
                flooding.cancel()
                await asyncio.wait([flooding])

    run_async(work())


# ---- room --------------------------------------------------------------------------------------


def test_a_full_cache_is_busy_and_reserves_nothing(stage: Stage, run_async: Runner) -> None:
    async def work() -> None:
        async with stage(kv_tokens=500) as scene:  # of which the healthy session holds 64
            async with scene.stranger() as first, scene.stranger() as second:
                for stranger in (first, second):
                    await stranger.greet()
                    await stranger.open(max_length=256)
                first.send(step(tokens=200), payload=hidden(200, 1))
                await first.expect(Output)
                for number in (1, 2, 3):
                    second.send(step(0, number, tokens=200), payload=hidden(200, 1))
                    refusal = await second.refused(Busy)
                    assert refusal.to_error().retry_after == 1.0
                    assert scene.peer.engine.kv_free == 500 - 64 - 256
                first.send(Close(ID))
                await first.expect(Closed)
                second.send(step(0, 4, tokens=200), payload=hidden(200, 1))
                assert (await second.expect(Output)).kv_free == 500 - 64 - 256

    run_async(work())


def test_many_strangers_at_once(stage: Stage, run_either: Runner) -> None:
    """All of the above together, while the healthy session is at work."""

    async def one(scene: Scene, number: int) -> None:
        rng = random.Random(number)
        async with scene.stranger() as stranger:
            if rng.random() < 0.3:
                stranger.writer.write(rng.choice(list(SCANS.values()))[0])
                return
            await stranger.greet()
            if rng.random() < 0.3:
                header, payload, _ = rng.choice(list(IDLE.values()))
                stranger.send_raw(header, payload)
                return
            await stranger.open(max_length=10)
            message, payload, _ = rng.choice(list(STEPS.values()))
            stranger.send(message, payload=payload)
            if rng.random() < 0.5:
                await stranger.read()

    async def work() -> None:
        async with stage() as scene:
            crowd = [asyncio.ensure_future(one(scene, number)) for number in range(40)]
            while not all(task.done() for task in crowd):
                await scene.session.step(7, hidden(1, 1), 1)
                await asyncio.wait(crowd, timeout=0.01)
            await asyncio.gather(*crowd)

    run_either(work())
