"""How others reach a node: at its own address, or through a relay; and the relaying for others."""

from __future__ import annotations

import random
from collections.abc import Sequence

from swarmd.dht.directory import Directory
from swarmd.node.announced import Announced
from swarmd.node.announcer import Announcer
from swarmd.peers import PeerInfo, PeerState
from swarmd.relay.desk import RelayDesk
from swarmd.relay.relayed import Relayed
from swarmd.tasks import TaskOwner
from swarmd.wire.greeting import Door, Greeting
from swarmd.wire.transport import Listener

__all__ = ["Reach"]


class Reach:
    """One node's reachability. A node that is relayed is announced ONLINE at its relay's address,
    and JOINING, which nobody routes over, while it has none."""

    def __init__(
        self,
        directory: Directory,
        announcer: Announcer,
        announced: Announced,
        door: Door,
        rng: random.Random,
    ) -> None:
        config = announced.config
        self.door = door
        self.desk = RelayDesk(door.keys) if config.relaying and not config.relayed else None
        self._directory = directory
        self._announcer = announcer
        self._announced = announced
        self._own_address = announced.address
        self._rng = rng

    async def begin(self, listener: Listener, owner: TaskOwner) -> None:
        """Announce the node, now that it serves; `owner` runs what keeps it reachable."""
        if not self._announced.config.relayed:
            await self._announcer.announce(PeerState.ONLINE)
            return
        greeting = Greeting(identity=self.door.identity, keys=self.door.keys)
        relayed = Relayed(greeting, listener, self._candidates, self._changed, rng=self._rng)
        owner.spawn(relayed.run(), name="relayed")

    def end(self) -> None:
        """Pass nothing on any more. Idempotent."""
        if self.desk is not None:
            self.desk.close()

    async def _candidates(self) -> Sequence[PeerInfo]:
        """Peers that may relay; one that cannot says so when it is asked."""
        found = await self._directory.fetch(self._announced.folder.model_id)
        return [
            peer
            for peer in found
            if peer.state is PeerState.ONLINE and peer.peer_id != self._announced.peer_id
        ]

    async def _changed(self, relay: PeerInfo | None) -> None:
        if self._announcer.state is PeerState.DRAINING:
            return
        self._announced.address = self._own_address if relay is None else relay.address
        state = PeerState.JOINING if relay is None else PeerState.ONLINE
        await self._announcer.announce(state)
