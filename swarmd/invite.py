"""An invite: one line of text by which another machine joins a swarm. Pure.

::

    swarmd-invite-1-<base32, lower case, without padding, of body + checksum>
    body       msgpack [swarm key (32 bytes, or empty), [[peer id (20 bytes), host, port], ...]]
    checksum   the first 4 bytes of SHA-256 of the body; it finds typing errors, nothing else

Of one invite there is exactly one text: whatever encodes to another one is refused. An invite of
a private swarm holds its key, so whoever reads it is let in.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
from dataclasses import dataclass, field

import msgpack

from swarmd.errors import UsageError
from swarmd.identity import PEER_ID_BYTES, PeerId
from swarmd.peers import Address
from swarmd.swarm_key import SwarmKey

__all__ = ["MAX_CONTACTS", "PREFIX", "Contact", "Invite"]

PREFIX = "swarmd-invite-1-"
MAX_CONTACTS = 4
"""Nodes that an invite names: one that answers is enough, and the text stays short."""
MAX_TEXT = 2400
"""Characters; four of the longest host names need fewer. A longer text is not decoded."""
MAX_HOST = 253
"""Characters of a host name (RFC 1035, section 2.3.4)."""
CHECKSUM_BYTES = 4
_HOST = re.compile(r"[0-9A-Za-z:][0-9A-Za-z.:_-]*")


@dataclass(frozen=True, slots=True)
class Contact:
    """A node and where it is dialled."""

    peer_id: PeerId
    address: Address


@dataclass(frozen=True, slots=True)
class Invite:
    """1 to 4 nodes of a swarm, and its key unless it is the public one. Raises UsageError."""

    contacts: tuple[Contact, ...]
    key: SwarmKey | None = field(default=None)

    def __post_init__(self) -> None:
        if not 1 <= len(self.contacts) <= MAX_CONTACTS:
            raise UsageError(f"an invite names 1 to {MAX_CONTACTS} nodes")
        for contact in self.contacts:
            host, port = contact.address.host, contact.address.port
            if len(host) > MAX_HOST or not _HOST.fullmatch(host):
                raise UsageError("an invite takes IP addresses and host names only")
            if type(port) is not int or not 1 <= port <= 65535:
                raise UsageError(f"an invite's port must lie in 1..65535, not {port}")

    @classmethod
    def parse(cls, text: str) -> Invite:
        """The invite of its text. Raises UsageError, which does not repeat the text: it may hold
        a key."""
        text = text.strip()
        encoded = text.removeprefix(PREFIX)
        try:
            if encoded == text or len(text) > MAX_TEXT:
                raise ValueError
            raw = base64.b32decode(encoded.upper() + "=" * (-len(encoded) % 8))
            body, checksum = raw[:-CHECKSUM_BYTES], raw[-CHECKSUM_BYTES:]
            if hashlib.sha256(body).digest()[:CHECKSUM_BYTES] != checksum:
                raise ValueError
            invite = _from_body(body)
            if invite.text != text:
                raise ValueError
        except (ValueError, binascii.Error, UsageError) as error:
            raise UsageError(
                f"this is not a whole invite; one starts with {PREFIX} and is printed by: "
                "swarmd invite"
            ) from error
        return invite

    @property
    def text(self) -> str:
        """What `parse` reads."""
        secret = b"" if self.key is None else self.key.secret
        nodes = [[bytes(c.peer_id), c.address.host, c.address.port] for c in self.contacts]
        body = msgpack.packb([secret, nodes])
        raw = body + hashlib.sha256(body).digest()[:CHECKSUM_BYTES]
        return PREFIX + base64.b32encode(raw).decode().rstrip("=").lower()

    def __repr__(self) -> str:
        return f"Invite({', '.join(str(c.address) for c in self.contacts)}; {self.key!r})"


def _from_body(body: bytes) -> Invite:
    """Raises ValueError, UsageError."""
    try:
        found = msgpack.unpackb(body, raw=False, max_array_len=MAX_CONTACTS, max_ext_len=0,
                                max_map_len=0)  # fmt: skip
        secret, nodes = found
        contacts = []
        for peer_id, host, port in nodes:
            if type(peer_id) is not bytes or len(peer_id) != PEER_ID_BYTES:
                raise ValueError("no peer id")
            if type(host) is not str or type(port) is not int:
                raise ValueError("no address")
            contacts.append(Contact(PeerId(peer_id), Address(host, port)))
        if type(secret) is not bytes:
            raise ValueError("no key")
    except ValueError:
        raise
    except Exception as error:  # msgpack's own, and what unpacking of a wrong form raises
        raise ValueError("not the form of an invite") from error
    return Invite(tuple(contacts), SwarmKey(secret) if secret else None)
