"""How others reach a node: at its own address, or through a relay; and the relaying for others.

========== ===================================== ==============================================
state      leaves by                             the node is announced
========== ===================================== ==============================================
direct     others say they cannot dial it        ONLINE, at its own address
           -> seeking
seeking    a relay is found -> relayed;          as before; with `--relayed` JOINING, which
           others can dial it -> direct          nobody routes over
relayed    the relay is lost -> seeking;         ONLINE, at the relay's address
           others can dial it -> direct
========== ===================================== ==============================================

A node with `--relayed` asks nobody: it begins in seeking, and never leaves for direct.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence

from swarmd.dht.directory import Directory
from swarmd.node.announced import Announced
from swarmd.node.announcer import Announcer
from swarmd.node.reachability import Reachability, Verdict
from swarmd.peers import PeerInfo, PeerState
from swarmd.relay.desk import RelayDesk
from swarmd.relay.relayed import Relayed
from swarmd.tasks import TaskOwner
from swarmd.wire.greeting import Door, Greeting
from swarmd.wire.transport import Listener

__all__ = ["Reach"]


class Reach:
    """One node's reachability. `begin` when it serves; what it starts belongs to the owner."""

    def __init__(
        self,
        directory: Directory,
        announcer: Announcer,
        announced: Announced,
        door: Door,
        greeting: Greeting,
        rng: random.Random,
    ) -> None:
        self.door = door
        config = announced.config
        self.desk = RelayDesk(door.keys) if config.relaying and not config.relayed else None
        self._directory = directory
        self._announcer = announcer
        self._announced = announced
        self._own_address = announced.address
        self._greeting = greeting
        self._rng = rng
        self._listener: Listener
        self._owner: TaskOwner
        self._seeking: asyncio.Task[None] | None = None

    async def begin(self, listener: Listener, owner: TaskOwner) -> None:
        """Announce the node, now that it serves; `owner` runs what keeps it reachable."""
        self._listener, self._owner = listener, owner
        if self._announced.config.relayed:
            self._seek()
            return
        await self._announcer.announce(PeerState.ONLINE)
        reachability = Reachability(
            self._own_address, self._fetch, self._greeting, rng=self._rng, on_change=self.found
        )
        owner.spawn(reachability.run(), name="reachability", errors="log")

    def found(self, verdict: Verdict) -> None:
        """What others found who tried to dial this node."""
        if verdict is Verdict.UNREACHABLE and self._seeking is None:
            self._seek()
        elif verdict is Verdict.REACHABLE and self._seeking is not None:
            self._seeking.cancel()
            self._seeking = None
            self._owner.spawn(self._changed(None), name="direct", errors="log")

    def end(self) -> None:
        """Pass nothing on any more. Idempotent."""
        if self.desk is not None:
            self.desk.close()

    def _seek(self) -> None:
        relayed = Relayed(
            self._greeting, self._listener, self._candidates, self._changed, rng=self._rng
        )
        self._seeking = self._owner.spawn(relayed.run(), name="relayed")

    async def _fetch(self) -> Sequence[PeerInfo]:
        return await self._directory.fetch(self._announced.folder.model_id)

    async def _candidates(self) -> Sequence[PeerInfo]:
        """Peers that may relay; one that cannot says so when it is asked."""
        return [
            peer
            for peer in await self._fetch()
            if peer.state is PeerState.ONLINE and peer.peer_id != self._announced.peer_id
        ]

    async def _changed(self, relay: PeerInfo | None) -> None:
        if self._announcer.state is PeerState.DRAINING:
            return
        self._announced.address = self._own_address if relay is None else relay.address
        hidden = relay is None and self._announced.config.relayed
        await self._announcer.announce(PeerState.JOINING if hidden else PeerState.ONLINE)
