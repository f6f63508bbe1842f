"""Links: who gets in and who gets not a byte, impostors, men in the middle, stolen knocks."""

from __future__ import annotations

import asyncio
import contextlib
import random
import secrets
import socket
import ssl
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from swarmd.errors import (
    BadOutput,
    BadRequest,
    ConnectionLost,
    NotAllowed,
    PeerMismatch,
    SwarmdError,
    UsageError,
)
from swarmd.identity import Identity, PeerId
from swarmd.peers import Address
from swarmd.swarm_key import PUBLIC_KEYS, PUBLIC_SWARM_KEY, KeyRing, SwarmKey
from swarmd.tasks import TaskOwner
from swarmd.wire import connection as connection_module
from swarmd.wire import transport as transport_module
from swarmd.wire.certificate import Certificate, dialler_context, peer_id_of
from swarmd.wire.connection import Connection
from swarmd.wire.greeting import Door, Greeted, Greeting, challenge, check_hello
from swarmd.wire.messages import PROTOCOL_VERSION, Challenge, Hello, Ping
from swarmd.wire.proofs import dialler_proof, listener_proof, sign_hello
from swarmd.wire.protocol import Role
from swarmd.wire.secure_link import SecureLink
from swarmd.wire.transport import bind, dial, listen
from tests.conftest import Runner
from tests.wire.ends import Greeter
from tests.wire.talk import until

OLD, NEW, STRANGE = SwarmKey(b"o" * 32), SwarmKey(b"n" * 32), SwarmKey(b"s" * 32)
PRIVATE = KeyRing(NEW)


async def reached(greeter: Greeter, keys: KeyRing, *, named: bool = True) -> Greeted:
    expected = greeter.peer_id if named else None
    greeted = await dial(greeter.address, Greeting(keys=keys), expected=expected)
    await greeted.connection.close()
    return greeted


async def told(address: Address, data: bytes, *, then_wait: bool = False) -> bytes:
    """All that a listener says to a stranger who says `data`."""
    loop = asyncio.get_running_loop()
    answer = b""
    with socket.socket() as raw:
        raw.setblocking(False)
        await loop.sock_connect(raw, (address.host, address.port))
        with contextlib.suppress(OSError):  # it may reset at any time
            await loop.sock_sendall(raw, data)
            if not then_wait:
                raw.shutdown(socket.SHUT_WR)
            async with asyncio.timeout(20):
                while piece := await loop.sock_recv(raw, 4096):
                    answer += piece
    return answer


def first_words(keys: KeyRing, expected: PeerId | None, *, now: float | None = None) -> bytes:
    """Knock and ClientHello of a dialler."""
    when = time.time() if now is None else now
    return SecureLink.dial(keys.current, expected, now=when).outgoing()


@pytest.mark.parametrize("named", [True, False])
def test_the_right_key_the_wrong_key_and_two_keys_in_rotation(
    named: bool, run_either: Runner
) -> None:
    async def work() -> None:
        async with Greeter(KeyRing(NEW, OLD)) as changing, Greeter(KeyRing(OLD)) as late:
            for keys in (KeyRing(NEW), KeyRing(OLD), KeyRing(NEW, OLD), KeyRing(OLD, NEW)):
                assert (await reached(changing, keys, named=named)).peer_id == changing.peer_id
            await reached(late, KeyRing(OLD, NEW), named=named)
            for greeter, keys in (
                (changing, KeyRing(STRANGE)),
                (changing, KeyRing(STRANGE, NEW)),
                (changing, PUBLIC_KEYS),
                (late, KeyRing(NEW, OLD)),
            ):
                with pytest.raises(ConnectionLost, match="of another swarm"):
                    await reached(greeter, keys, named=named)
            assert len(changing.connections) == 4, "who does not get in is never handed over"
            assert changing.listener.handshakes == 0

    run_either(work())


