"""The other side of a relay's desk: a node that cannot be dialled keeps a reservation somewhere.

========== ============================================ =====================================
state      leaves by                                    the node is announced at
========== ============================================ =====================================
seeking    a relay grants `reserve` -> held             its own address, for those who reach it
held       the control link ends, or is silent for too  the relay's address
           long -> seeking
========== ============================================ =====================================

For each client the relay sends a ticket; the node dials the relay with it and then serves that
link as if it had accepted it.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import random
from collections.abc import Awaitable, Callable, Sequence

from swarmd.errors import BadOutput, PeerFailure, RemoteError
from swarmd.peers import Address, PeerInfo
from swarmd.tasks import TaskOwner
from swarmd.wire.connection import Connection
from swarmd.wire.greeting import Greeting
from swarmd.wire.messages import ErrorMessage, Incoming, Ping, Pong, Reserve, Reserved
from swarmd.wire.transport import Listener, dial

__all__ = ["Relayed"]

log = logging.getLogger(__name__)

PING_SECONDS = 20.0
"""Keeps the mapping of a NAT router open; common ones forget a silent one after 30 s or more."""
SILENCE_SECONDS = 45.0
"""Two pings unanswered: the relay is gone."""
MAX_PAUSE = 60.0
MAX_COMING = 64
"""Tickets being answered at a time; a relay that sends more is not obeyed."""


class Relayed:
    """`run` seeks relays among `candidates` and holds on to one, until it is cancelled.

    `on_change` is told the relay, or None when it is lost; the node then announces itself anew.
    """

    def __init__(
        self,
        greeting: Greeting,
        listener: Listener,
        candidates: Callable[[], Awaitable[Sequence[PeerInfo]]],
        on_change: Callable[[PeerInfo | None], Awaitable[object]],
        *,
        rng: random.Random,
        ping_seconds: float = PING_SECONDS,
        first_pause: float = 1.0,
    ) -> None:
        self.relay: PeerInfo | None = None
        self._greeting = greeting
        self._listener = listener
        self._candidates = candidates
        self._on_change = on_change
        self._rng = rng
        self._ping_seconds = ping_seconds
        self._first_pause = first_pause

    async def run(self) -> None:
        """Ends only by cancel or a bug."""
        pause = self._first_pause
        while True:
            candidates = list(await self._candidates())
            self._rng.shuffle(candidates)
            for candidate in candidates:
                if await self._held_by(candidate):
                    pause = self._first_pause
                    break
            else:
                log.info("no relay was found; looking again in %.0f s", pause)
            await asyncio.sleep(pause * self._rng.uniform(0.8, 1.2))
            pause = min(2 * pause, MAX_PAUSE)

    async def _held_by(self, relay: PeerInfo) -> bool:
        """Ask one relay; if it grants, stay as long as it goes. Whether it granted."""
        connection: Connection | None = None
        try:
            greeted = await dial(relay.address, self._greeting, expected=relay.peer_id)
            connection = greeted.connection
            async with asyncio.timeout(SILENCE_SECONDS):
                await connection.send(Reserve())
                answer, _ = await connection.receive()
            if isinstance(answer, ErrorMessage):
                raise answer.to_error()
            if not isinstance(answer, Reserved):  # a pong without a ping
                raise BadOutput(f"{answer.TYPE} instead of reserved", peer=relay.peer_id)
            self.relay = relay
            log.info("reached through relay %s at %s", relay.peer_id.short, relay.address)
            await self._on_change(relay)
            await self._serve(connection, relay.address)
        except (PeerFailure, RemoteError, TimeoutError) as error:
            log.info("relay %s at %s: %s", relay.peer_id.short, relay.address, error or "silent")
        finally:
            if connection is not None:
                connection.abort()
        if self.relay is None:
            return False
        self.relay = None
        await self._on_change(None)
        return True

    async def _serve(self, connection: Connection, relay: Address) -> None:
        async with TaskOwner("relayed") as owner:
            owner.spawn(self._ping(connection), name="pings")
            coming: set[asyncio.Task[None]] = set()
            while True:
                async with asyncio.timeout(SILENCE_SECONDS):
                    message, _ = await connection.receive()
                if isinstance(message, Pong):
                    continue
                if not isinstance(message, Incoming):  # the protocol lets nothing else through
                    raise BadOutput(f"{message.TYPE} is not expected here")
                coming = {task for task in coming if not task.done()}
                if len(coming) < MAX_COMING:
                    work = self._listener.come_for(relay, message.ticket)
                    coming.add(owner.spawn(work, name="coming", errors="log"))

    async def _ping(self, connection: Connection) -> None:
        for nonce in itertools.count():
            await asyncio.sleep(self._ping_seconds)
            await connection.send(Ping(nonce & 0xFFFFFFFF))
