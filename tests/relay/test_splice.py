"""Two sockets joined: all bytes in order, both ways; bounded; and ended together."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator

import pytest

from swarmd.rates import Bucket
from swarmd.relay.splice import Splice
from tests.conftest import Runner

Ends = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class Joint:
    """A listener that joins its first two connections."""

    def __init__(self, *, rate: float = 1e12, burst: float = 1e12, idle: float = 60.0) -> None:
        self.splice: Splice | None = None
        self.ended = asyncio.Event()
        self.ends = 0
        self._rate, self._burst, self._idle = rate, burst, idle
        self._waiting: asyncio.Transport | None = None

    def made(self, transport: asyncio.Transport) -> None:
        if self._waiting is None:
            transport.pause_reading()
            self._waiting = transport
            return
        now = asyncio.get_running_loop().time()
        self.splice = Splice(
            self._waiting,
            transport,
            bucket=Bucket(self._rate, self._burst, now),
            idle_timeout=self._idle,
            on_end=self._end,
        )

    def _end(self) -> None:
        self.ends += 1
        self.ended.set()


class _Accepted(asyncio.Protocol):
    def __init__(self, joint: Joint) -> None:
        self._joint = joint

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._joint.made(transport)  # type: ignore[arg-type]


@contextlib.asynccontextmanager
async def joined(joint: Joint) -> AsyncIterator[tuple[Ends, Ends]]:
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: _Accepted(joint), "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    one = await asyncio.open_connection("127.0.0.1", port)
    other = await asyncio.open_connection("127.0.0.1", port)
    try:
        yield one, other
    finally:
        for _, writer in (one, other):
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()
        await asyncio.wait_for(joint.ended.wait(), 10)
        server.close()
        await server.wait_closed()


def test_all_bytes_arrive_in_order_both_ways(run_either: Runner) -> None:
    async def work() -> None:
        joint = Joint()
        data = random.Random(1).randbytes(3 << 20)
        async with joined(joint) as ((one, to_one), (other, to_other)):
            for reader, writer in ((other, to_one), (one, to_other)):
                writer.write(data)
                assert await reader.readexactly(len(data)) == data
            assert joint.splice is not None
            assert joint.splice.passed_bytes == 2 * len(data)
        assert joint.ends == 1

    run_either(work())


def test_who_does_not_read_holds_the_sender_back(run_either: Runner) -> None:
    async def work() -> None:
        joint = Joint()
        async with joined(joint) as ((_, to_one), (other, _)):
            other._transport.pause_reading()  # type: ignore[attr-defined]
            to_one.write(bytes(64 << 20))
            passed = -1
            while joint.splice is None or joint.splice.passed_bytes != passed:
                passed = -1 if joint.splice is None else joint.splice.passed_bytes
                await asyncio.sleep(0.2)
            assert 0 < passed < 48 << 20, "the relay and the kernel hold a bounded part"
            assert all(
                half.transport.get_write_buffer_size() < 1 << 20 for half in joint.splice._halves
            )
            other._transport.resume_reading()  # type: ignore[attr-defined]
            assert len(await other.readexactly(64 << 20)) == 64 << 20

    run_either(work())


def test_the_rate_is_kept(run_either: Runner) -> None:
    async def work() -> None:
        joint = Joint(rate=1 << 20, burst=64 << 10)
        loop = asyncio.get_running_loop()
        async with joined(joint) as ((_, to_one), (other, _)):
            began = loop.time()
            to_one.write(bytes(512 << 10))
            await other.readexactly(512 << 10)
            least = (512 - 64 - 256) / 1024  # but for the burst and one last portion
            assert loop.time() - began >= least

    run_either(work())


@pytest.mark.parametrize("side", [0, 1])
def test_the_last_bytes_are_flushed_before_the_other_side_is_closed(
    side: int, run_either: Runner
) -> None:
    async def work() -> None:
        joint = Joint()
        async with joined(joint) as ends:
            (_, writer), (reader, _) = ends[side], ends[1 - side]
            writer.write(b"last words" * 1000)
            writer.close()
            assert await reader.read(-1) == b"last words" * 1000

    run_either(work())


def test_a_silent_stream_ends_and_one_that_is_used_does_not(run_either: Runner) -> None:
    async def work() -> None:
        joint = Joint(idle=0.3)
        async with joined(joint) as ((_, to_one), (other, _)):
            for _ in range(8):
                await asyncio.sleep(0.1)
                to_one.write(b"x")
                assert await other.readexactly(1) == b"x"
            assert not joint.ended.is_set()
            with contextlib.suppress(ConnectionResetError):
                assert await other.read(1) == b""
            assert joint.ended.is_set()

    run_either(work())


def test_an_abort_drops_both(run_either: Runner) -> None:
    async def work() -> None:
        joint = Joint()
        async with joined(joint) as ((one, _), (other, _)):
            while joint.splice is None:
                await asyncio.sleep(0.01)
            joint.splice.abort()
            joint.splice.abort()
            for reader in (one, other):
                with contextlib.suppress(ConnectionResetError):
                    assert await reader.read(1) == b""
        assert joint.ends == 1

    run_either(work())
