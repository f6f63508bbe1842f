"""What a node sends on its connections, each within a time: who does not read is dropped."""

from __future__ import annotations

import asyncio
import logging

from swarmd.errors import ConnectionLost, RemoteError
from swarmd.node.served import Statistics
from swarmd.wire.connection import Connection
from swarmd.wire.messages import Message

__all__ = ["Outlet"]

log = logging.getLogger(__name__)


class Outlet:
    """Sends messages and refusals; `timeout` in seconds for each. Refusals
    and bytes are counted."""

    def __init__(self, timeout: float, statistics: Statistics) -> None:
        self._timeout = timeout
        self._statistics = statistics

    async def send(
        self, connection: Connection, message: Message, payload: memoryview | bytes = b""
    ) -> None:
        """Raises ConnectionLost, also when the peer does not read for `timeout` seconds."""
        try:
            async with asyncio.timeout(self._timeout):
                await connection.send(message, payload)
            self._statistics.bytes_out += len(payload)
        except TimeoutError as error:
            connection.abort()
            log.warning("%s: does not read its answers; dropped", connection.address)
            raise ConnectionLost(f"{connection.address}: does not read its answers") from error

    async def refuse(
        self, connection: Connection, error: RemoteError, *, step: int | None = None
    ) -> None:
        """Refuse a step, an open, or the connection; drop who does not read that."""
        self._statistics.refusals += 1
        try:
            async with asyncio.timeout(self._timeout):
                await connection.refuse(error, step=step)
        except TimeoutError:
            connection.abort()
            log.warning("%s: does not read its refusals; dropped", connection.address)