def test_an_outsider_gets_not_a_byte(run_either: Runner) -> None:
    async def work() -> None:
        rng = random.Random(5)
        async with Greeter(PRIVATE) as greeter:
            good = first_words(PRIVATE, greeter.peer_id)
            outsiders = [
                b"",
                *(good[:keep] for keep in (1, 15, 16, 24, 55)),
                b"GET / HTTP/1.1\r\nHost: swarmd\r\n\r\n" * 4,
                b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(500),
                *(rng.randbytes(size) for size in (56, 57, 4096, 100_000)),
                bytes(56) + good[56:],
                first_words(KeyRing(STRANGE), greeter.peer_id),
                first_words(PUBLIC_KEYS, greeter.peer_id),
                first_words(PRIVATE, Identity.generate().peer_id),
                first_words(PRIVATE, greeter.peer_id, now=time.time() - 100),
                first_words(PRIVATE, greeter.peer_id, now=time.time() + 100),
            ]
            for said in outsiders:
                assert await told(greeter.address, said) == b""
                if len(said) >= 56:  # closed at once, without waiting for more
                    assert await told(greeter.address, said, then_wait=True) == b""
            # the knock itself was good: it still opens, and then never again
            assert len(await told(greeter.address, good)) > 500
            assert await told(greeter.address, good) == b"", "a replay"
            fresh = good[:56] + first_words(PRIVATE, greeter.peer_id)[56:]
            assert await told(greeter.address, fresh, then_wait=True) == b"", "its knock alone"
            assert greeter.connections == []
            await reached(greeter, PRIVATE)

    run_either(work())


def test_garbage_after_a_good_knock_harms_nobody(run_either: Runner) -> None:
    async def work() -> None:
        rng = random.Random(6)
        old = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        old.check_hostname, old.verify_mode = False, ssl.CERT_NONE
        old.maximum_version = ssl.TLSVersion.TLSv1_2
        incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        with contextlib.suppress(ssl.SSLWantReadError):
            old.wrap_bio(incoming, outgoing).do_handshake()
        async with Greeter(PRIVATE) as greeter:
            hello = first_words(PRIVATE, greeter.peer_id)[56:]
            mutated = bytearray(hello)
            for _ in range(20):
                mutated[rng.randrange(len(mutated))] ^= 1 << rng.randrange(8)
            for after in (b"", b"x", rng.randbytes(5000), bytes(5000), hello[:-1], bytes(mutated),
                          hello + rng.randbytes(100_000), outgoing.read()):  # fmt: skip
                knock = first_words(PRIVATE, greeter.peer_id)[:56]
                await told(greeter.address, knock + after)
            assert greeter.connections == []
            await until(lambda: greeter.listener.handshakes == 0)
            await reached(greeter, PRIVATE)

    run_either(work())


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


def test_a_listener_may_serve_a_list_only(run_either: Runner) -> None:
    async def work() -> None:
        friend, stranger = Identity.generate(), Identity.generate()
        async with Greeter() as greeter:
            greeter.door = Door(greeter.door.identity, PUBLIC_KEYS, frozenset([friend.peer_id]))
            greeted = await dial(greeter.address, Greeting(identity=friend))
            assert greeter.connections[0].peer_id == friend.peer_id
            await greeted.connection.close()
            with pytest.raises(NotAllowed, match=f"--allow {stranger.peer_id}"):
                await dial(greeter.address, Greeting(identity=stranger))
            assert greeter.connections[1].peer_id is None
        assert [type(error) for error in greeter.refused] == [NotAllowed]

    run_either(work())


def test_who_is_slow_to_shake_hands_is_cut(
    run_either: Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection_module, "HANDSHAKE_SECONDS", 0.3)

    async def work() -> None:
        loop = asyncio.get_running_loop()
        async with Greeter(PRIVATE) as greeter:
            words = first_words(PRIVATE, greeter.peer_id)
            for at_once in (0, 55, 56, 100):  # silent, or a byte at a time in either stage
                began = loop.time()
                with socket.socket() as raw:
                    raw.setblocking(False)
                    await loop.sock_connect(raw, (greeter.address.host, greeter.address.port))
                    await loop.sock_sendall(raw, words[:at_once])
                    with contextlib.suppress(OSError):
                        for byte in words[at_once : at_once + 200] if at_once else b"":
                            await loop.sock_sendall(raw, bytes([byte]))
                            await asyncio.sleep(0.05)
                    with contextlib.suppress(OSError):
                        async with asyncio.timeout(20):
                            assert await loop.sock_recv(raw, 1) == b""
                assert loop.time() - began < 5.0
                words = first_words(PRIVATE, greeter.peer_id)
            await until(lambda: greeter.listener.handshakes == 0)
            assert greeter.connections == []

    run_either(work())


