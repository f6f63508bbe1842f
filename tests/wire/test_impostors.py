"""Links: impostors, men in the middle, stolen knocks."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from swarmd.errors import (
    BadOutput,
    BadRequest,
    ConnectionLost,
    PeerMismatch,
    SwarmdError,
)
from swarmd.identity import Identity
from swarmd.peers import Address
from swarmd.swarm_key import PUBLIC_SWARM_KEY
from swarmd.tasks import TaskOwner
from swarmd.wire.certificate import Certificate
from swarmd.wire.connection import Connection
from swarmd.wire.greeting import Door, Greeting, challenge, check_hello
from swarmd.wire.messages import PROTOCOL_VERSION, Challenge, Hello
from swarmd.wire.proofs import dialler_proof, listener_proof, sign_hello
from swarmd.wire.protocol import Role
from swarmd.wire.secure_link import SecureLink
from swarmd.wire.transport import bind, dial, listen
from tests.conftest import Runner
from tests.wire.strangers import NEW, PRIVATE, STRANGE
from tests.wire.talk import until


@contextlib.asynccontextmanager
async def everybody_welcome(
    identity: Identity | None, serve: Callable[[Connection], object], **more: Certificate
) -> AsyncIterator[Address]:
    """A listener that takes any knock as one of the public swarm's, and its address."""
    certificate = more.get("certificate") or Certificate(identity or Identity.generate())
    made: list[Connection] = []

    def accept(connection: Connection) -> None:
        made.append(connection)
        serve(connection)

    server = await asyncio.get_running_loop().create_server(
        lambda: Connection(
            Role.LISTENER,
            link=SecureLink.accept(certificate, lambda knock: PUBLIC_SWARM_KEY),
            on_made=accept,
        ),
        "127.0.0.1",
        0,
    )
    try:
        yield Address("127.0.0.1", server.sockets[0].getsockname()[1])
    finally:
        server.close()
        for connection in made:
            connection.abort()
            await connection.close()


def test_an_impostor_answers_at_anothers_address(run_either: Runner) -> None:
    async def work() -> None:
        heard: list[Connection] = []
        async with everybody_welcome(None, heard.append) as address:
            meant = Identity.generate().peer_id
            with pytest.raises(PeerMismatch, match=meant.short):
                await dial(address, Greeting(), expected=meant)
            await until(lambda: len(heard) == 1)
            with pytest.raises(ConnectionLost):  # not even our own name did it learn
                await heard[0].receive()

    run_either(work())


def test_who_listens_must_hold_the_swarm_key_too(run_either: Runner) -> None:
    """An outsider may answer at an address that somebody was told: it cannot play a member."""

    async def work() -> None:
        identity = Identity.generate()

        async with TaskOwner("outsider") as owner:

            def serve(connection: Connection) -> None:
                asked = challenge(connection, Door(identity))  # proves the public key only
                owner.spawn(connection.send(asked), name="ask", errors="log")

            async with everybody_welcome(identity, serve) as address:
                with pytest.raises(PeerMismatch, match="key of this swarm"):
                    await dial(address, Greeting(keys=PRIVATE))
                with pytest.raises(PeerMismatch, match="key of this swarm"):
                    await dial(address, Greeting(keys=PRIVATE), expected=identity.peer_id)

    run_either(work())


def test_a_certificate_that_is_no_peers(run_either: Runner, tmp_path: Path) -> None:
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([])
    certificate = Certificate(Identity.generate())
    shown = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(7)
        .not_valid_before(_day(2020))
        .not_valid_after(_day(2040))
        .sign(key, hashes.SHA256())
    )
    secret = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    file = tmp_path / "other.pem"
    file.write_bytes(shown.public_bytes(serialization.Encoding.PEM) + secret)
    certificate.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    certificate.context.load_cert_chain(file)

    async def work() -> None:
        async with everybody_welcome(None, lambda c: None, certificate=certificate) as address:
            with pytest.raises(BadOutput, match="not Ed25519"):
                await dial(address, Greeting())

    run_either(work())


def _day(year: int) -> object:
    import datetime

    return datetime.datetime(year, 1, 1, tzinfo=datetime.UTC)


