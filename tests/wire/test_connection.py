"""One connection over real sockets: back-pressure, cuts, cancels, and refusals, on both loops."""

from __future__ import annotations

import asyncio
import logging
import socket
import struct
from collections.abc import Callable

import pytest

from swarmd.errors import (
    BadOutput,
    BadRequest,
    Busy,
    ConnectionLost,
    FrameTooLarge,
    PeerMismatch,
    PeerTimeout,
    SwarmdError,
    UnknownMessage,
    Unreachable,
    VersionMismatch,
)
from swarmd.identity import Identity
from swarmd.peers import Address
from swarmd.tasks import TaskOwner
from swarmd.wire.connection import MAX_FRAMES_WAITING, Connection
from swarmd.wire.frames import Limits, encode_preamble
from swarmd.wire.messages import (
    MESSAGES,
    Closed,
    ErrorMessage,
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
from swarmd.wire.protocol import LocalMisuse, Role, State
from swarmd.wire.tensors import TensorMeta
from swarmd.wire.transport import Greeting, bind, dial, listen
from tests.conftest import Runner
from tests.wire.ends import Greeter, joined, joined_raw, tcp_pair
from tests.wire.samples import MODEL, PAYLOAD, SAMPLES, SESSION, of_type

HELLO = Hello(1, "test", b"", b"")
MIB = 1 << 20


def framed(message: object, payload: bytes = b"") -> bytes:
    return encode_preamble(encode_header(message), len(payload)) + payload  # type: ignore[arg-type]


PING = framed(Ping(7))


async def until(condition: Callable[[], bool], seconds: float = 20.0) -> None:
    """Poll; a condition that never comes fails the test."""
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.001)


async def in_session(dialler: Connection, listener: Connection) -> None:
    await dialler.send(Open(SESSION, 0, 6, 64))
    await listener.receive()
    await listener.send(Opened(SESSION, 1))
    await dialler.receive()


