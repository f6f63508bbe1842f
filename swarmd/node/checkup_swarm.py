"""What `swarmd doctor` learns from the swarm: our clock, and whether others can dial us."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence

from swarmd.dht.config import DhtConfig
from swarmd.errors import ConnectionLost, PeerFailure, RemoteError
from swarmd.identity import Identity
from swarmd.node.checkup import Finding, Level
from swarmd.node.reachability import ASKED, Answer, Verdict, ask, verdict
from swarmd.peers import MODEL_ID_BYTES, Address, PeerInfo, PeerState
from swarmd.printable import printable
from swarmd.swarm_key import KeyRing
from swarmd.tasks import TaskOwner
from swarmd.wire.connection import Connection
from swarmd.wire.greeting import AGENT, challenge, check_hello
from swarmd.wire.messages import PROTOCOL_VERSION, Welcome
from swarmd.wire.transport import Door, Greeting, bind, listen

__all__ = ["clock", "reachability"]

GREETING_TIMEOUT = 10.0
"""Seconds that who dials us has for its greeting."""


def clock(offset: float | None, limits: DhtConfig) -> Finding:
    """`offset`: seconds by which the swarm's clocks are ahead of ours; None: too few said so."""
    if offset is None:
        return Finding("clock", Level.OK, "not compared: fewer than 3 nodes answered")
    found = f"{abs(offset):.1f} s {'behind' if offset > 0 else 'ahead of'} the swarm's"
    if abs(offset) <= limits.clock_warn:
        return Finding("clock", Level.OK, found)
    level = Level.FAIL if abs(offset) > limits.clock_refuse else Level.WARN
    return Finding("clock", level, found, "set the clock: switch on time synchronisation (NTP)")


async def reachability(
    host: str, port: int, peers: Sequence[PeerInfo], keys: KeyRing, *, loopback: bool = False
) -> Finding:
    """Listen at `port` of `host`, and have peers of the swarm dial it. Nobody on loopback is
    asked unless `loopback`, which is for tests. Raises PortInUse, Unreachable."""
    asked = [
        peer
        for peer in peers
        if peer.state is PeerState.ONLINE and (loopback or not peer.address.is_loopback)
    ]
    random.shuffle(asked)
    identity = Identity.generate()
    door, greeting = Door(identity, keys), Greeting(None, identity, keys)
    sock = bind(Address(host, port))
    try:
        async with TaskOwner("doctor") as owner:

            def accept(connection: Connection) -> None:
                owner.spawn(_greet(connection, door), name="dialled", errors="log")

            listener = await listen(sock, accept, door)
            try:
                answers = await _answers(asked[:ASKED], port, greeting)
            finally:
                listener.close()
    finally:
        sock.close()
    return _finding(port, answers)


async def _greet(connection: Connection, door: Door) -> None:
    """Greet who dials us as a node does, then hang up: it only wants to know who answers."""
    try:
        async with asyncio.timeout(GREETING_TIMEOUT):
            asked = challenge(connection, door)
            await connection.send(asked)
            hello, _ = await connection.receive()
            check_hello(connection, door, asked, hello)
            await connection.send(
                Welcome(
                    PROTOCOL_VERSION, AGENT, door.identity.peer_id, bytes(MODEL_ID_BYTES), 0, 1,
                    "float32", "none", connection.protocol.limits.payload,
                )
            )  # fmt: skip
            await connection.receive()  # until it has gone
    except (TimeoutError, ConnectionLost, RemoteError):
        pass
    finally:
        connection.abort()


def _finding(port: int, answers: Sequence[Answer]) -> Finding:
    seen = ", ".join(sorted({printable(answer.host, 64) for answer in answers}))
    match verdict(answers):
        case Verdict.REACHABLE:
            return Finding("reachable", Level.OK, f"others can dial {seen}, port {port}")
        case Verdict.UNREACHABLE:
            return Finding(
                "reachable", Level.WARN, f"others see us at {seen} and cannot dial port {port}",
                f"let TCP and UDP port {port} through firewall and router, and if the router "
                "forwards another port name it by --advertise; a relay may do, at a cost in speed",
            )  # fmt: skip
    return Finding(
        "reachable", Level.WARN, "no node could be asked to dial us",
        "name a node on another machine by --peer HOST:PORT",
    )  # fmt: skip


async def _answers(peers: Sequence[PeerInfo], port: int, greeting: Greeting) -> list[Answer]:
    answers = []
    for peer in peers:
        try:
            answers.append(await ask(peer.address, port, greeting, peer.peer_id))
        except (PeerFailure, RemoteError):
            continue  # it says nothing about us
    return answers
