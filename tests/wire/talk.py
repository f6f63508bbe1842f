"""Short words for the tests of connections."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from swarmd.wire.connection import Connection
from swarmd.wire.frames import encode_preamble
from swarmd.wire.messages import (
    PROTOCOL_VERSION,
    Hello,
    Open,
    Opened,
    Ping,
    encode_header,
)
from tests.wire.samples import SESSION, UNPROVEN

HELLO = Hello(PROTOCOL_VERSION, "test", b"", *UNPROVEN)
MIB = 1 << 20


def framed(message: object, payload: bytes = b"") -> bytes:
    return encode_preamble(encode_header(message), len(payload)) + payload  # type: ignore[arg-type]


PING = framed(Ping(7))


async def until(condition: Callable[[], bool], seconds: float = 20.0) -> None:
    """Poll; a condition that never comes fails the test."""
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.001)


async def in_session(dialler: Connection, listener: Connection) -> None:
    await dialler.send(Open(SESSION, 0, 6, 64))
    await listener.receive()
    await listener.send(Opened(SESSION, 1))
    await dialler.receive()
