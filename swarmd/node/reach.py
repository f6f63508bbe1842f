"""How others reach a node: at its own address, at its router's, or through a relay; and the
relaying for others.

========== ===================================== ==============================================
state      leaves by                             the node is announced
========== ===================================== ==============================================
direct     others say they cannot dial it        ONLINE, at its own address
           -> asking; without UPnP -> seeking
asking     others can dial it at the router's    as before
           address -> mapped;
           no router maps a port -> seeking
mapped     others cannot dial it there any       ONLINE, at the router's address
           more, or the router ends the mapping
           -> seeking
seeking    a relay is found -> relayed;          as before; with `--relayed` JOINING, which
           others can dial it -> direct;         nobody routes over
           the router maps after all -> mapped
relayed    the relay is lost -> seeking;         ONLINE, at the relay's address
           others can dial it -> direct;
           the router maps after all -> mapped
========== ===================================== ==============================================

A node with `--relayed` asks nobody: it begins in seeking, and never leaves for another but relayed.
UPnP is never used by a node on loopback or with `--no-upnp`.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence

from swarmd.dht.directory import Directory
from swarmd.lan.neighbours import lan_interfaces
from swarmd.node.announced import Announced
from swarmd.node.announcer import Announcer
from swarmd.node.reachability import Reachability, Verdict
from swarmd.peers import Address, PeerInfo, PeerState
from swarmd.relay.desk import RelayDesk
from swarmd.relay.relayed import Relayed
from swarmd.tasks import TaskOwner
from swarmd.upnp.discovery import local_interfaces
from swarmd.upnp.port_mapper import PortMapper
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
        self._reachability = Reachability(
            self._own_address, self._fetch, greeting, rng=rng, on_change=self.found
        )
        self._seeking: asyncio.Task[None] | None = None
        self._mapper: PortMapper | None = None
        self._mapping: asyncio.Task[None] | None = None
        self._at_router = False

    async def begin(self, listener: Listener, owner: TaskOwner) -> None:
        """Announce the node, now that it serves; `owner` runs what keeps it reachable."""
        self._listener, self._owner = listener, owner
        if self._announced.config.relayed:
            self._seek()
            return
        await self._announcer.announce(PeerState.ONLINE)
        owner.spawn(self._reachability.run(), name="reachability", errors="log")

    def found(self, verdict: Verdict) -> None:
        """What others found who tried to dial this node."""
        if verdict is Verdict.UNREACHABLE:
            if self._at_router and self._mapper is not None:
                self._mapper.shaken()
            elif self._seeking is None and self._mapper is None and not self._ask_router():
                self._seek()
        elif verdict is Verdict.REACHABLE and not self._at_router:
            self._end_mapping()
            if self._seeking is not None:
                self._stop_seeking()
                self._owner.spawn(self._changed(None), name="direct", errors="log")

    async def end(self) -> None:
        """Pass nothing on any more, and take back what the router forwards (5 s at most)."""
        if self.desk is not None:
            self.desk.close()
        mapper, self._mapper = self._mapper, None
        if self._mapping is not None:
            self._mapping.cancel()
            await asyncio.wait([self._mapping])
        if mapper is not None:
            await mapper.drop()

    def _ask_router(self) -> bool:
        """Whether there is a network whose router can be asked."""
        config = self._announced.config
        if not config.upnp or self._own_address.is_loopback:
            return False
        interfaces = local_interfaces(lan_interfaces(config.host))
        if not interfaces:
            return False
        self._mapper = PortMapper(
            self._directory.address.port,
            interfaces,
            self._reachability.reaches,
            self._forwarded,
            rng=self._rng,
        )
        self._mapping = self._owner.spawn(self._mapper.run(), name="router", errors="log")
        return True

    def _end_mapping(self) -> None:
        """The node is reached without its router's help: it is asked for nothing more."""
        mapper, self._mapper = self._mapper, None
        if mapper is None or self._mapping is None:
            return
        task, self._mapping = self._mapping, None
        task.cancel()

        async def drop() -> None:
            await asyncio.wait([task])
            await mapper.drop()

        self._owner.spawn(drop(), name="router", errors="log")

    async def _forwarded(self, outside: Address | None) -> None:
        """The router forwards a port at which others reach us; or it does not, or no more."""
        if outside is not None:
            self._at_router = True
            self._stop_seeking()
            await self._announce_at(outside)
            return
        if self._at_router:
            self._at_router = False
            self._reachability.moved(self._own_address)
            await self._announce_at(self._own_address)
        if self._seeking is None:
            self._seek()

    def _stop_seeking(self) -> None:
        if self._seeking is not None:
            self._seeking.cancel()
            self._seeking = None

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
        if self._at_router:  # the relay was given up for the router's address
            return
        hidden = relay is None and self._announced.config.relayed
        await self._announce_at(self._own_address if relay is None else relay.address, hidden)

    async def _announce_at(self, address: Address, hidden: bool = False) -> None:
        if self._announcer.state is PeerState.DRAINING:
            return
        self._announced.address = address
        await self._announcer.announce(PeerState.JOINING if hidden else PeerState.ONLINE)
