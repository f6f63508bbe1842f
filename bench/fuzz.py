"""Mutated datagrams against a live DHT node: nothing raises, nothing is logged, memory stays flat.

What is fed: bytes of outsiders, insiders' garbage under a good tag, requests and replies with bytes
flipped or fields of wrong types, records with a broken signature, and true ones among them. The
replies are to requests that really wait: PING, QUERY and PUT in turn, asked of a peer that the
mutator plays, at a port of this machine where nobody listens. Where a true reply was mutated, the
records in it are judged as in a lookup. The time is that of all this, up to the last turn of the
loop in which a datagram is still at work.

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
from collections import Counter
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any

import msgpack
import psutil
import uvloop
from kademlia.node import Node

from bench.dht import MODEL, announcement
from bench.report import save, show
from swarmd.clock import SystemClock
from swarmd.dht import DhtConfig, Directory
from swarmd.dht.addresses import pack_nodes
from swarmd.dht.envelope import Drop, Kind, Message, datagram_keys, seal, unseal
from swarmd.dht.messages import Method, PutRequest, QueryRequest, Want, ping_message
from swarmd.dht.protocol import SwarmProtocol
from swarmd.dht.reading import Reading
from swarmd.dht.records import INDEX_KEY, pack
from swarmd.dht.shards import Shard
from swarmd.dht.storage import PutStatus
from swarmd.identity import Identity

__all__ = ["Report", "fuzz_datagrams"]

SENDER = ("127.0.0.1", 9)
BATCH = 100
WAITING = 40
"""Datagrams fed between two turns of the loop, and requests that wait for a reply meanwhile."""
TURNS = 6
"""Turns of the loop after which a reply was parsed and its records were judged."""
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
    replies: dict[str, int]
    """What became of the replies to requests that waited, by kind: those `accepted` as good, those
    `refused` by the sender's id or the parser (others were dropped before, see `drops`)."""


class Mutator:
    """Datagrams, each from one of the kinds in the module's docstring."""

    def __init__(self, rng: random.Random, protocol: SwarmProtocol, config: DhtConfig) -> None:
        self._rng = rng
        self._protocol = protocol
        self.keys = datagram_keys(config.keys)
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
            self._reply,
            self._reply,
            self._broken_record,
        ]
        self.peer = Identity(rng.randbytes(32))
        """Who is asked, at `SENDER`."""
        self.waiting: dict[bytes, tuple[int, Any]] = {}
        """Requests to it, by message id: the method, and the arguments."""
        self._swarm_id = config.swarm_id

    def next(self) -> bytes:
        return self._rng.choice(self._kinds)()

    def _sealed(self, kind: int, body: bytes, message_id: bytes = b"12345678") -> bytes:
        """Any bytes as a body, with a good tag."""
        data = bytes([kind]) + message_id + body[:1200]
        return data + hashlib.blake2b(data, key=self.keys[0], digest_size=16).digest()

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
        rng = self._rng
        if not self.waiting:
            return self._sealed(Kind.REPLY, msgpack.packb([b"a" * 20, []]), b"87654321")
        message_id = rng.choice(list(self.waiting))
        reply: list[Any] = [self.peer.peer_id, self._values(*self.waiting.pop(message_id))]
        fault = rng.randrange(6)  # none where it is 0
        if fault == 1:
            reply[rng.randrange(2)] = rng.choice(WRONG)
        elif fault in (2, 3):
            reply[1][rng.randrange(len(reply[1]))] = rng.choice(WRONG)
        elif fault == 4:
            reply[1] = reply[1][:-1] if rng.random() < 0.5 else [*reply[1], rng.choice(WRONG)]
        body = bytearray(msgpack.packb(reply))
        if fault == 5:
            for _ in range(rng.randint(1, 3)):
                body[rng.randrange(len(body))] = rng.randrange(256)
        return self._sealed(Kind.REPLY, bytes(body), message_id)

    def _values(self, method: int, arguments: Any) -> list[Any]:
        """A true reply to a request."""
        if method == Method.PING:
            clock_ms = int(time.time() * 1000)
            signed = self.peer.sign(ping_message(self._swarm_id, arguments[0], clock_ms))
            return [self.peer.public_key, signed, clock_ms]
        if method == Method.PUT:
            return [int(self._rng.choice(list(PutStatus))), 5, self._record]
        nodes = [(self._rng.randbytes(20), SENDER[0], 1024 + n) for n in range(3)]
        return [pack_nodes(nodes), b"t" * 8, 3, 5, 0, [self._record], False]

    def _broken_record(self) -> bytes:
        record = bytearray(self._record)
        record[self._rng.randrange(len(record))] ^= 1 << self._rng.randrange(8)
        body = [3, b"", [self._model_key, self._token, bytes(record)]]
        return seal(self.keys[0], Kind.REQUEST, b"12345678", body)


