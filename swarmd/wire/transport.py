"""Dialling, listening and greeting: from an address to a connection whose peer is known.

This is where links become encrypted and peers prove who they are (a later change): `greet` is
the one place that decides whether the peer at the other end is the one that was meant.
"""

from __future__ import annotations

import asyncio
import errno
import socket
from collections.abc import Callable
from dataclasses import dataclass

from swarmd import __version__
from swarmd.blocks import Span
from swarmd.errors import (
    BadOutput,
    BadRequest,
    ModelMismatch,
    PeerMismatch,
    PeerTimeout,
    PortInUse,
    Unreachable,
    VersionMismatch,
)
from swarmd.identity import PeerId
from swarmd.peers import Address, ModelId
from swarmd.wire.connection import Connection
from swarmd.wire.frames import DEFAULT_LIMITS, Limits
from swarmd.wire.messages import PROTOCOL_VERSION, ErrorMessage, Hello, Welcome
from swarmd.wire.protocol import Role

__all__ = ["AGENT", "Greeted", "Greeting", "bind", "dial", "greet", "listen"]

AGENT = f"swarmd/{__version__}"


@dataclass(frozen=True, slots=True)
class Greeting:
    """What a dialler says of itself. `peer_id` is None for a client, which serves nothing."""

    model_id: ModelId | None = None
    peer_id: PeerId | None = None


@dataclass(frozen=True, slots=True)
class Greeted:
    """A connection that is ready for a session, and what its peer says of itself."""

    connection: Connection
    peer_id: PeerId
    span: Span
    dtype: str
    max_payload: int


async def dial(
    address: Address,
    greeting: Greeting,
    *,
    expected: PeerId | None = None,
    timeout: float = 5.0,
    limits: Limits = DEFAULT_LIMITS,
) -> Greeted:
    """Connect and greet within `timeout` seconds.

    Raises Unreachable, ConnectionLost, PeerTimeout, PeerMismatch (someone else answers there),
    VersionMismatch, ModelMismatch.
    """
    loop = asyncio.get_running_loop()
    connection: Connection | None = None
    try:
        async with asyncio.timeout(timeout):
            _, connection = await loop.create_connection(
                lambda: Connection(Role.DIALLER, limits=limits), address.host, address.port
            )
            return await greet(connection, greeting, address, expected)
    except TimeoutError as error:
        if connection is not None:
            connection.abort()
        raise PeerTimeout(f"{address}: no greeting within {timeout:g} s", peer=expected) from error
    except OSError as error:
        reason = error.strerror or str(error)
        raise Unreachable(f"{address}: cannot connect: {reason}", peer=expected) from error
    except BadRequest as error:
        if connection is not None:
            connection.abort()
        raise BadOutput(f"{address}: does not speak swarmd: {error}", peer=expected) from error
    except BaseException:
        if connection is not None:
            connection.abort()
        raise


async def greet(
    connection: Connection, greeting: Greeting, address: Address, expected: PeerId | None
) -> Greeted:
    """Say hello on a fresh connection and check who answers."""
    await connection.send(
        Hello(PROTOCOL_VERSION, AGENT, greeting.peer_id or b"", greeting.model_id or b"")
    )
    message, _ = await connection.receive()
    if isinstance(message, ErrorMessage):
        raise message.to_error()
    if not isinstance(message, Welcome):  # the protocol lets nothing else through
        raise BadRequest(f"{address}: {message.TYPE} instead of a welcome")
    if message.version != PROTOCOL_VERSION:
        raise VersionMismatch(f"{address} speaks version {message.version}, not {PROTOCOL_VERSION}")
    peer_id = PeerId(message.peer_id)
    if expected is not None and peer_id != expected:
        raise PeerMismatch(
            f"{address}: peer {peer_id.short} answers where {expected.short} was announced",
            peer=expected,
        )
    if greeting.model_id is not None and message.model_id != greeting.model_id:
        raise ModelMismatch(f"{address} serves another model")
    span = Span(message.start, message.end)
    return Greeted(connection, peer_id, span, message.dtype, message.max_payload)


BACKLOG = 100
"""Connections that may wait in the kernel: as many as asyncio's own default."""


def bind(address: Address) -> socket.socket:
    """A TCP socket that listens at `address`; port 0 takes a free one.

    It listens at once, since the system gives an address that is only bound to the next program
    that asks. Connections wait in its backlog until :func:`listen` takes them; closing the socket
    resets them. Raises PortInUse, or Unreachable where the address is not one of this machine.
    """
    family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind((address.host, address.port))
        sock.listen(BACKLOG)
    except OSError as error:
        sock.close()
        if error.errno == errno.EADDRINUSE:
            raise _taken(address) from error
        reason = error.strerror or str(error)
        raise Unreachable(f"cannot listen on {address}: {reason}; see --host") from error
    return sock


async def listen(
    sock: socket.socket,
    on_connection: Callable[[Connection], None],
    *,
    limits: Limits = DEFAULT_LIMITS,
) -> asyncio.Server:
    """Accept on a socket of :func:`bind`; every connection is handed over at once.

    Raises PortInUse for a socket that was only bound, when another program listens there.
    """
    try:
        sock.listen(BACKLOG)  # uvloop's own call does not tell of a failure
        return await asyncio.get_running_loop().create_server(
            lambda: Connection(Role.LISTENER, limits=limits, on_made=on_connection),
            sock=sock,
            backlog=BACKLOG,
        )
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            host, port = sock.getsockname()[:2]
            raise _taken(Address(host, port)) from error
        raise


def _taken(address: Address) -> PortInUse:
    return PortInUse(
        f"port {address.port} on {address.host} is taken; choose another by --port, "
        "or leave --port out"
    )
