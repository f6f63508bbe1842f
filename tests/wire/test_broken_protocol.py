"""What breaks the protocol is refused with its type, and ends what it must end."""

from __future__ import annotations

import asyncio
import struct

import pytest

from swarmd.errors import BadRequest, Busy, FrameTooLarge, UnknownMessage
from swarmd.wire.connection import Connection
from swarmd.wire.frames import Limits, encode_preamble
from swarmd.wire.messages import (
    PROTOCOL_VERSION,
    Closed,
    ErrorMessage,
    Hello,
    Open,
    Ping,
    Step,
    encode_header,
)
from swarmd.wire.protocol import LocalMisuse, Role, State
from swarmd.wire.tensors import TensorMeta
from tests.conftest import Runner
from tests.wire.ends import joined, joined_raw, tcp_pair
from tests.wire.samples import SESSION, UNPROVEN
from tests.wire.talk import HELLO, PING, framed, in_session

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
            raw.sendall(framed(Hello(PROTOCOL_VERSION, "x" * 100, b"", *UNPROVEN)))
            with pytest.raises(FrameTooLarge):
                await end.receive()

    run_either(work())
