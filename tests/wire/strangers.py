"""Who reaches a listener, and what a stranger says to it and hears."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time

from swarmd.identity import PeerId
from swarmd.peers import Address
from swarmd.swarm_key import KeyRing, SwarmKey
from swarmd.wire.greeting import Greeted, Greeting
from swarmd.wire.secure_link import SecureLink
from swarmd.wire.transport import dial
from tests.wire.ends import Greeter

__all__ = ["NEW", "OLD", "PRIVATE", "STRANGE", "first_words", "reached", "told"]

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
