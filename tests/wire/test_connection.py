"""One connection over real sockets: back-pressure, cuts, cancels, on both loops."""

from __future__ import annotations

import asyncio
import socket

import pytest

from swarmd.errors import ConnectionLost
from swarmd.tasks import TaskOwner
from swarmd.wire.connection import MAX_FRAMES_WAITING
from swarmd.wire.frames import Limits, encode_preamble
from swarmd.wire.messages import Output, Ping, Pong, Step, encode_header
from swarmd.wire.protocol import Role, State
from swarmd.wire.tensors import TensorMeta
from tests.conftest import Runner
from tests.wire.ends import joined, joined_raw
from tests.wire.samples import SESSION
from tests.wire.talk import HELLO, MIB, PING, framed, in_session, until


@pytest.fixture(params=[False, True], ids=["plain", "tls"])
def secure(request: pytest.FixtureRequest) -> bool:
    return bool(request.param)


def test_messages_and_payloads_both_ways(secure: bool, run_either: Runner) -> None:
    async def work() -> None:
        async with joined(greeted=True, secure=secure) as (dialler, listener):
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


def test_a_slow_reader_pauses_a_fast_writer(secure: bool, run_either: Runner) -> None:
    """Nobody takes the outputs: the writer stops, and neither side's memory grows without end."""

    async def work() -> None:
        async with joined(greeted=True, secure=secure) as (dialler, listener):
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


def test_large_frames_wait_in_the_kernel_not_here(secure: bool, run_either: Runner) -> None:
    async def work() -> None:
        async with joined(greeted=True, secure=secure) as (dialler, listener):
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


def test_the_bytes_that_wait_here_are_bounded(secure: bool, run_either: Runner) -> None:
    """Of the largest frames two are held, of small ones as many as the count allows."""

    async def work() -> None:
        async with joined(greeted=True, secure=secure, limits=Limits(payload=MIB)) as (
            dialler,
            listener,
        ):
            await in_session(dialler, listener)
            sizes = [MIB, MIB, MIB, 4, 4, MIB // 2, MIB // 2, MIB // 2, MIB, 4] * 3

            async def flood() -> None:
                for number, size in enumerate(sizes):
                    meta = TensorMeta("float32", (1, size // 4, 1))
                    await dialler.send(Step(SESSION, number, 0, 0, meta), bytes(size))

            async with TaskOwner("test") as owner:
                task = owner.spawn(flood(), name="flood")
                await until(lambda: listener._paused_reading)
                for number, size in enumerate(sizes):
                    assert listener.waiting_bytes <= 2 * MIB
                    message, payload = await listener.receive()
                    assert isinstance(message, Step)
                    assert (message.step, len(payload)) == (number, size)
                await task
            assert listener.waiting_bytes == 0
            assert listener.is_usable

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


def test_frames_before_the_end_are_delivered_then_the_end(secure: bool, run_either: Runner) -> None:
    async def work() -> None:
        async with joined(greeted=True, secure=secure) as (dialler, listener):
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


def test_a_reset_while_reading_is_paused_does_not_hide_what_arrived(
    secure: bool, run_either: Runner
) -> None:
    """The transport is gone when the reader drains the frames: that is ConnectionLost, no more."""

    async def work() -> None:
        async with joined(greeted=True, secure=secure) as (dialler, listener):
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


def test_send_after_close(secure: bool, run_either: Runner) -> None:
    async def work() -> None:
        async with joined(greeted=True, secure=secure) as (dialler, listener):
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


def test_a_send_that_waits_learns_of_the_end(secure: bool, run_either: Runner) -> None:
    async def work() -> None:
        async with joined(greeted=True, secure=secure) as (dialler, listener):
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


def test_close_flushes_and_gives_up_on_a_peer_that_does_not_read(
    secure: bool, run_either: Runner
) -> None:
    async def work() -> None:
        async with joined(greeted=True, secure=secure) as (dialler, listener):
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


def test_a_cancelled_receive_loses_nothing(secure: bool, run_either: Runner) -> None:
    async def work() -> None:
        async with joined(greeted=True, secure=secure) as (dialler, listener):
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


def test_a_cancelled_send_leaves_no_half_frame(secure: bool, run_either: Runner) -> None:
    async def work() -> None:
        async with joined(greeted=True, secure=secure) as (dialler, listener):
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
