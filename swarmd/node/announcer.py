"""Keeps the node's announcement true: renews it, tells changes at once, withdraws it at the end."""

from __future__ import annotations

import dataclasses
import logging
import random
from collections.abc import Awaitable, Callable, Sequence

from swarmd.dht.directory import Directory
from swarmd.identity import PeerId
from swarmd.peers import PeerInfo, PeerState
from swarmd.routing.probe import probe_rtts
from swarmd.tasks import periodic

__all__ = ["Announcer"]

log = logging.getLogger(__name__)

MAX_SUCCESSORS = 5
"""Round trips that one record has room for."""


class Announcer:
    """Announces what `describe(state)` returns. `run` is the periodic service."""

    def __init__(
        self,
        directory: Directory,
        describe: Callable[[PeerState], PeerInfo],
        *,
        period: float,
        ping: Callable[[PeerInfo], Awaitable[float]],
        rng: random.Random,
    ) -> None:
        self.state = PeerState.JOINING
        self._directory = directory
        self._describe = describe
        self._period = period
        self._ping = ping
        self._rng = rng
        self._rtts: dict[PeerId, float] = {}

    async def announce(self, state: PeerState | None = None) -> PeerInfo:
        """Announce now, in a new state if one is given. Returns what was announced."""
        if state is not None:
            self.state = state
        info = dataclasses.replace(self._describe(self.state), rtts=self._rtts)
        replicas = await self._directory.announce(info)
        log.debug("announced %s as %s at %d replicas", info.span, self.state.name, replicas)
        return info

    async def run(self) -> None:
        """Renew for ever. Ends only by cancel or a bug."""
        await periodic(self._renew, interval=self._period, rng=self._rng)

    async def withdraw(self) -> None:
        """Announce that the node is gone."""
        await self._directory.withdraw()

    async def _renew(self) -> None:
        await self._measure_successors()
        await self.announce()

    async def _measure_successors(self) -> None:
        """Round trips to peers that may follow this one in a chain; a ring is priced by them."""
        own = self._describe(self.state)
        following = self._following(await self._directory.fetch(own.model_id), own)
        measured = await probe_rtts(following, self._ping)
        self._rtts = {peer_id: rtt for peer_id, rtt in measured.items() if isinstance(rtt, float)}

    def _following(self, peers: Sequence[PeerInfo], own: PeerInfo) -> list[PeerInfo]:
        able = [
            peer
            for peer in peers
            if peer.peer_id != own.peer_id
            and peer.state is PeerState.ONLINE
            and own.span.end in peer.span
        ]
        self._rng.shuffle(able)
        return able[:MAX_SUCCESSORS]
