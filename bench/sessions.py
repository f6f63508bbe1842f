"""Sessions over bare connections: hidden states in, hidden states out, no client behind them."""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import AsyncIterator

import torch

from swarmd.peers import Address
from swarmd.swarm_key import PUBLIC_SWARM_KEY
from swarmd.wire.connection import Connection
from swarmd.wire.messages import ErrorMessage, Message, Open, Opened, Output, Step
from swarmd.wire.protocol import Role
from swarmd.wire.secure_link import SecureLink
from swarmd.wire.tensors import TensorMeta
from swarmd.wire.transport import Greeting, greet

__all__ = ["BLOCKS", "HIDDEN", "Session", "connected", "opened", "session"]

HIDDEN, BLOCKS = 576, 30
"""Of the default model."""


class Session:
    """An open session; `connection` is its own, `payload` that of the last output."""

    def __init__(self, connection: Connection, name: bytes) -> None:
        self.connection = connection
        self.position = 0
        self.payload = bytearray()
        self._name = name
        self._number = 0

    async def send(self, hidden: torch.Tensor, start: int | None = None) -> None:
        """Send a step of (1, tokens, hidden size) at `start`; default: where the last ended."""
        start = self.position if start is None else start
        dtype = str(hidden.dtype).removeprefix("torch.")
        message = Step(self._name, self._number, start, 0, TensorMeta(dtype, tuple(hidden.shape)))
        raw = hidden.contiguous().view(torch.uint8).numpy().tobytes()
        await self.connection.send(message, raw)
        self._number += 1
        self.position = start + hidden.shape[1]

    async def step(self, hidden: torch.Tensor, start: int | None = None) -> Message:
        """Send a step and take its answer. Raises the node's refusal."""
        await self.send(hidden, start)
        answer, self.payload = await self.connection.receive()
        if isinstance(answer, ErrorMessage):
            raise answer.to_error()
        assert isinstance(answer, Output)
        return answer

    async def prefill(self, hidden: torch.Tensor, chunk: int) -> None:
        """Steps of at most `chunk` tokens, one after the other."""
        for part in hidden.split(chunk, dim=1):
            await self.step(part)


@contextlib.asynccontextmanager
async def connected(port: int, source: str = "127.0.0.1") -> AsyncIterator[Connection]:
    """A connection that has knocked and not yet greeted."""

    def make() -> Connection:
        return Connection(
            Role.DIALLER, link=SecureLink.dial(PUBLIC_SWARM_KEY, None, now=time.time())
        )

    _, connection = await asyncio.get_running_loop().create_connection(
        make, "127.0.0.1", port, local_addr=(source, 0)
    )
    try:
        yield connection
    finally:
        connection.abort()


@contextlib.asynccontextmanager
async def session(
    port: int, length: int, source: str = "127.0.0.1", blocks: tuple[int, int] = (0, BLOCKS)
) -> AsyncIterator[Session]:
    """A greeted connection with an open session. Raises the node's refusal."""
    async with connected(port, source) as connection:
        await greet(connection, Greeting(), Address("127.0.0.1", port), None)
        name = os.urandom(16)
        await connection.send(Open(name, *blocks, length))
        message, _ = await connection.receive()
        if isinstance(message, ErrorMessage):
            raise message.to_error()
        assert isinstance(message, Opened)
        yield Session(connection, name)


@contextlib.asynccontextmanager
async def opened(port: int, count: int, length: int) -> AsyncIterator[list[Session]]:
    """So many sessions, each on a connection of its own."""
    async with contextlib.AsyncExitStack() as stack:
        yield [await stack.enter_async_context(session(port, length)) for _ in range(count)]
