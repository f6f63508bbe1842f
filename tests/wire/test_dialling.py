"""Dialling and greeting, and a port that is held before it is served."""

from __future__ import annotations

import asyncio
import dataclasses
import socket
import sys

import pytest

from swarmd.errors import (
    BadOutput,
    Busy,
    ConnectionLost,
    NotAllowed,
    PeerMismatch,
    PeerTimeout,
    PortInUse,
    SwarmdError,
    Unreachable,
    VersionMismatch,
)
from swarmd.identity import Identity
from swarmd.peers import Address
from swarmd.swarm_key import PUBLIC_SWARM_KEY
from swarmd.wire.connection import Connection
from swarmd.wire.messages import (
    MESSAGES,
    PROTOCOL_VERSION,
    Challenge,
    ErrorMessage,
    Output,
    Step,
    Welcome,
)
from swarmd.wire.proofs import PLAINTEXT_BINDING, listener_proof
from swarmd.wire.transport import Door, Greeting, bind, dial, listen
from tests.conftest import Runner
from tests.wire.ends import Greeter
from tests.wire.samples import CHALLENGE, PAYLOAD, SAMPLES, of_type
from tests.wire.talk import framed


async def answering(data: bytes, expected: type[SwarmdError]) -> None:
    """Dial a listener that answers any greeting with `data`."""
    server = await asyncio.start_server(lambda reader, writer: writer.write(data), "127.0.0.1", 0)
    async with server:
        address = Address("127.0.0.1", server.sockets[0].getsockname()[1])
        with pytest.raises(expected) as caught:
            await dial(address, Greeting(plaintext=True), timeout=5.0)
        assert type(caught.value) is expected


_NONCE = bytes(32)
GOOD_CHALLENGE = framed(
    Challenge(_NONCE, listener_proof(PUBLIC_SWARM_KEY, PLAINTEXT_BINDING, _NONCE))
)


def welcome(**changed: int) -> Welcome:
    """A sample, but for some fields."""
    return dataclasses.replace(of_type(Welcome), **changed)  # type: ignore[arg-type]


HOSTILE_GREETINGS = [
    (b"HTTP/1.1 400 Bad Request\r\n\r\n", BadOutput),
    (bytes(64), BadOutput),
    (b"\xff" * 64, BadOutput),
    *((framed(message), BadOutput) for message in SAMPLES
      if not isinstance(message, Challenge | ErrorMessage)),
    (framed(CHALLENGE), PeerMismatch),  # its proof of the swarm key is none
    (framed(of_type(Step), PAYLOAD), BadOutput),
    (framed(of_type(Output), PAYLOAD), BadOutput),
    (framed(ErrorMessage("busy", "full", 5000, None, False)), BadOutput),
    (framed(ErrorMessage("busy", "full", 5000, None, True)), Busy),
    (GOOD_CHALLENGE + framed(welcome(version=1 + PROTOCOL_VERSION)), VersionMismatch),
    (GOOD_CHALLENGE + framed(welcome(start=6)), BadOutput),
    (GOOD_CHALLENGE + framed(CHALLENGE), BadOutput),
    (GOOD_CHALLENGE + framed(ErrorMessage("not_allowed", "no", None, None, True)), NotAllowed),
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
            with pytest.raises(ConnectionLost, match="another peer than was meant"):
                await dial(greeter.address, Greeting(), expected=Identity.generate().peer_id)
        with pytest.raises(Unreachable):
            await dial(greeter.address, Greeting())
        silent: list[Connection] = []
        door = Door(Identity.generate())
        listener = await listen(bind(Address("127.0.0.1", 0)), silent.append, door)
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


def test_a_port_is_held_before_it_is_served() -> None:
    with bind(Address("127.0.0.1", 0)) as held:
        address = Address("127.0.0.1", held.getsockname()[1])
        with pytest.raises(PortInUse, match=f"port {address.port} on 127.0.0.1 is taken"):
            bind(address)
    bind(address).close()


def test_who_dials_early_is_served_later(run_either: Runner) -> None:
    async def work() -> None:
        held = bind(Address("127.0.0.1", 0))
        address = Address("127.0.0.1", held.getsockname()[1])
        greeting = asyncio.ensure_future(dial(address, Greeting(), timeout=60))
        await asyncio.sleep(0.05)  # it waits in the kernel
        assert not greeting.done()
        async with Greeter(held=held) as greeter:
            greeted = await greeting
            assert greeted.peer_id == greeter.peer_id
            greeted.connection.abort()

    run_either(work())


def test_who_waits_when_the_port_is_given_up_is_told() -> None:
    held = bind(Address("127.0.0.1", 0))
    with socket.create_connection(held.getsockname(), timeout=20) as early:
        held.close()
        with pytest.raises(ConnectionResetError):
            early.recv(1)


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the second bind is refused")
def test_a_port_that_another_program_took_meanwhile(run_either: Runner) -> None:
    async def work() -> None:
        with socket.socket() as late:
            late.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            with socket.socket() as other:
                other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                other.bind(("127.0.0.1", 0))
                late.bind(other.getsockname())
                other.listen()
                with pytest.raises(PortInUse, match="taken"):
                    await listen(late, lambda connection: None, Door(Identity.generate()))

    run_either(work())
