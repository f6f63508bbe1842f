"""Listeners on loopback for tests: one that greets, and pairs of joined connections."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator

from swarmd.errors import SwarmdError
from swarmd.identity import Identity
from swarmd.peers import Address
from swarmd.tasks import TaskOwner
from swarmd.wire.connection import Connection
from swarmd.wire.frames import DEFAULT_LIMITS, Limits
from swarmd.wire.messages import PROTOCOL_VERSION, Hello, Welcome
from swarmd.wire.protocol import Role
from swarmd.wire.transport import bind, listen
from tests.wire.samples import MODEL, PEER


class Greeter:
    """Accepts, answers hello with welcome, and then says nothing more."""

    def __init__(self) -> None:
        self.peer_id = Identity.generate().peer_id
        self.connections: list[Connection] = []
        self._stack = contextlib.AsyncExitStack()

    async def __aenter__(self) -> Greeter:
        owner = await self._stack.enter_async_context(TaskOwner("greeter"))

        def accept(connection: Connection) -> None:
            self.connections.append(connection)
            owner.spawn(self._greet(connection), name="greet", errors="log")

        listener = await listen(bind(Address("127.0.0.1", 0)), accept)
        self._stack.callback(listener.close)
        self.address = Address("127.0.0.1", listener.sockets[0].getsockname()[1])
        return self

    async def __aexit__(self, *exc: object) -> None:
        for connection in self.connections:
            connection.abort()
        await self._stack.aclose()

    async def _greet(self, connection: Connection) -> None:
        with contextlib.suppress(SwarmdError):
            await connection.receive()
            await connection.send(
                Welcome(PROTOCOL_VERSION, "greeter", self.peer_id, MODEL, 0, 6, "float32", 1 << 20)
            )


def tcp_pair() -> tuple[socket.socket, socket.socket]:
    """Two ends of one TCP connection on loopback."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        one = socket.create_connection(server.getsockname())
        two, _ = server.accept()
    for end in (one, two):  # little room in the kernel, so that pressure comes back soon
        end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 16 << 10)
        end.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 16 << 10)
    return one, two


@contextlib.asynccontextmanager
async def joined(
    *, limits: Limits = DEFAULT_LIMITS, greeted: bool = False
) -> AsyncIterator[tuple[Connection, Connection]]:
    """A dialler's and a listener's connection over one real TCP connection."""
    loop = asyncio.get_running_loop()
    one, two = tcp_pair()
    _, dialler = await loop.create_connection(
        lambda: Connection(Role.DIALLER, limits=limits), sock=one
    )
    _, listener = await loop.create_connection(
        lambda: Connection(Role.LISTENER, limits=limits), sock=two
    )
    try:
        if greeted:
            await dialler.send(Hello(PROTOCOL_VERSION, "test", b"", b""))
            await listener.receive()
            await listener.send(
                Welcome(PROTOCOL_VERSION, "test", PEER, MODEL, 0, 6, "float32", 1 << 20)
            )
            await dialler.receive()
        yield dialler, listener
    finally:
        for connection in (dialler, listener):
            connection.abort()
        for connection in (dialler, listener):
            await connection.close()


@contextlib.asynccontextmanager
async def joined_raw(
    role: Role, *, limits: Limits = DEFAULT_LIMITS
) -> AsyncIterator[tuple[Connection, socket.socket]]:
    """A connection, and the bare socket at its other end."""
    loop = asyncio.get_running_loop()
    one, two = tcp_pair()
    two.setblocking(False)
    with two:
        _, connection = await loop.create_connection(
            lambda: Connection(role, limits=limits), sock=one
        )
        try:
            yield connection, two
        finally:
            connection.abort()
            await connection.close()