def test_messages_and_payloads_both_ways(run_either: Runner) -> None:
    async def work() -> None:
        async with joined(greeted=True) as (dialler, listener):
            await in_session(dialler, listener)
            for n_tokens in (1, 3, 500_000):
                meta = TensorMeta("float32", (1, n_tokens, 1))
                data = bytes(range(256)) * (meta.n_bytes // 256) + bytes(meta.n_bytes % 256)
                sending = asyncio.ensure_future(
                    dialler.send(Step(SESSION, n_tokens, 0, 0, meta), memoryview(data))
                )
                message, payload = await listener.receive()
                await sending
                assert message == Step(SESSION, n_tokens, 0, 0, meta)
                assert payload == data
                output = Output(SESSION, n_tokens, 1, 2, 3, meta)
                sending = asyncio.ensure_future(listener.send(output, payload))
                assert await dialler.receive() == (output, bytearray(data))
                await sending
            assert dialler.is_usable
            assert listener.is_usable

    run_either(work())


def test_a_slow_reader_pauses_a_fast_writer(run_either: Runner) -> None:
    """Nobody takes the outputs: the writer stops, and neither side's memory grows without end."""

    async def work() -> None:
        async with joined(greeted=True) as (dialler, listener):
            await in_session(dialler, listener)
            sent = 0

            async def flood() -> None:
                nonlocal sent
                while True:
                    await dialler.send(Ping(sent))
                    sent += 1
                    assert sent < 500_000, "nothing holds the writer back"

            async with TaskOwner("test") as owner:
                # frames first: with small ones the count of waiting frames is the limit
                owner.spawn(flood(), name="flood")
                await until(lambda: listener._paused_reading)
                seen = -1
                async with asyncio.timeout(20):
                    while seen != sent:
                        seen = sent
                        await asyncio.sleep(0.2)
                assert dialler._paused_writing
                # one buffer of the transport may be parsed after the limit was reached
                assert len(listener._frames) < MAX_FRAMES_WAITING + (1 << 16) // len(PING) + 1
                transport = dialler._transport
                assert transport is not None
                assert transport.get_write_buffer_size() < 1 * MIB
                for number in range(sent):  # the reader comes back: everything is there, in order
                    message, _ = await listener.receive()
                    assert message == Ping(number)

    run_either(work())


def test_large_frames_wait_in_the_kernel_not_here(run_either: Runner) -> None:
    async def work() -> None:
        async with joined(greeted=True) as (dialler, listener):
            await in_session(dialler, listener)
            meta = TensorMeta("float32", (1, MIB // 4, 1))
            payload = bytes(MIB)
            sent = 0

            async def flood() -> None:
                nonlocal sent
                for number in range(60):
                    await dialler.send(Step(SESSION, number, 0, 0, meta), payload)
                    sent += 1

            async with TaskOwner("test") as owner:
                task = owner.spawn(flood(), name="flood")
                await until(lambda: listener._paused_reading)
                await until(lambda: dialler._paused_writing)
                assert not task.done()
                assert len(listener._frames) <= MAX_FRAMES_WAITING + 1
                for number in range(60):
                    message, got = await listener.receive()
                    assert isinstance(message, Step)
                    assert message.step == number
                    assert len(got) == MIB
                await task
            assert sent == 60

    run_either(work())


@pytest.mark.parametrize("keep", [1, 7, 8, 9, 30])
def test_connection_lost_in_mid_frame(keep: int, run_either: Runner) -> None:
    async def work() -> None:
        async with joined_raw(Role.LISTENER) as (connection, raw):
            raw.sendall(framed(HELLO)[:keep])
            raw.shutdown(socket.SHUT_WR)
            with pytest.raises(ConnectionLost, match="in the middle of a frame"):
                await connection.receive()
            assert not connection.is_usable

    run_either(work())


def test_connection_lost_in_mid_payload(run_either: Runner) -> None:
    async def work() -> None:
        async with joined_raw(Role.DIALLER) as (connection, raw):
            data = encode_preamble(encode_header(HELLO), 5 * MIB) + bytes(100_000)
            await asyncio.get_running_loop().sock_sendall(raw, data)
            raw.shutdown(socket.SHUT_WR)
            with pytest.raises(ConnectionLost, match="in the middle of a frame"):
                await connection.receive()

    run_either(work())


def test_frames_before_the_end_are_delivered_then_the_end(run_either: Runner) -> None:
    async def work() -> None:
        async with joined(greeted=True) as (dialler, listener):
            for number in range(3):
                await dialler.send(Ping(number))
            await dialler.close()
            await until(lambda: listener._failure is not None)
            assert not listener.is_usable
            assert [(await listener.receive())[0] for _ in range(3)] == [Ping(0), Ping(1), Ping(2)]
            for _ in range(2):
                with pytest.raises(ConnectionLost, match="closed by the other side"):
                    await listener.receive()

    run_either(work())


def test_a_reset_while_reading_is_paused_does_not_hide_what_arrived(run_either: Runner) -> None:
    """The transport is gone when the reader drains the frames: that is ConnectionLost, no more."""

    async def work() -> None:
        async with joined(greeted=True) as (dialler, listener):
            for number in range(2 * MAX_FRAMES_WAITING):
                await dialler.send(Ping(number))
            await until(lambda: listener._paused_reading)
            listener.abort()
            await until(lambda: listener._failure is not None)
            found = []
            with pytest.raises(ConnectionLost):
                while True:
                    found.append((await listener.receive())[0])
            assert len(found) >= MAX_FRAMES_WAITING
            assert found == [Ping(number) for number in range(len(found))]

    run_either(work())


def test_send_after_close(run_either: Runner) -> None:
    async def work() -> None:
        async with joined(greeted=True) as (dialler, listener):
            await dialler.close()
            await dialler.close()
            with pytest.raises(ConnectionLost):
                await dialler.send(Ping(1))
            with pytest.raises(ConnectionLost):
                await dialler.receive()
            with pytest.raises(ConnectionLost):
                await listener.receive()
            await until(lambda: not listener.is_usable)
            with pytest.raises(ConnectionLost):
                await listener.send(Pong(1))

    run_either(work())


def test_a_send_that_waits_learns_of_the_end(run_either: Runner) -> None:
    async def work() -> None:
        async with joined(greeted=True) as (dialler, listener):
            await in_session(dialler, listener)
            meta = TensorMeta("float32", (1, 16 * MIB // 4, 1))
            sending = asyncio.ensure_future(
                dialler.send(Step(SESSION, 1, 0, 0, meta), bytes(meta.n_bytes))
            )
            listener._transport.pause_reading()  # type: ignore[union-attr]
            await until(lambda: dialler._paused_writing)
            dialler.abort()
            with pytest.raises(ConnectionLost):
                await sending

    run_either(work())


def test_close_flushes_and_gives_up_on_a_peer_that_does_not_read(run_either: Runner) -> None:
    async def work() -> None:
        async with joined(greeted=True) as (dialler, listener):
            await in_session(dialler, listener)
            meta = TensorMeta("float32", (1, 2 * MIB // 4, 1))
            sending = asyncio.ensure_future(
                dialler.send(Step(SESSION, 1, 0, 0, meta), bytes(meta.n_bytes))
            )
            closing = asyncio.ensure_future(dialler.close(timeout=20))
            _, payload = await listener.receive()
            assert len(payload) == 2 * MIB, "close sends what was written"
            await closing
            await asyncio.wait([sending])
            sending.exception()
        async with joined_raw(Role.DIALLER) as (connection, _unread):
            connection.protocol.state = State.SESSION
            connection.protocol.session = SESSION
            meta = TensorMeta("float32", (1, 32 * MIB // 4, 1))
            sending = asyncio.ensure_future(
                connection.send(Step(SESSION, 1, 0, 0, meta), bytes(meta.n_bytes))
            )
            await until(lambda: connection._paused_writing)
            await connection.close(timeout=0.05)
            with pytest.raises(ConnectionLost):
                await sending

    run_either(work())


def test_a_cancelled_receive_loses_nothing(run_either: Runner) -> None:
    async def work() -> None:
        async with joined(greeted=True) as (dialler, listener):
            for number in range(20):
                waiting = asyncio.ensure_future(listener.receive())
                await asyncio.sleep(0)
                if number % 2:  # the frame and the cancel meet
                    await dialler.send(Ping(number))
                    waiting.cancel()
                else:
                    waiting.cancel()
                    await dialler.send(Ping(number))
                try:
                    message, _ = await waiting
                except asyncio.CancelledError:
                    message, _ = await listener.receive()
                assert message == Ping(number)
            assert listener.is_usable

    run_either(work())


def test_a_cancelled_send_leaves_no_half_frame(run_either: Runner) -> None:
    async def work() -> None:
        async with joined(greeted=True) as (dialler, listener):
            await in_session(dialler, listener)
            listener._transport.pause_reading()  # type: ignore[union-attr]
            meta = TensorMeta("float32", (1, 16 * MIB // 4, 1))
            sending = asyncio.ensure_future(
                dialler.send(Step(SESSION, 1, 0, 0, meta), bytes(meta.n_bytes))
            )
            await until(lambda: dialler._paused_writing)
            sending.cancel()
            with pytest.raises(asyncio.CancelledError):
                await sending
            assert not dialler._writers
            following = asyncio.ensure_future(dialler.send(Ping(5)))
            listener._transport.resume_reading()  # type: ignore[union-attr]
            message, payload = await listener.receive()
            assert isinstance(message, Step)
            assert len(payload) == meta.n_bytes
            assert (await listener.receive())[0] == Ping(5)
            await following

    run_either(work())


BROKEN: list[tuple[bytes, type[BadRequest]]] = [
    (b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", FrameTooLarge),
    (bytes(8), BadRequest),
    (struct.pack(">II", 1, 0xFFFFFFFF), FrameTooLarge),
    (encode_preamble(b"\xc1", 0), BadRequest),
    (encode_preamble(b"\x81\xa1t\xa3huh", 0), UnknownMessage),
    (PING, BadRequest),
    (framed(HELLO)[:4] + struct.pack(">I", 3) + framed(HELLO)[8:] + b"abc", FrameTooLarge),
]


@pytest.mark.parametrize(("data", "kind"), BROKEN, ids=range(len(BROKEN)))
def test_what_breaks_the_protocol_is_refused_with_its_type(
    data: bytes, kind: type[BadRequest], run_either: Runner
) -> None:
    async def work() -> None:
        one, two = tcp_pair()
        loop = asyncio.get_running_loop()
        _, listener = await loop.create_connection(lambda: Connection(Role.LISTENER), sock=two)
        one.setblocking(False)
        with one:
            await loop.sock_sendall(one, data)
            with pytest.raises(kind) as caught:
                await listener.receive()
            assert type(caught.value) is kind
            assert not await listener.refuse(caught.value), "the connection ends"
            assert listener.state is State.ENDED
            answer = b""
            async with asyncio.timeout(10):
                while piece := await loop.sock_recv(one, 4096):
                    answer += piece
            header = encode_header(ErrorMessage.of(caught.value, fatal=True))
            assert answer == encode_preamble(header, 0)
        await listener.close()

    run_either(work())


def test_a_refusal_after_a_fatal_error_of_the_other_side(run_either: Runner) -> None:
    """The peer has ended it already: there is nothing to say, and no bug of ours."""

    async def work() -> None:
        async with joined(greeted=True) as (dialler, listener):
            await dialler.send(ErrorMessage("bad_request", "you are wrong", fatal=True))
            message, _ = await listener.receive()
            assert isinstance(message, ErrorMessage)
            assert not await listener.refuse(BadRequest("error is not expected here"))
            assert not listener.is_usable

    run_either(work())


def test_what_a_refusal_ends_and_what_not(run_either: Runner) -> None:
    async def work() -> None:
        async with joined(greeted=True) as (dialler, listener):
            await dialler.send(Open(SESSION, 0, 6, 64))
            await listener.receive()
            assert await listener.refuse(Busy("full", retry_after=2.0))
            message, _ = await dialler.receive()
            assert isinstance(message, ErrorMessage)
            assert message.to_error().retry_after == 2.0
            assert dialler.state is listener.state is State.IDLE
            await in_session(dialler, listener)
            meta = TensorMeta("float32", (1, 1, 1))
            await dialler.send(Step(SESSION, 4, 0, 0, meta), bytes(4))
            await listener.receive()
            assert await listener.refuse(BadRequest("this step alone"), step=4)
            await dialler.receive()
            assert dialler.state is listener.state is State.SESSION
            assert dialler.is_usable

    run_either(work())


def test_our_own_mistake_is_no_fault_of_the_peer(run_either: Runner) -> None:
    async def work() -> None:
        async with joined(greeted=True) as (dialler, listener):
            with pytest.raises(LocalMisuse):
                await dialler.send(Closed(SESSION))
            await dialler.send(Ping(1))
            assert (await listener.receive())[0] == Ping(1)

    run_either(work())


def test_limits_of_one_side(run_either: Runner) -> None:
    async def work() -> None:
        async with joined_raw(Role.LISTENER, limits=Limits(header=40, payload=0)) as (end, raw):
            raw.sendall(framed(Hello(1, "x" * 100, b"", b"")))
            with pytest.raises(FrameTooLarge):
                await end.receive()

    run_either(work())


# ---- dialling and greeting ---------------------------------------------------------------------


async def answering(data: bytes, expected: type[SwarmdError]) -> None:
    """Dial a listener that answers any greeting with `data`."""
    server = await asyncio.start_server(lambda reader, writer: writer.write(data), "127.0.0.1", 0)
    async with server:
        address = Address("127.0.0.1", server.sockets[0].getsockname()[1])
        with pytest.raises(expected) as caught:
            await dial(address, Greeting(), timeout=5.0)
        assert type(caught.value) is expected


HOSTILE_GREETINGS = [
    (b"HTTP/1.1 400 Bad Request\r\n\r\n", BadOutput),
    (bytes(64), BadOutput),
    (b"\xff" * 64, BadOutput),
    *((framed(message), BadOutput) for message in SAMPLES
      if not isinstance(message, Welcome | ErrorMessage)),
    (framed(of_type(Step), PAYLOAD), BadOutput),
    (framed(of_type(Output), PAYLOAD), BadOutput),
    (framed(ErrorMessage("busy", "full", 5000, None, False)), BadOutput),
    (framed(ErrorMessage("busy", "full", 5000, None, True)), Busy),
    (framed(Welcome(2, "x", b"p" * 20, MODEL, 0, 6, "float32", 1)), VersionMismatch),
    (framed(Welcome(1, "x", b"p" * 20, MODEL, 6, 6, "float32", 1)), BadOutput),
]  # fmt: skip


@pytest.mark.parametrize(("data", "expected"), HOSTILE_GREETINGS, ids=range(len(HOSTILE_GREETINGS)))
def test_whatever_answers_a_greeting_is_one_typed_error(
    data: bytes, expected: type[SwarmdError], run_async: Runner
) -> None:
    run_async(answering(data, expected))


def test_every_message_was_tried_as_a_greeting() -> None:
    assert {type(message) for message in SAMPLES} == set(MESSAGES.values())


def test_dialling_the_wrong_peer_the_dead_and_the_silent(run_either: Runner) -> None:
    async def work() -> None:
        async with Greeter() as greeter:
            greeted = await dial(greeter.address, Greeting(), expected=greeter.peer_id)
            assert greeted.peer_id == greeter.peer_id
            await greeted.connection.close()
            with pytest.raises(PeerMismatch):
                await dial(greeter.address, Greeting(), expected=Identity.generate().peer_id)
        with pytest.raises(Unreachable):
            await dial(greeter.address, Greeting())
        silent: list[Connection] = []
        listener = await listen(bind(Address("127.0.0.1", 0)), silent.append)
        try:
            address = Address("127.0.0.1", listener.sockets[0].getsockname()[1])
            with pytest.raises(PeerTimeout):
                await dial(address, Greeting(), timeout=0.1)
        finally:
            listener.close()
            for connection in silent:
                connection.abort()
                await connection.close()

    run_either(work())


@pytest.fixture(autouse=True)
def no_loop_errors(caplog: pytest.LogCaptureFixture) -> object:
    """What a loop logs (a callback that raised) fails the test."""
    yield
    errors = [r.getMessage() for r in caplog.records if r.levelno >= logging.ERROR]
    assert not errors, errors
