"""Lookups and the cascade of keys at sizes that no machine can run, with the real pure classes.

Lookups: `MergeCrawl` over `Router` tables, with a network that answers at once. Tables are ideal:
up to 20 random peers of each distance. With 30 % dead, tables still name the dead. Cascade:
publishers with `Depth` write to one ideal holder of each key (`RecordStorage`), a `Frontier` reads,
then half the publishers die and the others renew each minute until the dead have expired.

    python -m bench.dht_scale [--sizes 1000 10000 100000] [--lookups 200]
"""

from __future__ import annotations

import argparse
import asyncio
import bisect
import dataclasses
import random
import statistics
from collections.abc import Coroutine
from typing import Any

from kademlia.node import Node

from bench.dht import announcement
from bench.report import save, show
from swarmd.dht.config import MAX_TTL, DhtConfig
from swarmd.dht.crawl import MergeCrawl
from swarmd.dht.messages import QueryReply, QueryRequest
from swarmd.dht.patience import Patience
from swarmd.dht.records import Record
from swarmd.dht.shards import Depth, Frontier, Shard
from swarmd.dht.storage import PutStatus, RecordStorage
from swarmd.dht.table import Router
from swarmd.identity import PeerId
from swarmd.peers import PeerInfo

__all__ = ["simulate_cascade", "simulate_lookups"]

BITS = 160
K = 20
WANT = 8
NOW = 1_700_000_000.0
PERIOD = 60.0


class Network:
    """Peers with ideal tables, made when they are first asked. Stands in for `SwarmProtocol`."""

    def __init__(self, size: int, dead: float, rng: random.Random) -> None:
        self.ids = sorted(rng.getrandbits(BITS) for _ in range(size))
        self.dead = set(rng.sample(self.ids, int(dead * size)))
        self.patience = Patience(DhtConfig(initial_rtt=100.0, max_rto=1000.0))  # nobody is late
        self.requests = 0
        self._rng = rng
        self._tables: dict[int, Router] = {}

    def table(self, own: int) -> Router:
        """The table of one peer: for each length of common prefix up to K of those who share it."""
        if own not in self._tables:
            router = Router(None, K, node_of(own))
            for shared in range(BITS):
                low = (own >> (BITS - shared - 1) ^ 1) << (BITS - shared - 1)
                first = bisect.bisect_left(self.ids, low)
                last = bisect.bisect_left(self.ids, low + (1 << (BITS - shared - 1)))
                there = range(first, last)
                for at in self._rng.sample(there, min(K, len(there))):
                    router.add_contact(node_of(self.ids[at]))
                mask = own >> (BITS - shared - 1) << (BITS - shared - 1)
                if (
                    bisect.bisect_left(self.ids, mask + (1 << (BITS - shared - 1)))
                    - (bisect.bisect_left(self.ids, mask))
                    <= 1
                ):
                    break  # nobody but ourselves is nearer
            self._tables[own] = router
        return self._tables[own]

    def nearest_alive(self, key: int, count: int) -> set[int]:
        at = bisect.bisect_left(self.ids, key)
        around = 40 * count  # by far wide enough: the nearest by XOR share the longest prefix
        near = [n for n in self.ids[max(0, at - around) : at + around] if n not in self.dead]
        return set(sorted(near, key=lambda n: n ^ key)[:count])

    # what MergeCrawl asks of a protocol

    def spawn(self, coro: Coroutine[Any, Any, Any], name: str) -> asyncio.Task[Any]:
        return asyncio.get_running_loop().create_task(coro, name=name)

    def token_of(self, node: Node) -> None:
        return None

    def believes(self, informant: Node, node: Node) -> bool:
        return True

    async def call_query(self, node: Node, query: QueryRequest) -> QueryReply | None:
        self.requests += 1
        await asyncio.sleep(0)
        if node.long_id in self.dead:
            return None
        near = self.table(node.long_id).find_neighbors(Node(query.key), K)
        return QueryReply([(PeerId(n.id), n.ip, n.port) for n in near], b"t" * 8, 0, 0, 0, ())


def node_of(number: int) -> Node:
    """A peer; its address follows from its id, and is private, so that no cap holds."""
    low = number & 0xFFFFFF
    host = f"10.{low >> 16}.{low >> 8 & 255}.{low & 255}"
    return Node(number.to_bytes(20, "big"), host, 1024 + (number >> 24) % 60000)


async def simulate_lookups(size: int, lookups: int, dead: float, seed: int) -> dict[str, float]:
    """Requests of one lookup (mean, largest), and the share of the true nearest that it found."""
    rng = random.Random(seed)
    network = Network(size, dead, rng)
    alive = [n for n in network.ids if n not in network.dead]
    requests, recalls = [], []
    for _ in range(lookups):
        target = Node(rng.randbytes(20))
        start = network.table(rng.choice(alive)).find_neighbors(target, K)
        network.requests = 0
        crawl = MergeCrawl(network, target, start, K, 3, want=WANT, timeout=60.0)  # type: ignore[arg-type]
        found = {node.long_id for node, _ in await crawl.find()}
        requests.append(network.requests)
        recalls.append(len(found & network.nearest_alive(target.long_id, WANT)) / WANT)
    return {
        "requests": statistics.mean(requests),
        "most_requests": max(requests),
        "recall": statistics.mean(recalls),
    }


