"""Mutated datagrams against a live DHT node: nothing raises, nothing is logged, memory stays flat.

What is fed: bytes of outsiders, insiders' garbage under a good tag, requests and replies with bytes
flipped or fields of wrong types, records with a broken signature, and true ones among them. The
node answers what it must, to a port of this machine where nobody listens.

    python -m bench.fuzz [--datagrams 1000000] [--seed 1]
"""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import hashlib
import logging
import os
import random
import time
import tracemalloc
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import msgpack
import psutil
import uvloop
from kademlia.node import Node

from bench.dht import MODEL, announcement
from bench.report import save, show
from swarmd.dht import DhtConfig, Directory
from swarmd.dht.envelope import Drop, Kind, datagram_keys, seal
from swarmd.dht.messages import QueryRequest, Want
from swarmd.dht.protocol import SwarmProtocol
from swarmd.dht.records import INDEX_KEY, pack
from swarmd.dht.shards import Shard
from swarmd.identity import Identity

__all__ = ["Report", "fuzz_datagrams"]

SENDER = ("127.0.0.1", 9)
BATCH = 100
WAITING = 10
"""Datagrams fed between two turns of the loop, and queries that wait for a reply meanwhile."""
WRONG: list[Any] = [None, True, -1, 0, 2**64 - 1, 1.5, "x", b"", b"x" * 20, [], [[]], b"y" * 600]


@dataclass(frozen=True, slots=True)
class Report:
    """What a run found. `bugs` are exceptions that no parser expected; memory in bytes."""

    datagrams: int
    bugs: int
    log_lines: int
    us_each: float
    rss_growth: int
    heap_growth: int
    drops: dict[str, int]
    answered: int


class Mutator:
    """Datagrams, each from one of the kinds in the module's docstring."""

    def __init__(self, rng: random.Random, protocol: SwarmProtocol, config: DhtConfig) -> None:
        self._rng = rng
        self._protocol = protocol
        self._keys = datagram_keys(config.keys)
        self._token = protocol._answers._mint.mint(SENDER[0], time.monotonic())
        publisher = Identity(rng.randbytes(32))
        info = announcement(publisher.peer_id, 1)
        now = time.time()
        self._record = pack(_stamped(info, now), publisher, config.swarm_id)
        self._model_key = Shard.of(info, 0).key
        self._kinds: list[Callable[[], bytes]] = [
            self._outsider,
            self._insider,
            self._flipped_request,
            self._flipped_request,
            self._mistyped_request,
            self._mistyped_request,
            self._reply,
            self._broken_record,
        ]

    def next(self) -> bytes:
        return self._rng.choice(self._kinds)()

    def _sealed(self, kind: int, body: bytes, message_id: bytes = b"12345678") -> bytes:
        """Any bytes as a body, with a good tag."""
        data = bytes([kind]) + message_id + body[:1200]
        return data + hashlib.blake2b(data, key=self._keys[0], digest_size=16).digest()

    def _outsider(self) -> bytes:
        return self._rng.randbytes(self._rng.choice((0, 5, 26, 80, 300, 1250, 1251, 4000)))

    def _insider(self) -> bytes:
        size = self._rng.randrange(1, 200)
        nested = b"\x91" * size if self._rng.random() < 0.3 else self._rng.randbytes(size)
        return self._sealed(self._rng.choice((0, 1, 2, 255)), nested)

    def _request(self) -> list[Any]:
        rng = self._rng
        sender = rng.choice((b"", b"", rng.randbytes(20)))
        method = rng.randint(1, 3)
        if method == 1:
            return [1, sender, [b"n" * 16]]
        if method == 2:
            key = rng.choice((self._model_key, INDEX_KEY, rng.randbytes(20)))
            query = QueryRequest(key, Want(rng.randrange(4)), self._token, have=rng.randbytes(16))
            return [2, sender, query.pack()]
        return [3, sender, [self._model_key, self._token, self._record]]

    def _flipped_request(self) -> bytes:
        body = bytearray(msgpack.packb(self._request()))
        for _ in range(self._rng.randrange(4)):  # none at times: a true request
            body[self._rng.randrange(len(body))] = self._rng.randrange(256)
        if self._rng.random() < 0.2:
            body = body[: self._rng.randrange(len(body))]
        return self._sealed(Kind.REQUEST, bytes(body))

    def _mistyped_request(self) -> bytes:
        request = self._request()
        part = request if self._rng.random() < 0.3 else request[2]
        part[self._rng.randrange(len(part))] = self._rng.choice(WRONG)
        return self._sealed(Kind.REQUEST, msgpack.packb(request))

    def _reply(self) -> bytes:
        """To a request that really waits, if there is one, as if from the address asked."""
        waiting = list(self._protocol._pending)
        good = [b"", b"t" * 8, 3, 5, 0, [self._record], False]
        good[self._rng.randrange(len(good))] = self._rng.choice(WRONG)
        message_id = self._rng.choice(waiting) if waiting else b"87654321"
        return self._sealed(Kind.REPLY, msgpack.packb([b"a" * 20, good]), message_id)

    def _broken_record(self) -> bytes:
        record = bytearray(self._record)
        record[self._rng.randrange(len(record))] ^= 1 << self._rng.randrange(8)
        body = [3, b"", [self._model_key, self._token, bytes(record)]]
        return seal(self._keys[0], Kind.REQUEST, b"12345678", body)


