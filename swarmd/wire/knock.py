"""The knock: the first 56 bytes of a link, by which a dialler shows that it holds a swarm key.

::

    nonce (16) | seconds since the epoch (8, big-endian) | tag (32)

`tag` is BLAKE2b-256 (RFC 7693) keyed with `SwarmKey.derive(b"stream")` over a label, nonce and
seconds, and the PeerId that the dialler expects, or 20 zeros if it knows none. That id does not
travel, so a knock that was overheard opens no other peer's door. A listener that does not
recognise a knock closes without a byte. Whoever cannot make one learns only that a port is open.

A knock does not prove who speaks after it: somebody on the path may hold one back and use it. The
proofs of :mod:`swarmd.wire.proofs`, within TLS, are bound to the link and close that gap.

A relay passes on links to nodes that cannot be dialled. It recognises a knock that is meant for one
of them, and the knock of a node that comes for a client that waits: the ticket in the place of the
nonce, under another label (:class:`Porter`).

Pure: time and nonces are handed in.
"""

from __future__ import annotations

import hashlib
import hmac
import struct
from collections.abc import Iterable

from swarmd.identity import PEER_ID_BYTES, PeerId
from swarmd.swarm_key import KeyRing, SwarmKey

__all__ = [
    "CLOCK_TOLERANCE",
    "KNOCK_BYTES",
    "NONCE_BYTES",
    "Doorkeeper",
    "Porter",
    "make_knock",
    "make_ticket_knock",
]

NONCE_BYTES = 16
KNOCK_BYTES = NONCE_BYTES + 8 + 32
CLOCK_TOLERANCE = 60.0
"""Seconds by which two clocks may differ; machines that ask no time server drift by so much."""
MAX_NONCES = 16_384
"""Nonces remembered, about 2 MB. Only holders of a key add one; beyond it the oldest is forgotten,
so that an insider's flood locks nobody out."""

_SECONDS = struct.Struct(">Q")
_LABEL = b"swarmd-knock-1\0"
_TICKET_LABEL = b"swarmd-ticket-1\0"
_ANYBODY = bytes(PEER_ID_BYTES)


def make_knock(key: SwarmKey, expected: PeerId | None, *, now: float, nonce: bytes) -> bytes:
    """The 56 bytes to send. `now` in seconds since the epoch; `nonce`: 16 random bytes."""
    said = nonce + _SECONDS.pack(int(now))
    return said + _tag(key.derive(b"stream"), said, expected or _ANYBODY)


class Doorkeeper:
    """Recognises knocks that were made for `peer_id` or for anybody, each of them once."""

    def __init__(self, keys: KeyRing, peer_id: PeerId, *, max_nonces: int = MAX_NONCES) -> None:
        self._keys = [(key, key.derive(b"stream")) for key in keys.accepted]
        self._peer_id = peer_id
        self._max_nonces = max_nonces
        self._seen: dict[bytes, float] = {}  # nonce to arrival, the oldest first

    def recognise(self, knock: bytes, now: float) -> SwarmKey | None:
        """The key by which a knock of 56 bytes was made, or None if the door stays shut."""
        said, tag = knock[:-32], knock[-32:]
        nonce = said[:NONCE_BYTES]
        (seconds,) = _SECONDS.unpack_from(said, NONCE_BYTES)
        for key, derived in self._keys:
            for expected in (self._peer_id, _ANYBODY):
                if hmac.compare_digest(tag, _tag(derived, said, expected)):
                    in_time = abs(now - seconds) <= CLOCK_TOLERANCE
                    return key if in_time and self._is_new(nonce, now) else None
        return None

    def _is_new(self, nonce: bytes, now: float) -> bool:
        """Whether the nonce was not used within the time in which it could be; notes it."""
        while self._seen:
            oldest, arrived = next(iter(self._seen.items()))
            if abs(now - arrived) <= 2 * CLOCK_TOLERANCE + 1 and len(self._seen) < self._max_nonces:
                break
            del self._seen[oldest]
        if nonce in self._seen:
            return False
        self._seen[nonce] = now
        return True


def make_ticket_knock(key: SwarmKey, ticket: bytes, *, now: float) -> bytes:
    """The 56 bytes by which a relayed node comes for a client; `ticket`: the 16 of its call."""
    said = ticket + _SECONDS.pack(int(now))
    return said + _tag(key.derive(b"stream"), said, _ANYBODY, _TICKET_LABEL)


class Porter:
    """Recognises knocks that are not for this node itself. What they lead to is encrypted end to
    end, and the node that is meant checks a client's knock again."""

    def __init__(self, keys: KeyRing) -> None:
        self._keys = [key.derive(b"stream") for key in keys.accepted]

    def meant(self, knock: bytes, relayed: Iterable[PeerId], now: float) -> PeerId | None:
        """Which of the `relayed` nodes a knock is for; None if it is for none of them."""
        said, tag = knock[:-32], knock[-32:]
        if not _in_time(said, now):
            return None
        return next(
            (
                peer_id
                for peer_id in relayed
                for derived in self._keys
                if hmac.compare_digest(tag, _tag(derived, said, peer_id))
            ),
            None,
        )

    def ticket(self, knock: bytes, now: float) -> bytes | None:
        """The ticket of a node that comes for a client; None if the knock is no such one."""
        said, tag = knock[:-32], knock[-32:]
        known = any(
            hmac.compare_digest(tag, _tag(derived, said, _ANYBODY, _TICKET_LABEL))
            for derived in self._keys
        )
        return said[:NONCE_BYTES] if known and _in_time(said, now) else None


def _in_time(said: bytes, now: float) -> bool:
    (seconds,) = _SECONDS.unpack_from(said, NONCE_BYTES)
    return abs(now - int(seconds)) <= CLOCK_TOLERANCE


def _tag(derived: bytes, said: bytes, expected: bytes, label: bytes = _LABEL) -> bytes:
    return hashlib.blake2b(label + said + expected, key=derived, digest_size=32).digest()
