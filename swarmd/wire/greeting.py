"""Both halves of a greeting, on a link that is made already: who proves what to whom.

::

    listener                                  dialler
    challenge: nonce, proof of the swarm key  ->
                                              <- hello: key, proofs, the model that is meant
    welcome: what is served                   ->
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass, field

from swarmd import __version__
from swarmd.blocks import Span
from swarmd.errors import (
    BadRequest,
    ModelMismatch,
    NotAllowed,
    PeerMismatch,
    VersionMismatch,
)
from swarmd.identity import Identity, PeerId
from swarmd.peers import Address, Arithmetic, ModelId
from swarmd.swarm_key import PUBLIC_KEYS, KeyRing
from swarmd.wire.connection import Connection
from swarmd.wire.messages import (
    PROTOCOL_VERSION,
    Challenge,
    ErrorMessage,
    Hello,
    Message,
    Welcome,
)
from swarmd.wire.proofs import (
    CHALLENGE_BYTES,
    PLAINTEXT_BINDING,
    dialler_proof,
    listener_proof,
    proves_dialler,
    proves_listener,
    sign_hello,
)

__all__ = ["AGENT", "Door", "Greeted", "Greeting", "challenge", "check_hello", "greet"]

AGENT = f"swarmd/{__version__}"


@dataclass(frozen=True, slots=True)
class Greeting:
    """What a dialler says of itself. A client that serves nothing makes an identity for each run.

    `plaintext` is for measurements and tests: refused unless both ends are on loopback.
    """

    model_id: ModelId | None = None
    identity: Identity = field(default_factory=Identity.generate)
    keys: KeyRing = PUBLIC_KEYS
    plaintext: bool = False


@dataclass(frozen=True, slots=True)
class Door:
    """What a listener proves of itself, and whom it lets in: all holders of a key, or of those
    only the PeerIds of `allow`, and the node itself, which may be its own client."""

    identity: Identity
    keys: KeyRing = PUBLIC_KEYS
    allow: frozenset[PeerId] | None = None


@dataclass(frozen=True, slots=True)
class Greeted:
    """A connection that is ready for a session, and what its peer says of itself."""

    connection: Connection
    peer_id: PeerId
    span: Span
    arithmetic: Arithmetic
    max_payload: int


def challenge(connection: Connection, door: Door) -> Challenge:
    """A listener's first message."""
    key = door.keys.current if connection.link is None else connection.link.key
    assert key is not None
    nonce = secrets.token_bytes(CHALLENGE_BYTES)
    return Challenge(nonce, listener_proof(key, _binding(connection), nonce))


def check_hello(connection: Connection, door: Door, asked: Challenge, hello: Message) -> Hello:
    """The dialler's hello; its PeerId, proven, is then `connection.peer_id`.

    Raises BadRequest, VersionMismatch, NotAllowed.
    """
    if not isinstance(hello, Hello):
        raise BadRequest("a connection starts with hello")
    if hello.version != PROTOCOL_VERSION:
        raise VersionMismatch(f"this node speaks version {PROTOCOL_VERSION}")
    key = None if connection.link is None else connection.link.key
    peer_id = proves_dialler(
        door.keys.accepted if key is None else (key,),
        _binding(connection),
        asked.nonce,
        public_key=hello.public_key,
        signature=hello.signature,
        proof=hello.proof,
    )
    if peer_id is None:
        raise BadRequest("hello does not prove its keys on this link: somebody may stand between")
    if door.allow is not None and peer_id not in door.allow | {door.identity.peer_id}:
        raise NotAllowed(
            f"this node serves only the peers on its list; ask its owner to add --allow {peer_id}"
        )
    connection.peer_id = peer_id
    return hello


async def greet(
    connection: Connection, greeting: Greeting, address: Address, expected: PeerId | None
) -> Greeted:
    """Check who listens, answer its challenge, and learn what it serves."""
    await connection.wait_made()
    if connection.peer_id is not None:
        _check_peer(address, connection.peer_id, expected)
    asked = await _receive(connection, Challenge, address)
    assert isinstance(asked, Challenge)
    key, binding = greeting.keys.current, _binding(connection)
    if not proves_listener(key, binding, asked.nonce, asked.proof):
        raise PeerMismatch(
            f"{address}: who answers does not hold the key of this swarm", peer=expected
        )
    identity = greeting.identity
    await connection.send(
        Hello(
            PROTOCOL_VERSION,
            AGENT,
            greeting.model_id or b"",
            identity.public_key,
            dialler_proof(key, binding, asked.nonce, identity.public_key),
            sign_hello(identity, binding, asked.nonce),
        )
    )
    welcome = await _receive(connection, Welcome, address)
    assert isinstance(welcome, Welcome)
    if welcome.version != PROTOCOL_VERSION:
        raise VersionMismatch(f"{address} speaks version {welcome.version}, not {PROTOCOL_VERSION}")
    peer_id = PeerId(welcome.peer_id)
    _check_peer(address, peer_id, connection.peer_id or expected)
    if greeting.model_id is not None and welcome.model_id != greeting.model_id:
        raise ModelMismatch(f"{address} serves another model")
    connection.peer_id = peer_id
    span = Span(welcome.start, welcome.end)
    arithmetic = Arithmetic(welcome.dtype, welcome.quantization)
    return Greeted(connection, peer_id, span, arithmetic, welcome.max_payload)


async def _receive(connection: Connection, kind: type[Message], address: Address) -> Message:
    message, _ = await connection.receive()
    if isinstance(message, ErrorMessage):
        raise message.to_error()
    if not isinstance(message, kind):  # the protocol lets nothing else through
        raise BadRequest(f"{address}: {message.TYPE} instead of a {kind.TYPE}")
    return message


def _check_peer(address: Address, found: PeerId, expected: PeerId | None) -> None:
    if expected is not None and found != expected:
        raise PeerMismatch(
            f"{address}: peer {found.short} answers where {expected.short} was announced",
            peer=expected,
        )


def _binding(connection: Connection) -> bytes:
    return PLAINTEXT_BINDING if connection.link is None else connection.link.binding
