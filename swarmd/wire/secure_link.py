"""One end of an encrypted link, without I/O: bytes of the network in, bytes of the peer out.

==========  =========================================  ==============  ======================
state       a dialler                                  a listener      next
==========  =========================================  ==============  ======================
KNOCKING    (says its knock at once)                   reads 56 bytes  SHAKING, or broken
SHAKING     TLS 1.3 handshake                          the same        OPEN, or broken
OPEN        `seal` and `read_into` carry the stream    the same        broken
==========  =========================================  ==============  ======================

TLS runs in memory (`ssl.MemoryBIO`) and not in the event loop, because a loop's `start_tls` loses
what came in the same segment as the knock, and differs between asyncio and uvloop (uvloop #707,
cpython #142352). So the connection is one protocol from its first byte to its last.
"""

from __future__ import annotations

import enum
import secrets
import ssl
from collections.abc import Callable

from swarmd.identity import PeerId
from swarmd.swarm_key import SwarmKey
from swarmd.wire.certificate import Certificate, dialler_context, peer_id_of
from swarmd.wire.knock import KNOCK_BYTES, NONCE_BYTES, make_knock
from swarmd.wire.proofs import binding_of
from swarmd.wire.tensors import Buffer

__all__ = ["Detour", "LinkBroken", "LinkState", "SecureLink"]

READ_BYTES = 1 << 16
"""Read from the network at a time: four TLS records."""
HANDSHAKE_READ_BYTES = 4 << 10
"""The same of a stranger, so that many of them cost little."""
SEAL_BYTES = 1 << 18
"""Encrypted at a time."""
MAX_HANDSHAKE_BYTES = 64 << 10
"""What a peer may send before the link is open; an honest one sends about 1 kB."""


class LinkBroken(Exception):
    """The peer did not knock, does not speak TLS 1.3, or its bytes were changed on the way."""


class Detour(Exception):
    """The knock is for somebody whom this node relays: `to` says for whom, `first` is all that
    came so far. The link has no further part in it."""

    def __init__(self, to: object, first: bytes) -> None:
        super().__init__("a knock for somebody else")
        self.to = to
        self.first = first


class LinkState(enum.Enum):
    KNOCKING = "knocking"
    SHAKING = "shaking"
    OPEN = "open"


class SecureLink:
    """Made by `dial` or `accept`. Every method but `get_buffer` may raise LinkBroken; then
    `outgoing` may hold a last TLS alert, and nothing more can be done."""

    def __init__(self) -> None:
        self.state = LinkState.KNOCKING
        self.heard = False
        """Whether any byte came."""
        self.key: SwarmKey | None = None
        """The swarm key of the knock."""
        self.peer_id: PeerId | None = None
        """Of a dialler: who listens, proven; None until the link is open."""
        self.binding = b""
        self._knock = b""
        self._scratch = bytearray(HANDSHAKE_READ_BYTES)
        self._incoming = ssl.MemoryBIO()
        self._outgoing = ssl.MemoryBIO()
        self._tls: ssl.SSLObject
        self._certificate: Certificate | None = None
        self._recognise: Callable[[bytes], SwarmKey | None]
        self._relays: Callable[[bytes], object | None] | None = None
        self._handshake_bytes = 0

    @classmethod
    def dial(cls, key: SwarmKey, expected: PeerId | None, *, now: float) -> SecureLink:
        """A dialler's end; `outgoing` has its first words."""
        link = cls()
        link.key = key
        link._knock = make_knock(key, expected, now=now, nonce=secrets.token_bytes(NONCE_BYTES))
        link._outgoing.write(link._knock)
        link.state = LinkState.SHAKING
        link._tls = dialler_context().wrap_bio(link._incoming, link._outgoing)
        link._shake()
        return link

    @classmethod
    def accept(
        cls,
        certificate: Certificate,
        recognise: Callable[[bytes], SwarmKey | None],
        relays: Callable[[bytes], object | None] | None = None,
    ) -> SecureLink:
        """A listener's end. `recognise` says by which key a knock was made, or None. Then `relays`
        may say for whom it was made instead: `received` raises Detour."""
        link = cls()
        link._relays = relays
        link._certificate = certificate
        link._recognise = recognise
        return link

    @property
    def is_open(self) -> bool:
        return self.state is LinkState.OPEN

    def get_buffer(self) -> memoryview:
        """Memory to read the network into; never empty."""
        return memoryview(self._scratch)

    def received(self, n_bytes: int) -> None:
        """`n_bytes` were written at the start of the last `get_buffer`."""
        data = memoryview(self._scratch)[:n_bytes]
        self.heard = True
        if self.state is LinkState.KNOCKING:
            taken = min(KNOCK_BYTES - len(self._knock), n_bytes)
            self._knock += bytes(data[:taken])
            data = data[taken:]
            if len(self._knock) < KNOCK_BYTES:
                return
            self._answer_knock(data)
        self._incoming.write(data)
        if self.state is LinkState.SHAKING:
            self._handshake_bytes += n_bytes
            if self._handshake_bytes > MAX_HANDSHAKE_BYTES:
                raise LinkBroken("a TLS handshake without an end")
            self._shake()

    def outgoing(self) -> bytes:
        """What is to be sent now; may be empty."""
        return self._outgoing.read()

    def read_into(self, buffer: memoryview) -> int:
        """Bytes of the stream written at the start of `buffer`; 0 if there are none yet."""
        try:
            n_bytes = self._tls.read(len(buffer), buffer)
        except ssl.SSLWantReadError:
            return 0
        except ssl.SSLError as error:
            raise LinkBroken(f"TLS: {error.reason}") from error
        if not n_bytes:  # the peer said close_notify
            raise LinkBroken("closed by the other side")
        return int(n_bytes)

    def seal(self, *parts: Buffer) -> list[bytes]:
        """The bytes to send for these parts of the stream."""
        if sum(map(len, parts)) <= SEAL_BYTES:
            parts = (b"".join(parts),)
        sealed = []
        for part in parts:
            view = memoryview(part).cast("B")
            while view:
                written = self._write(view[:SEAL_BYTES])
                view = view[written:]
                sealed.append(self._outgoing.read())
        return sealed

    def _write(self, view: memoryview) -> int:
        try:
            return self._tls.write(view)
        except ssl.SSLError as error:
            raise LinkBroken(f"TLS: {error.reason}") from error

    def _answer_knock(self, rest: Buffer) -> None:
        assert self._certificate is not None
        self.key = self._recognise(self._knock)
        if self.key is None:
            to = None if self._relays is None else self._relays(self._knock)
            if to is not None:
                raise Detour(to, self._knock + bytes(rest))
            raise LinkBroken("an unknown knock")
        self.state = LinkState.SHAKING
        self._tls = self._certificate.context.wrap_bio(
            self._incoming, self._outgoing, server_side=True
        )

    def _shake(self) -> None:
        try:
            self._tls.do_handshake()
        except ssl.SSLWantReadError:
            return
        except ssl.SSLError as error:
            raise LinkBroken(f"TLS: {error.reason}") from error
        if self._certificate is None:
            shown = self._tls.getpeercert(binary_form=True)
            try:
                self.peer_id = peer_id_of(shown)
            except ValueError as error:
                raise LinkBroken(str(error)) from error
            assert shown is not None
        else:
            shown = self._certificate.der
        self.binding = binding_of(shown, self._knock)
        self._scratch = bytearray(READ_BYTES)
        self.state = LinkState.OPEN