def _stamped(info: Any, now: float) -> Any:
    return dataclasses.replace(
        info, sequence=int(now * 1000), announced_at=now, expires_at=now + 290
    )


class Tap:
    """A transport that notes the requests to `SENDER` on their way out."""

    def __init__(self, transport: Any, mutator: Mutator) -> None:
        self.requests = 0
        self._transport = transport
        self._mutator = mutator

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def sendto(self, data: bytes, addr: tuple[str, int]) -> bool:
        message = unseal(self._mutator.keys, data)
        if addr == SENDER and isinstance(message, Message) and message.kind is Kind.REQUEST:
            method, _, arguments = message.body
            assert isinstance(method, int)
            self.requests += 1
            self._mutator.waiting[message.message_id] = (method, arguments)
        sent: bool = self._transport.sendto(data, addr)
        return sent


class Asker:
    """Asks `SENDER`, and does with the replies what a lookup or a write does."""

    def __init__(self, protocol: SwarmProtocol, peer: Identity) -> None:
        self.results: Counter[str] = Counter()
        self._protocol = protocol
        self._node = Node(bytes(peer.peer_id), *SENDER)

    def calls(self) -> list[Coroutine[Any, Any, None]]:
        """One of each."""
        return [self._ping(), self._query(), self._put()]

    async def _ping(self) -> None:
        self._count("ping", await self._protocol.call_ping(self._node))

    async def _query(self) -> None:
        query = QueryRequest(b"k" * 20, Want.NODES)
        reply = await self._protocol.call_query(self._node, query)
        self._count("query", reply)
        if reply is not None:
            Reading(query.key, self._protocol.reader, SystemClock()).take(reply.records)

    async def _put(self) -> None:
        put = PutRequest(b"k" * 20, b"t" * 8, b"r" * 300)
        reply = await self._protocol.call_put(self._node, put)
        self._count("put", reply)
        if reply is not None:
            self._protocol.reader.parse(reply.held, time.time())

    def _count(self, method: str, reply: object | None) -> None:
        self.results[f"{method}, {'refused' if reply is None else 'accepted'}"] += 1


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
            asker = Asker(protocol, mutator.peer)
            protocol.transport = tap = Tap(protocol.transport, mutator)
            warm = count // 2
            rss = heap = 0
            for start in range(0, count, BATCH):
                if start >= warm and not rss:  # the memories with a bound have filled by then
                    rss = psutil.Process(os.getpid()).memory_info().rss
                    heap = tracemalloc.get_traced_memory()[0] if tracemalloc.is_tracing() else 0
                calls = [call for _ in range(WAITING // 3) for call in asker.calls()]
                tasks = [protocol.spawn(call, "request") for call in calls]
                await asyncio.sleep(0)
                batch = [mutator.next() for _ in range(min(BATCH, count - start))]
                began = time.perf_counter()
                for data in batch:
                    protocol.datagram_received(data, SENDER)
                for _ in range(TURNS):  # the rest of the requests is given up
                    await asyncio.sleep(0)
                spent += time.perf_counter() - began
                for task in tasks:
                    task.cancel()
                await asyncio.wait(tasks)
                mutator.waiting.clear()
            rss = psutil.Process(os.getpid()).memory_info().rss - rss
            if tracemalloc.is_tracing():
                heap = tracemalloc.get_traced_memory()[0] - heap
            drops = dict(node.statistics().drops)
            answered = node.statistics().datagrams_out - tap.requests
            assert not protocol.transport.is_closing()
            await node.announce(announcement(node.peer_id, 0))  # the first may have expired
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
        replies=dict(sorted(asker.results.items())),
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
        *((f"reply to {what}", f"{number:,}") for what, number in report.replies.items()),
    ]
    show("mutated datagrams against one DHT node", ("what", "figure"), rows)
    figures = {
        "us_each": report.us_each,
        "rss_growth_bytes": report.rss_growth,
        "bugs": report.bugs,
        "log_lines": report.log_lines,
        "answered": report.answered,
        "drops": report.drops,
        "replies": report.replies,
    }
    save("fuzz", vars(options), figures)
    if report.bugs or report.log_lines:
        raise SystemExit("a datagram met a bug; run again with the seed under a debugger")


if __name__ == "__main__":
    main()
