"""Dialling and listening: from an address to a link, and from a link to a connection.

A link is made in this order, each step proving something (docs/protocol.md has the bytes):

1. the dialler knocks: it holds a swarm key (:mod:`swarmd.wire.knock`);
2. TLS 1.3: the listener holds the key of its PeerId (:mod:`swarmd.wire.secure_link`);
3. `challenge`, `hello`: the dialler holds the key of its PeerId, and nobody stands between
   (:mod:`swarmd.wire.greeting`).
"""

from __future__ import annotations

import asyncio
import errno
import socket
from collections.abc import Callable, Sequence
from typing import Protocol

from swarmd.clock import Clock, SystemClock
from swarmd.errors import BadOutput, BadRequest, PeerTimeout, PortInUse, Unreachable, UsageError
from swarmd.identity import PeerId
from swarmd.peers import Address
from swarmd.wire.certificate import Certificate
from swarmd.wire.connection import HANDSHAKE_SECONDS, Connection
from swarmd.wire.frames import DEFAULT_LIMITS, Limits
from swarmd.wire.greeting import AGENT, Door, Greeted, Greeting, greet
from swarmd.wire.knock import Doorkeeper, make_ticket_knock
from swarmd.wire.protocol import Role
from swarmd.wire.secure_link import Detour, SecureLink

__all__ = [
    "AGENT",
    "Door",
    "Greeted",
    "Greeting",
    "Listener",
    "Relays",
    "bind",
    "dial",
    "greet",
    "listen",
    "turn_away",
]


async def dial(
    address: Address,
    greeting: Greeting,
    *,
    expected: PeerId | None = None,
    timeout: float = 5.0,
    limits: Limits = DEFAULT_LIMITS,
    clock: Clock | None = None,
) -> Greeted:
    """Connect, make the link and greet within `timeout` seconds. Without `expected` whoever
    answers is accepted, and `Greeted.peer_id` says who.

    Raises Unreachable, ConnectionLost (also where the knock is not answered), PeerTimeout,
    PeerMismatch (someone else answers there), BadOutput, VersionMismatch, ModelMismatch,
    NotAllowed, Busy.
    """
    loop = asyncio.get_running_loop()
    now = (clock or SystemClock()).wall()
    connection: Connection | None = None

    def make() -> Connection:
        secret = greeting.keys.current
        link = None if greeting.plaintext else SecureLink.dial(secret, expected, now=now)
        return Connection(Role.DIALLER, limits=limits, link=link)

    if greeting.plaintext and not address.is_loopback:
        raise _plaintext_leaves(address)
    try:
        async with asyncio.timeout(timeout):
            _, connection = await loop.create_connection(make, address.host, address.port)
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


BACKLOG = 100
"""Connections that may wait in the kernel: as many as asyncio's own default."""
MAX_HANDSHAKES = 256
"""Links being made at a time; one more ends the oldest, which is the likeliest to be stalled."""


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


class Relays(Protocol):
    """What takes the links that are for nodes relayed here (:mod:`swarmd.relay.desk`)."""

    def recognise(self, knock: bytes) -> object | None:
        """For whom a knock is, that was not for this node; None closes the door."""

    def take(self, transport: asyncio.Transport, detour: Detour) -> None:
        """Pass on a link whose knock was recognised; the transport does not read meanwhile."""