def test_silent_strangers_lock_nobody_out(
    run_either: Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transport_module, "MAX_HANDSHAKES", 3)

    async def work() -> None:
        async with Greeter(PRIVATE) as greeter:
            with contextlib.ExitStack() as stack:
                silent = []
                for number in range(8):
                    silent.append(stack.enter_context(socket.create_connection(
                        (greeter.address.host, greeter.address.port))))  # fmt: skip
                    await until(lambda n=number: greeter.listener.handshakes == min(n + 1, 3))
                for raw in silent[:5]:
                    raw.settimeout(20)
                    with contextlib.suppress(ConnectionResetError):
                        assert await asyncio.to_thread(raw.recv, 1) == b""
                await reached(greeter, PRIVATE)
                assert greeter.listener.handshakes <= 3

    run_either(work())


def test_closing_a_listener_ends_what_is_half_made(run_either: Runner) -> None:
    async def work() -> None:
        async with Greeter(PRIVATE) as greeter:
            address = (greeter.address.host, greeter.address.port)
            with socket.create_connection(address, timeout=20) as raw:
                await until(lambda: greeter.listener.handshakes == 1)
                greeter.listener.close()
                await until(lambda: greeter.listener.handshakes == 0)
                with contextlib.suppress(ConnectionResetError):
                    assert raw.recv(1) == b""

    run_either(work())


@pytest.mark.parametrize("position", [0, 3, 8, 25])
def test_a_byte_that_is_changed_on_the_way_ends_the_link(position: int, run_either: Runner) -> None:
    async def work() -> None:
        async with Greeter() as greeter:
            greeted = await dial(greeter.address, Greeting(), expected=greeter.peer_id)
            ours, theirs = greeted.connection, greeter.connections[0]
            assert ours.link is not None
            assert ours._transport is not None
            sealed = bytearray(b"".join(ours.link.seal(b"a frame that nobody else can make")))
            sealed[position] ^= 1
            ours._transport.write(bytes(sealed))
            with pytest.raises(ConnectionLost):
                async with asyncio.timeout(10):
                    if position == 3:  # a longer record is waited for; its end comes
                        ours._transport.write(bytes(1 << 15))
                    await theirs.receive()
            ours.abort()

    run_either(work())


def test_a_flood_of_key_changes_by_who_does_not_read_is_bounded(run_async: Runner) -> None:
    """What TLS says of its own accord waits in a buffer of ours: only while that is read."""

    async def work() -> None:
        async with Greeter() as greeter:
            greeted = await dial(greeter.address, Greeting())
            theirs = greeter.connections[0]
            assert theirs.link is not None
            theirs.pause_writing()
            theirs.link._outgoing.write(b"new keys")
            await greeted.connection.send(Ping(1))
            await until(lambda: not theirs.is_usable)
            with pytest.raises(ConnectionLost):
                await greeted.connection.receive()

    run_async(work())


def test_plaintext_never_leaves_the_machine(run_async: Runner) -> None:
    async def work() -> None:
        with pytest.raises(UsageError, match="encrypted"):
            await dial(Address("192.0.2.1", 9), Greeting(plaintext=True))
        with bind(Address("0.0.0.0", 0)) as held:
            with pytest.raises(UsageError, match="encrypted"):
                await listen(held, lambda c: None, Door(Identity.generate()), plaintext=True)

    run_async(work())


def test_nothing_readable_travels(run_async: Runner) -> None:
    async def work() -> None:
        async with Greeter() as greeter:
            greeted = await dial(greeter.address, Greeting())
            assert greeted.connection.link is not None
            secret = secrets.token_bytes(64)
            for size in (1, 100, 20_000):
                sealed = b"".join(greeted.connection.link.seal(secret * size))
                assert secret not in sealed
                assert len(sealed) >= len(secret) * size
            assert greeted.connection.link._tls.version() == "TLSv1.3"
            greeted.connection.abort()

    run_async(work())


def test_a_key_leaves_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    seen: list[tuple[int, bytes]] = []
    original = ssl.SSLContext.load_cert_chain

    def load(self: ssl.SSLContext, file: str, **kwargs: object) -> None:
        path = Path(file)
        seen.append((path.stat().st_mode & 0o777, path.read_bytes()))
        original(self, file, **kwargs)

    monkeypatch.setattr(ssl.SSLContext, "load_cert_chain", load)
    identity = Identity.generate()
    certificate = Certificate(identity)
    assert peer_id_of(certificate.der) == identity.peer_id
    ((mode, data),) = seen
    assert mode == 0o600
    assert b"ENCRYPTED PRIVATE KEY" in data
    assert list(tmp_path.iterdir()) == []
    assert dialler_context() is dialler_context()
