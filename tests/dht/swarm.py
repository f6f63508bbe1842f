"""Small swarms in one process, and announcements to fill them with."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator, Callable
from typing import Any

from swarmd.blocks import Span
from swarmd.clock import Clock, SystemClock
from swarmd.dht.config import DhtConfig
from swarmd.dht.directory import Directory
from swarmd.dht.envelope import Drop
from swarmd.dht.records import Record, pack, parse
from swarmd.identity import Identity, PeerId
from swarmd.peers import Address, ModelId, PeerInfo, PeerState

MODEL = ModelId(b"M" * 16)
OTHER = ModelId(b"O" * 16)
CONFIG = DhtConfig()
NOW = 1_700_000_000.0
NO_HOST = "x" * 70
"""Too long for a name: refused before anybody is asked."""


def identity_of(seed: int) -> Identity:
    """The same identity for the same seed."""
    return Identity(random.Random(seed).randbytes(32))


def info_of(peer_id: PeerId, **changes: Any) -> PeerInfo:
    """A plausible announcement."""
    fields: dict[str, Any] = {
        "address": Address("127.0.0.1", 31330),
        "model_id": MODEL,
        "model_name": "tiny-llama",
        "n_blocks": 30,
        "span": Span(10, 20),
        "state": PeerState.ONLINE,
        "decode_us": 850,
        "prefill_us": 90,
        "kv_free": 8192,
        "dtype": "float32",
        "queue": 2,
        "version": "0.1.0",
        "rtts": {PeerId(b"r" * 20): 0.012},
    }
    return PeerInfo(peer_id=peer_id, **{**fields, **changes})


def record_of(seed: int, *, now: float = NOW, ttl: float = 150.0, **changes: Any) -> Record:
    """A valid record of the peer `seed`, announced at `now`."""
    identity = identity_of(seed)
    stamped = {"sequence": int(now * 1000), "announced_at": now, "expires_at": now + ttl}
    info = info_of(identity.peer_id, **{**stamped, **changes})
    record = parse(pack(info, identity, CONFIG.swarm_id), CONFIG.swarm_id, now)
    assert isinstance(record, Record)
    return record


def directory_of(seed: int, *, clock: Clock | None = None, **changes: Any) -> Directory:
    """A node that is not open yet."""
    return Directory(
        DhtConfig(**changes),
        identity_of(seed),
        clock=clock or SystemClock(),
        rng=random.Random(seed),
    )


@contextlib.asynccontextmanager
async def open_swarm(
    size: int, *, clock: Clock | None = None, **changes: Any
) -> AsyncIterator[list[Directory]]:
    """`size` nodes that joined by the first of them. On leaving, none may have met a bug."""
    nodes = [directory_of(seed, clock=clock, **changes) for seed in range(size)]
    async with contextlib.AsyncExitStack() as stack:
        for node in nodes:
            await stack.enter_async_context(node)
        for node in nodes[1:]:
            await node.bootstrap([nodes[0].address])
        yield nodes
    assert [n for n in nodes if n.statistics().drops.get(Drop.BUG)] == []


async def announce_all(nodes: list[Directory]) -> None:
    """Each node announces itself for MODEL."""
    for node in nodes:
        assert await node.announce(info_of(node.peer_id)) > 0


async def kill(nodes: list[Directory]) -> None:
    """Close sockets without a word, as a crash does."""
    for node in nodes:
        await node.__aexit__()


async def until(condition: Callable[[], object], limit: float = 10.0) -> None:
    """Poll until `condition` holds."""
    async with asyncio.timeout(limit):
        while not condition():
            await asyncio.sleep(0.01)


def ids(found: list[PeerInfo]) -> set[PeerId]:
    return {info.peer_id for info in found}