class Listener:
    """Accepts connections until it is closed; links that are still being made end with it."""

    def __init__(self) -> None:
        self._server: asyncio.Server | None = None
        self._handshakes: dict[Connection, None] = {}
        self._make_for: Callable[[bytes], Connection] | None = None

    async def come_for(self, relay: Address, ticket: bytes) -> None:
        """Dial a relay where a client waits, and accept the client as if it had dialled here.

        Raises Unreachable. Must not be called on a plaintext listener.
        """
        make = self._make_for
        assert make is not None
        try:
            async with asyncio.timeout(HANDSHAKE_SECONDS):
                await asyncio.get_running_loop().create_connection(
                    lambda: make(ticket), relay.host, relay.port
                )
        except OSError as error:  # a TimeoutError is one
            raise Unreachable(f"{relay}: cannot connect: {error or 'no answer'}") from error

    @property
    def sockets(self) -> Sequence[socket.socket]:
        """What it listens on; empty once it is closed."""
        return self._server.sockets if self._server is not None else ()

    @property
    def handshakes(self) -> int:
        """Links that are being made."""
        return len(self._handshakes)

    def close(self) -> None:
        """Idempotent; connections that were handed over stay."""
        if self._server is not None:
            self._server.close()
        for connection in list(self._handshakes):
            connection.abort()

    async def _start(self, sock: socket.socket, make: Callable[[], Connection]) -> None:
        try:
            sock.listen(BACKLOG)  # uvloop's own call does not tell of a failure
            self._server = await asyncio.get_running_loop().create_server(
                make, sock=sock, backlog=BACKLOG
            )
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                host, port = sock.getsockname()[:2]
                raise _taken(Address(host, port)) from error
            raise

    def _enter(self, connection: Connection) -> None:
        self._handshakes[connection] = None
        if len(self._handshakes) > MAX_HANDSHAKES:
            oldest = next(iter(self._handshakes))
            del self._handshakes[oldest]
            oldest.abort()

    def _leave(self, connection: Connection) -> None:
        self._handshakes.pop(connection, None)


async def listen(
    sock: socket.socket,
    on_connection: Callable[[Connection], None],
    door: Door,
    *,
    limits: Limits = DEFAULT_LIMITS,
    relays: Relays | None = None,
    plaintext: bool = False,
    clock: Clock | None = None,
) -> Listener:
    """Accept on a socket of :func:`bind`; every connection is handed over once its link is made,
    and is then to be greeted with `door`. Who does not know a key of `door` gets no byte. Knocks
    that are for others go to `relays`.

    Raises PortInUse for a socket that was only bound, when another program listens there, and
    UsageError for `plaintext` on an address that is not loopback.
    """
    listener = Listener()
    if plaintext:
        host, port = sock.getsockname()[:2]
        if not Address(host, port).is_loopback:
            raise _plaintext_leaves(Address(host, port))
        await listener._start(
            sock, lambda: Connection(Role.LISTENER, limits=limits, on_made=on_connection)
        )
        return listener
    certificate = Certificate(door.identity)
    doorkeeper = Doorkeeper(door.keys, door.identity.peer_id)
    wall = (clock or SystemClock()).wall

    def made(connection: Connection) -> None:
        listener._leave(connection)
        on_connection(connection)

    def make(preface: bytes = b"") -> Connection:
        connection = Connection(
            Role.LISTENER,
            limits=limits,
            link=SecureLink.accept(
                certificate,
                lambda knock: doorkeeper.recognise(knock, wall()),
                None if relays is None else relays.recognise,
            ),
            on_made=made,
            on_lost=listener._leave,
            on_detour=None if relays is None else relays.take,
            preface=preface,
        )
        listener._enter(connection)
        return connection

    def make_for(ticket: bytes) -> Connection:
        return make(make_ticket_knock(door.keys.current, ticket, now=wall()))

    listener._make_for = make_for
    await listener._start(sock, make)
    return listener


async def turn_away(sock: socket.socket) -> Listener:
    """Accept on a socket of :func:`bind` and reset at once: nobody serves here yet."""
    listener = Listener()
    await listener._start(
        sock, lambda: Connection(Role.LISTENER, on_made=lambda connection: connection.abort())
    )
    return listener


def _plaintext_leaves(address: Address) -> UsageError:
    return UsageError(f"{address} is not on loopback: links that leave the machine are encrypted")


def _taken(address: Address) -> PortInUse:
    return PortInUse(
        f"port {address.port} on {address.host} is taken; choose another by --port, "
        "or leave --port out"
    )
