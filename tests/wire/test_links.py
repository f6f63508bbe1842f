"""Links: who gets in and who gets not a byte, and what travels then."""

from __future__ import annotations

import asyncio
import contextlib
import random
import secrets
import ssl
import time
from pathlib import Path

import pytest

from swarmd.errors import (
    ConnectionLost,
    NotAllowed,
    UsageError,
)
from swarmd.identity import Identity
from swarmd.peers import Address
from swarmd.swarm_key import PUBLIC_KEYS, KeyRing
from swarmd.wire.certificate import Certificate, dialler_context, peer_id_of
from swarmd.wire.greeting import Door, Greeting
from swarmd.wire.messages import Ping
from swarmd.wire.transport import bind, dial, listen
from tests.conftest import Runner
from tests.wire.ends import Greeter
from tests.wire.strangers import NEW, OLD, PRIVATE, STRANGE, first_words, reached, told
from tests.wire.talk import until


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
