"""Listeners on loopback for tests: one that greets, and pairs of joined connections."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator

from swarmd.errors import RemoteError, SwarmdError
from swarmd.identity import Identity
from swarmd.peers import Address
from swarmd.swarm_key import PUBLIC_KEYS, PUBLIC_SWARM_KEY, KeyRing
from swarmd.tasks import TaskOwner
from swarmd.wire.certificate import Certificate
from swarmd.wire.connection import Connection
from swarmd.wire.frames import DEFAULT_LIMITS, Limits
from swarmd.wire.greeting import Door, challenge, check_hello
from swarmd.wire.messages import PROTOCOL_VERSION, Hello, Welcome
from swarmd.wire.protocol import Role
from swarmd.wire.secure_link import SecureLink
from swarmd.wire.transport import bind, listen
from tests.wire.samples import CHALLENGE, MODEL, PEER, UNPROVEN


class Greeter:
    """Accepts, challenges, answers hello with welcome, and then says nothing more."""

    def __init__(self, keys: KeyRing = PUBLIC_KEYS, *, held: socket.socket | None = None) -> None:
        self._held = held
        self.door = Door(Identity.generate(), keys)
        self.peer_id = self.door.identity.peer_id
        self.connections: list[Connection] = []
        self.refused: list[RemoteError] = []
        self._stack = contextlib.AsyncExitStack()

    async def __aenter__(self) -> Greeter:
        owner = await self._stack.enter_async_context(TaskOwner("greeter"))

        def accept(connection: Connection) -> None:
            self.connections.append(connection)
            owner.spawn(self._greet(connection), name="greet", errors="log")

        held = self._held or bind(Address("127.0.0.1", 0))
        self.listener = await listen(held, accept, self.door)
        self._stack.callback(self.listener.close)
        self.address = Address("127.0.0.1", self.listener.sockets[0].getsockname()[1])
        return self

    async def __aexit__(self, *exc: object) -> None:
        for connection in self.connections:
            connection.abort()
        await self._stack.aclose()

    async def _greet(self, connection: Connection) -> None:
        with contextlib.suppress(SwarmdError):
            asked = challenge(connection, self.door)
            await connection.send(asked)
            try:
                check_hello(connection, self.door, asked, (await connection.receive())[0])
            except RemoteError as error:
                self.refused.append(error)
                await connection.refuse(error)
                return
            await connection.send(
                Welcome(
                    PROTOCOL_VERSION,
                    "greeter",
                    self.peer_id,
                    MODEL,
                    0,
                    6,
                    "float32",
                    "none",
                    1 << 20,
                )
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
    *, limits: Limits = DEFAULT_LIMITS, greeted: bool = False, secure: bool = False
) -> AsyncIterator[tuple[Connection, Connection]]:
    """A dialler's and a listener's connection over one real TCP connection."""
    loop = asyncio.get_running_loop()
    one, two = tcp_pair()
    near = far = None
    if secure:
        certificate = Certificate(Identity.generate())
        near = SecureLink.dial(PUBLIC_SWARM_KEY, None, now=0.0)
        far = SecureLink.accept(certificate, lambda knock: PUBLIC_SWARM_KEY)
    _, dialler = await loop.create_connection(
        lambda: Connection(Role.DIALLER, limits=limits, link=near), sock=one
    )
    _, listener = await loop.create_connection(
        lambda: Connection(Role.LISTENER, limits=limits, link=far), sock=two
    )
    await dialler.wait_made()
    await listener.wait_made()
    try:
        if greeted:
            await listener.send(CHALLENGE)
            await dialler.receive()
            await dialler.send(Hello(PROTOCOL_VERSION, "test", b"", *UNPROVEN))
            await listener.receive()
            await listener.send(
                Welcome(PROTOCOL_VERSION, "test", PEER, MODEL, 0, 6, "float32", "none", 1 << 20)
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
