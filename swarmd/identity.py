"""Who a node is: an Ed25519 key pair, and the PeerId that is derived from its public half.

A PeerId is `sha256("swarmd-id" + public key)[:20]`, 160 bits, so it is at once the node's id in
the Kademlia DHT. An address is never an identity: peers move, and ports are reused.
"""

from __future__ import annotations

import hashlib

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

__all__ = ["PEER_ID_BYTES", "PUBLIC_KEY_BYTES", "Identity", "PeerId", "verify"]

PEER_ID_BYTES = 20
PUBLIC_KEY_BYTES = 32


class PeerId(bytes):
    """20 bytes; prints as 40 hex digits, and as 8 in lines for people (`short`)."""

    __slots__ = ()

    def __new__(cls, value: bytes) -> PeerId:
        if len(value) != PEER_ID_BYTES:
            raise ValueError(f"a PeerId has {PEER_ID_BYTES} bytes, not {len(value)}")
        return super().__new__(cls, value)

    @classmethod
    def of_public_key(cls, public_key: bytes) -> PeerId:
        """The id of the node that holds this 32-byte Ed25519 public key."""
        return cls(hashlib.sha256(b"swarmd-id" + public_key).digest()[:PEER_ID_BYTES])

    @property
    def short(self) -> str:
        """The first 8 hex digits."""
        return self.hex()[:8]

    def __str__(self) -> str:
        return self.hex()

    def __repr__(self) -> str:
        return f"PeerId({self.short})"


class Identity:
    """An Ed25519 key pair (RFC 8032). `sign` never leaves this object's private half anywhere."""

    def __init__(self, private_key: bytes) -> None:
        """`private_key`: the 32 raw bytes. Raises ValueError for any other length."""
        self._key = Ed25519PrivateKey.from_private_bytes(private_key)
        self.public_key = self._key.public_key().public_bytes_raw()
        self.peer_id = PeerId.of_public_key(self.public_key)

    @classmethod
    def generate(cls) -> Identity:
        """A new random identity."""
        return cls(Ed25519PrivateKey.generate().private_bytes_raw())

    def private_bytes(self) -> bytes:
        """The 32 bytes to keep in the state folder, readable by the owner alone."""
        return self._key.private_bytes_raw()

    def sign(self, message: bytes) -> bytes:
        """A 64-byte signature of `message`."""
        return self._key.sign(message)

    def __repr__(self) -> str:
        return f"Identity({self.peer_id.short})"


def verify(public_key: bytes, signature: bytes, message: bytes) -> bool:
    """Whether `signature` over `message` was made by the holder of `public_key`. Never raises."""
    try:
        Ed25519PublicKey.from_public_bytes(public_key).verify(signature, message)
    except (InvalidSignature, ValueError):
        return False
    return True
