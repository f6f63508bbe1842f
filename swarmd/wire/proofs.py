"""What both ends prove within TLS, bound to this one link. Pure.

The listener's certificate proves its PeerId. What is left is proven by `challenge` and `hello`:

* the listener, that it holds the swarm key of the knock (`challenge.proof`);
* the dialler, that it holds that key (`hello.proof`) and its own Ed25519 key (`hello.signature`).

All cover the listener's nonce and the link's *binding*, a hash over certificate and knock. Who
stands in the middle with a certificate of its own has another binding at either side, so nothing
that it relays is true there. (The exporter of RFC 8446 would do, and Python's `ssl` has none.)
"""

from __future__ import annotations

import hashlib
import hmac

from swarmd.identity import Identity, PeerId, verify
from swarmd.swarm_key import SwarmKey

__all__ = [
    "BINDING_BYTES",
    "CHALLENGE_BYTES",
    "PLAINTEXT_BINDING",
    "PROOF_BYTES",
    "SIGNATURE_BYTES",
    "binding_of",
    "dialler_proof",
    "listener_proof",
    "proves_dialler",
    "proves_listener",
    "sign_hello",
]

BINDING_BYTES = 32
CHALLENGE_BYTES = 32
PROOF_BYTES = 32
SIGNATURE_BYTES = 64
PLAINTEXT_BINDING = bytes(BINDING_BYTES)
"""Of a link without TLS, which exists on loopback only, for measurements and tests."""


def binding_of(certificate: bytes, knock: bytes) -> bytes:
    """32 bytes that name a link: of the listener's certificate (DER) and the dialler's knock."""
    hashed = hashlib.blake2b(certificate, digest_size=32).digest()
    return hashlib.blake2b(b"swarmd-link-1\0" + hashed + knock, digest_size=32).digest()


def listener_proof(key: SwarmKey, binding: bytes, nonce: bytes) -> bytes:
    """`challenge.proof`."""
    return _keyed(key, b"swarmd-challenge-1\0" + binding + nonce)


def dialler_proof(key: SwarmKey, binding: bytes, nonce: bytes, public_key: bytes) -> bytes:
    """`hello.proof`."""
    return _keyed(key, b"swarmd-hello-key-1\0" + binding + nonce + public_key)


def sign_hello(identity: Identity, binding: bytes, nonce: bytes) -> bytes:
    """`hello.signature`, 64 bytes."""
    return identity.sign(b"swarmd-hello-1\0" + binding + nonce)


def proves_listener(key: SwarmKey, binding: bytes, nonce: bytes, proof: bytes) -> bool:
    """Whether a listener that said this holds the swarm key."""
    return hmac.compare_digest(proof, listener_proof(key, binding, nonce))


def proves_dialler(
    keys: tuple[SwarmKey, ...],
    binding: bytes,
    nonce: bytes,
    *,
    public_key: bytes,
    signature: bytes,
    proof: bytes,
) -> PeerId | None:
    """The PeerId of a dialler that said this, or None if it proves nothing."""
    proofs = [dialler_proof(key, binding, nonce, public_key) for key in keys]
    if not any([hmac.compare_digest(proof, right) for right in proofs]):
        return None
    if not verify(public_key, signature, b"swarmd-hello-1\0" + binding + nonce):
        return None
    return PeerId.of_public_key(public_key)


def _keyed(key: SwarmKey, said: bytes) -> bytes:
    return hashlib.blake2b(said, key=key.derive(b"stream"), digest_size=32).digest()
