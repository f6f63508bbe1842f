"""Measuring round trips to many peers at once. How one is pinged is handed in."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable

from swarmd.errors import PeerFailure, RemoteError
from swarmd.identity import PeerId
from swarmd.peers import PeerInfo

__all__ = ["probe_rtts"]

PARALLEL = 16
"""Pings under way at once: enough for a swarm, too few to disturb one another's times."""


async def probe_rtts(
    peers: Iterable[PeerInfo], ping: Callable[[PeerInfo], Awaitable[float]]
) -> dict[PeerId, float | PeerFailure | RemoteError]:
    """The round trip to each peer in seconds, or what is wrong with it."""
    slots = asyncio.Semaphore(PARALLEL)

    async def probe(peer: PeerInfo) -> tuple[PeerId, float | PeerFailure | RemoteError]:
        async with slots:
            try:
                return peer.peer_id, await ping(peer)
            except (PeerFailure, RemoteError) as error:
                return peer.peer_id, error

    return dict(await asyncio.gather(*map(probe, peers)))