def _stamped(info: Any, now: float) -> Any:
    return dataclasses.replace(
        info, sequence=int(now * 1000), announced_at=now, expires_at=now + 290
    )


class _Lines(logging.Handler):
    """Counts log lines of any level from swarmd, asyncio and the packages below it."""

    def __init__(self) -> None:
        super().__init__(logging.DEBUG)
        self.count = 0

    def emit(self, record: logging.LogRecord) -> None:
        self.count += 1


async def fuzz_datagrams(count: int, seed: int) -> Report:
    """Feed `count` datagrams to one open node, in batches that let its tasks run."""
    rng = random.Random(seed)
    lines = _Lines()
    logging.getLogger().addHandler(lines)
    config = DhtConfig()
    spent = 0.0
    try:
        async with Directory(config, Identity(rng.randbytes(32))) as node:
            await node.announce(announcement(node.peer_id, 0))
            assert node._server is not None
            protocol: SwarmProtocol = node._server.protocol
            mutator = Mutator(rng, protocol, config)
            warm = count // 2
            rss = heap = 0
            for start in range(0, count, BATCH):
                if start >= warm and not rss:  # the memories with a bound have filled by then
                    rss = psutil.Process(os.getpid()).memory_info().rss
                    heap = tracemalloc.get_traced_memory()[0] if tracemalloc.is_tracing() else 0
                asked = Node(b"a" * 20, *SENDER)
                calls = [
                    protocol.call_query(asked, QueryRequest(b"k" * 20, Want.NODES))
                    for _ in range(WAITING)
                ]
                tasks = [protocol.spawn(call, "query") for call in calls]
                await asyncio.sleep(0)
                batch = [mutator.next() for _ in range(min(BATCH, count - start))]
                began = time.perf_counter()
                for data in batch:
                    protocol.datagram_received(data, SENDER)
                spent += time.perf_counter() - began
                await asyncio.sleep(0)
                for _ in range(5):  # what was answered is parsed and judged; the rest is given up
                    await asyncio.sleep(0)
                for task in tasks:
                    task.cancel()
                await asyncio.wait(tasks)
            rss = psutil.Process(os.getpid()).memory_info().rss - rss
            if tracemalloc.is_tracing():
                heap = tracemalloc.get_traced_memory()[0] - heap
            drops = dict(node.statistics().drops)
            answered = node.statistics().datagrams_out
            assert not protocol.transport.is_closing()
            found = {info.peer_id for info in await node.fetch(MODEL)}
            assert node.peer_id in found, "the node no longer works"
    finally:
        logging.getLogger().removeHandler(lines)
    return Report(
        datagrams=count,
        bugs=drops.get(str(Drop.BUG), 0),
        log_lines=lines.count,
        us_each=1e6 * spent / count,
        rss_growth=rss,
        heap_growth=heap,
        drops=drops,
        answered=answered,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--datagrams", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    report = uvloop.run(fuzz_datagrams(options.datagrams, options.seed))
    rows = [
        ("datagrams", f"{report.datagrams:,}"),
        ("unexpected exceptions", report.bugs),
        ("log lines", report.log_lines),
        ("time each", f"{report.us_each:.0f} µs"),
        ("memory, second half", f"{report.rss_growth / 2**20:+.1f} MiB"),
        ("answered", f"{report.answered:,}"),
        *((f"dropped: {reason}", f"{number:,}") for reason, number in report.drops.items()),
    ]
    show("mutated datagrams against one DHT node", ("what", "figure"), rows)
    figures = {
        "us_each": report.us_each,
        "rss_growth_bytes": report.rss_growth,
        "bugs": report.bugs,
        "log_lines": report.log_lines,
        "answered": report.answered,
        "drops": report.drops,
    }
    save("fuzz", vars(options), figures)
    if report.bugs or report.log_lines:
        raise SystemExit("a datagram met a bug; run again with the seed under a debugger")


if __name__ == "__main__":
    main()