class Publisher:
    """One peer that announces: its record, and how deep it lies."""

    def __init__(self, number: int, rng: random.Random, config: DhtConfig) -> None:
        self._info = announcement(PeerId(rng.randbytes(20)), number)
        self._raw = rng.randbytes(8)
        self._depth = Depth(config.probe_period)
        self.puts = 0

    def announce(self, storage: RecordStorage, now: float, ttl: float) -> None:
        info = _stamped(self._info, now, ttl)
        record = Record(info, self._raw, hash(self._raw))
        ascent = self._depth.ascend(now)
        while ascent.at is not None:
            self.puts += 1
            status = storage.put(Shard.of(info, ascent.at).key, record, now).status
            ascent.tried(status is PutStatus.FULL)


def _stamped(info: PeerInfo, now: float, ttl: float) -> PeerInfo:
    return dataclasses.replace(
        info, sequence=int(now * 1000), announced_at=now, expires_at=now + ttl
    )


def read(
    storage: RecordStorage, now: float, rng: random.Random, *, records: int, keys: int
) -> tuple[set[PeerId], Frontier]:
    """What one fetch finds, within a budget."""
    frontier = Frontier(announcement(PeerId(bytes(20)), 0).model_id, max_records=records,
                        max_keys=keys, rng=rng)  # fmt: skip
    found: set[PeerId] = set()
    while shards := frontier.next(8, len(found)):
        for shard in shards:
            found |= {record.info.peer_id for record in storage.live(shard.key, now)}
            frontier.read(shard, storage.more(shard.key, now))
    return found, frontier


def simulate_cascade(size: int, seed: int) -> dict[str, float]:
    """Depth, keys and puts for `size` publishers of one model, and what share a reader finds."""
    rng = random.Random(seed)
    config = DhtConfig(max_records=100 * size, max_remembered=1_000_000)
    storage = RecordStorage(config)
    publishers = [Publisher(n, rng, config) for n in range(size)]
    for publisher in publishers:
        publisher.announce(storage, NOW, config.ttl)
    cold = statistics.mean(p.puts for p in publishers)
    everything, frontier = read(storage, NOW, rng, records=10 * size, keys=10 * size)
    sample, budget = read(storage, NOW, rng, records=config.fetch_records, keys=config.fetch_keys)
    survivors = rng.sample(publishers, size // 2)
    for publisher in survivors:
        publisher.puts = 0
    now, worst = NOW, 1.0
    expected = {p._info.peer_id for p in survivors}
    for _ in range(int(2 * MAX_TTL / PERIOD)):
        now += PERIOD
        for publisher in survivors:
            publisher.announce(storage, now, config.ttl)
        found, after = read(storage, now, rng, records=10 * size, keys=10 * size)
        worst = min(worst, len(found & expected) / len(expected))
    rounds = int(2 * MAX_TTL / PERIOD)
    return {
        "depth": frontier.depth,
        "keys": frontier.keys,
        "found": len(everything) / size,
        "cold_puts": cold,
        "sampled": len(sample),
        "sample_keys": budget.keys,
        "worst_found_after_half_died": worst,
        "renewal_puts": statistics.mean(p.puts for p in survivors) / rounds,
        "depth_after": after.depth,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", type=int, nargs="+", default=[1000, 10_000, 100_000])
    parser.add_argument("--lookups", type=int, default=200)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    figures: dict[str, Any] = {}
    lookup_rows, cascade_rows = [], []
    for size in options.sizes:
        of: dict[str, Any] = {}
        for dead in (0.0, 0.3):
            one = asyncio.run(simulate_lookups(size, options.lookups, dead, options.seed))
            of[f"lookup, {dead:.0%} dead"] = one
            lookup_rows.append(
                (f"{size:,}, {dead:.0%} dead", f"{one['requests']:.1f}", one["most_requests"],
                 f"{one['recall']:.4f}")
            )  # fmt: skip
        of["cascade"] = one = simulate_cascade(size, options.seed)
        cascade_rows.append(
            (f"{size:,}", one["depth"], one["keys"], f"{one['found']:.4f}",
             f"{one['cold_puts']:.1f}", f"{one['sampled']} in {one['sample_keys']} keys",
             f"{one['worst_found_after_half_died']:.4f}", f"{one['renewal_puts']:.2f}")
        )  # fmt: skip
        figures[str(size)] = of
    show("lookups of the 8 nearest alive", ("peers", "requests", "most", "recall"), lookup_rows)
    headings = ("publishers of one model", "depth", "keys", "found", "cold puts", "sample",
                "found, half dead", "puts a renewal")  # fmt: skip
    show("the cascade, one ideal holder a key", headings, cascade_rows)
    save("dht_scale", vars(options), figures)


if __name__ == "__main__":
    main()
