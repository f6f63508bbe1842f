"""The round trip to a peer, measured on a greeted connection."""

from __future__ import annotations

import asyncio
import time

from swarmd.errors import ConnectionLost, PeerTimeout
from swarmd.peers import PeerInfo
from swarmd.wire.messages import Ping, Pong
from swarmd.wire.pool import Pool

__all__ = ["ping"]


async def ping(peer: PeerInfo, pool: Pool, *, timeout: float = 2.0, count: int = 3) -> float:
    """The least of `count` round trips to a peer in seconds. Raises PeerFailure, RemoteError."""
    greeted = await pool.acquire(peer.peer_id, peer.address)
    try:
        best = float("inf")
        async with asyncio.timeout(timeout):
            for nonce in range(count):
                began = time.perf_counter()  # uvloop's own clock has milliseconds
                await greeted.connection.send(Ping(nonce))
                message, _ = await greeted.connection.receive()
                if message != Pong(nonce):
                    raise ConnectionLost(f"{peer.address}: not the pong that was asked for")
                best = min(best, time.perf_counter() - began)
    except TimeoutError as error:
        greeted.connection.abort()
        raise PeerTimeout(
            f"{peer.peer_id.short} at {peer.address}: no pong within {timeout:g} s",
            peer=peer.peer_id,
        ) from error
    except BaseException:
        greeted.connection.abort()
        raise
    pool.release(greeted)
    return best