@pytest.mark.parametrize("clever", [False, True])
def test_a_man_in_the_middle_relays_the_handshake(clever: bool, run_either: Runner) -> None:
    """He shows a certificate of his own to a dialler that knows no PeerId. A clever one is an
    insider as well, and makes the proofs of the swarm key anew; the signature he cannot make."""

    async def work() -> None:
        refusals: list[SwarmdError] = []
        door = Door(Identity.generate())
        async with TaskOwner("test") as owner:

            async def victim(connection: Connection) -> None:
                asked = challenge(connection, door)
                await connection.send(asked)
                try:
                    check_hello(connection, door, asked, (await connection.receive())[0])
                except SwarmdError as error:
                    refusals.append(error)
                connection.abort()

            async def between(near: Connection) -> None:
                link = SecureLink.dial(PUBLIC_SWARM_KEY, None, now=time.time())
                _, far = await asyncio.get_running_loop().create_connection(
                    lambda: Connection(Role.DIALLER, link=link), real.host, real.port
                )
                try:
                    await far.wait_made()
                    asked = (await far.receive())[0]
                    assert isinstance(asked, Challenge)
                    assert near.link is not None
                    if clever:
                        proof = listener_proof(PUBLIC_SWARM_KEY, near.link.binding, asked.nonce)
                        asked = Challenge(asked.nonce, proof)
                    await near.send(asked)
                    hello = (await near.receive())[0]
                    assert isinstance(hello, Hello)
                    proof = dialler_proof(
                        PUBLIC_SWARM_KEY, link.binding, asked.nonce, hello.public_key
                    )
                    await far.send(
                        Hello(PROTOCOL_VERSION, "", b"", hello.public_key, proof, hello.signature)
                    )
                    with contextlib.suppress(ConnectionLost):
                        await far.receive()
                except ConnectionLost:
                    assert not clever
                finally:
                    near.abort()
                    far.abort()
                    await far.close()

            listener = await listen(
                bind(Address("127.0.0.1", 0)),
                lambda c: owner.spawn(victim(c), name="victim"),
                door,
            )
            real = Address("127.0.0.1", listener.sockets[0].getsockname()[1])
            async with everybody_welcome(
                None, lambda c: owner.spawn(between(c), name="between")
            ) as address:
                with pytest.raises(ConnectionLost if clever else PeerMismatch):
                    await dial(address, Greeting())
                await until(lambda: len(refusals) == 1)
            listener.close()
        assert type(refusals[0]) is (BadRequest if clever else ConnectionLost), refusals
        if clever:
            assert "somebody may stand between" in str(refusals[0])

    run_either(work())


@pytest.mark.parametrize("wrong", ["swarm key", "signature", "nonce", "binding", "public key"])
def test_a_hello_that_proves_too_little(wrong: str, run_async: Runner) -> None:
    """Above all: a knock that was held back and stolen gets its thief no further than TLS."""

    async def work() -> None:
        outcomes: list[object] = []
        door = Door(Identity.generate(), PRIVATE)
        identity, other = Identity.generate(), Identity.generate()
        async with TaskOwner("test") as owner:

            async def serve(connection: Connection) -> None:
                asked = challenge(connection, door)
                await connection.send(asked)
                try:
                    check_hello(connection, door, asked, (await connection.receive())[0])
                    outcomes.append(connection.peer_id)
                except BadRequest as error:
                    assert connection.peer_id is None
                    outcomes.append(type(error))
                connection.abort()

            listener = await listen(
                bind(Address("127.0.0.1", 0)), lambda c: owner.spawn(serve(c), name="s"), door
            )
            host, port = listener.sockets[0].getsockname()
            for mistake in (wrong, ""):
                link = SecureLink.dial(NEW, None, now=time.time())
                _, thief = await asyncio.get_running_loop().create_connection(
                    lambda link=link: Connection(Role.DIALLER, link=link), host, port
                )
                await thief.wait_made()
                assert thief.peer_id == door.identity.peer_id
                asked = (await thief.receive())[0]
                assert isinstance(asked, Challenge)
                key = STRANGE if mistake == "swarm key" else NEW
                nonce = bytes(32) if mistake == "nonce" else asked.nonce
                binding = bytes(32) if mistake == "binding" else link.binding
                public = (other if mistake == "public key" else identity).public_key
                signer = other if mistake == "signature" else identity
                proof = dialler_proof(key, binding, nonce, public)
                signature = sign_hello(signer, binding, nonce)
                await thief.send(Hello(PROTOCOL_VERSION, "", b"", public, proof, signature))
                with pytest.raises(ConnectionLost):
                    await thief.receive()
                await thief.close()
            listener.close()
        assert outcomes == [BadRequest, identity.peer_id]

    run_async(work())
