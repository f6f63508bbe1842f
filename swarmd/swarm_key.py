"""The secret of a private swarm, and the ring of those that a node accepts while keys change.

Everybody who holds a swarm's key is an insider: the key keeps outsiders from the DHT and from
streams, it does not say who somebody is (:mod:`swarmd.identity` does). The public swarm has a key
as well, which everybody knows: one code path serves both.

The secret itself never travels and never keys anything: each use derives a key of its own by
keyed BLAKE2b (RFC 7693) over the name of the use.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import secrets
from dataclasses import dataclass

from swarmd.errors import UsageError

__all__ = ["PUBLIC_KEYS", "PUBLIC_SWARM_KEY", "SECRET_BYTES", "KeyRing", "SwarmKey"]

SECRET_BYTES = 32
_PREFIX = "swarmd-key-1-"


@dataclass(frozen=True, slots=True)
class SwarmKey:
    """32 secret bytes. Prints as the id of its swarm, never as itself; `text` is for files."""

    secret: bytes

    def __post_init__(self) -> None:
        if len(self.secret) != SECRET_BYTES:
            raise UsageError(f"a swarm key has {SECRET_BYTES} bytes, not {len(self.secret)}")

    @classmethod
    def generate(cls) -> SwarmKey:
        """A new random key."""
        return cls(secrets.token_bytes(SECRET_BYTES))

    @classmethod
    def parse(cls, text: str) -> SwarmKey:
        """The key of its text. Raises UsageError, which does not repeat the text."""
        text = text.strip()
        encoded = text.removeprefix(_PREFIX)
        try:
            if encoded == text:
                raise ValueError
            return cls(base64.b32decode(encoded.upper() + "=" * (-len(encoded) % 8)))
        except (ValueError, binascii.Error, UsageError) as error:
            raise UsageError(
                f"this is not a swarm key; one looks like {_PREFIX}… and is made by: swarmd key new"
            ) from error

    @property
    def text(self) -> str:
        """What a key file holds: a prefix and 52 lower-case letters and digits (base32)."""
        return _PREFIX + base64.b32encode(self.secret).decode().rstrip("=").lower()

    @property
    def swarm_id(self) -> bytes:
        """16 bytes that name the swarm and may be known to everybody."""
        return hashlib.sha256(b"swarmd-id" + self.secret).digest()[:16]

    def derive(self, use: bytes) -> bytes:
        """A 32-byte key for one use, such as `b"datagram"`."""
        return hashlib.blake2b(use, key=self.secret, digest_size=32).digest()

    def __repr__(self) -> str:
        return f"SwarmKey(of swarm {self.swarm_id.hex()[:8]})"


PUBLIC_SWARM_KEY = SwarmKey(hashlib.sha256(b"swarmd public swarm").digest())
"""The key of the public swarm. Everybody knows it: it keeps strays out, not enemies."""


@dataclass(frozen=True, slots=True)
class KeyRing:
    """The key that a node uses, and a second one that it still accepts while keys change."""

    current: SwarmKey
    previous: SwarmKey | None = None

    @property
    def accepted(self) -> tuple[SwarmKey, ...]:
        """All keys by which others are let in, the one in use first."""
        return (self.current,) if self.previous is None else (self.current, self.previous)

    @property
    def is_public(self) -> bool:
        """Whether the swarm is the public one."""
        return self.current == PUBLIC_SWARM_KEY

    @classmethod
    def parse(cls, text: str) -> KeyRing:
        """The ring of a key file: one key a line, at most two, the one to use first; lines that
        start with `#` and empty ones are skipped. Raises UsageError."""
        lines = [line.strip() for line in text.splitlines()]
        keys = [SwarmKey.parse(line) for line in lines if line and not line.startswith("#")]
        if not 1 <= len(keys) <= 2 or len(set(keys)) != len(keys):
            raise UsageError(
                f"a swarm key file has one key, or two different ones while keys change; this "
                f"one has {len(keys)}"
            )
        return cls(*keys)

    @property
    def text(self) -> str:
        """What `parse` reads."""
        return "".join(f"{key.text}\n" for key in self.accepted)


PUBLIC_KEYS = KeyRing(PUBLIC_SWARM_KEY)
"""The ring of a node of the public swarm."""
