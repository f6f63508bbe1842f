"""Announcing to and reading from a DHT: all found, how fast, and with how much traffic.

Nodes and clients of one process on real sockets on loopback. Some nodes serve the DHT; more
publishers than a key has places announce one model, so readers must follow the cascade. Then 30 %
of the serving nodes close their sockets without a word, and others read at once. The second swarm
is joined, written and read over an emulated WAN (one-way 10 to 60 ms, 1 % of the datagrams lost).
All share the cores of one interpreter, so times are pessimistic; datagrams and bytes (UDP payload,
sent by anybody while the operation ran) are exact. There is no baseline in the run: the package's
own figures for the same sizes are in the design notes, and its `set` cannot hold this data at all.

    python -m bench.dht [--nodes 100] [--announcers 300] [--fetches 30] [--links loopback WAN]
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import random
import statistics
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import uvloop

from bench.late_datagrams import Wan
from bench.report import save, show
from swarmd.blocks import Span
from swarmd.dht import DhtConfig, Directory
from swarmd.identity import Identity, PeerId
from swarmd.peers import Address, ModelId, PeerInfo, PeerState

__all__ = ["Operation", "measure"]

MODEL = ModelId(b"benchmark model!")
N_BLOCKS = 30
TTL = 300.0
"""Seconds: records must outlive the run, since killed publishers do not renew theirs."""
LINKS = {"loopback": None, "WAN": Wan()}
T = TypeVar("T")


@dataclass(slots=True)
class Operation:
    """Runs of one operation: seconds, datagrams, bytes, and whether each gave all it should."""

    seconds: list[float] = field(default_factory=list)
    datagrams: list[int] = field(default_factory=list)
    bytes: list[int] = field(default_factory=list)
    complete: int = 0

    def figures(self) -> dict[str, Any]:
        ordered = sorted(self.seconds)
        return {
            "runs": len(ordered),
            "complete": self.complete,
            "p50_s": statistics.median(ordered),
            "p99_s": ordered[min(len(ordered) - 1, int(0.99 * len(ordered)))],
            "max_s": ordered[-1],
            "datagrams": statistics.median(self.datagrams),
            "bytes": statistics.median(self.bytes),
        }


def announcement(peer: PeerId, number: int) -> PeerInfo:
    """Of the publisher `number`; its first block is spread over the model."""
    start = number * 7 % N_BLOCKS
    return PeerInfo(
        peer_id=peer,
        address=Address("127.0.0.1", 31330),
        model_id=MODEL,
        model_name="bench",
        n_blocks=N_BLOCKS,
        span=Span(start, N_BLOCKS),
        state=PeerState.ONLINE,
        decode_us=800,
        prefill_us=90,
        kv_free=4096,
        dtype="float32",
    )


class Swarm:
    """`nodes` serving ones, then clients up to `announcers`, all open."""

    def __init__(self, members: list[Directory], serving: int) -> None:
        self.members = members
        self.serving = members[:serving]

    def traffic(self) -> tuple[int, int]:
        counts = [node.statistics() for node in self.members]
        return sum(c.datagrams_out for c in counts), sum(c.bytes_out for c in counts)

    async def timed(self, into: Operation, work: Callable[[], Awaitable[T]]) -> T:
        """Run one operation while nothing else goes on."""
        await self.quiet()
        before, began = self.traffic(), time.perf_counter()
        result = await work()
        into.seconds.append(time.perf_counter() - began)
        after = self.traffic()
        into.datagrams.append(after[0] - before[0])
        into.bytes.append(after[1] - before[1])
        return result

    async def quiet(self) -> None:
        """Wait, for a while, until nobody waits for a reply."""
        for _ in range(300):
            if not any(node.statistics().pending for node in self.members):
                return
            await asyncio.sleep(0.01)


async def side_by_side(limit: int, work: Sequence[Callable[[], Awaitable[object]]]) -> None:
    gate = asyncio.Semaphore(limit)

    async def run(one: Callable[[], Awaitable[object]]) -> None:
        async with gate:
            await one()

    await asyncio.gather(*(run(one) for one in work))


async def measure(
    nodes: int,
    announcers: int,
    fetches: int,
    *,
    wan: Wan | None,
    seed: int = 1,
    cap: int = 128,
    announces: int = 20,
) -> dict[str, Any]:
    """Figures of each operation. `announces`: how many announcements are timed; `cap`:
    records that a holder keeps under one key."""
    rng = random.Random(seed)
    cold, steady, alive, killed = Operation(), Operation(), Operation(), Operation()
    async with contextlib.AsyncExitStack() as stack:
        members: list[Directory] = []
        for number in range(max(nodes, announcers)):
            config = DhtConfig(ttl=TTL, serving=number < nodes, max_records_per_key=cap)
            node = Directory(config, Identity(rng.randbytes(32)), rng=random.Random(rng.random()))
            members.append(await stack.enter_async_context(node))
            if wan is not None:
                wan.apply(node, rng)
        swarm = Swarm(members, nodes)

        async def join(node: Directory) -> None:
            known = rng.sample(swarm.serving[: max(3, nodes // 10)], 3)
            await node.bootstrap([n.address for n in known if n is not node])

        for node in swarm.serving[1 : max(3, nodes // 10)]:
            await node.bootstrap([members[0].address])
        late = members[max(3, nodes // 10) :]
        await side_by_side(16, [lambda n=n: join(n) for n in late])  # type: ignore[misc]
        publishers = list(enumerate(members[:announcers]))
        expected = {node.peer_id for _, node in publishers}

        async def announce(number: int, node: Directory) -> None:
            holders = await node.announce(announcement(node.peer_id, number))
            if holders < 1:
                raise SystemExit(f"publisher {number} found no holder")

        measured = publishers[-min(announces, announcers) :]
        rest = publishers[: announcers - len(measured)]
        await side_by_side(16, [lambda n=n, d=d: announce(n, d) for n, d in rest])  # type: ignore[misc]
        for into in (cold, steady):
            for number, node in measured:
                await swarm.timed(into, lambda n=number, d=node: announce(n, d))  # type: ignore[misc]
                into.complete += 1

        async def fetch(into: Operation, reader: Directory) -> None:
            found = await swarm.timed(into, lambda: reader.fetch(MODEL))
            into.complete += {info.peer_id for info in found} == expected

        for reader in rng.choices(members, k=fetches):
            await fetch(alive, reader)
        dead = set(rng.sample(range(nodes), round(0.3 * nodes)))
        for number in dead:
            await members[number].__aexit__()
        swarm.members = [node for n, node in enumerate(members) if n not in dead]
        for reader in rng.sample(swarm.members, min(fetches, len(swarm.members))):
            await fetch(killed, reader)
    operations = {
        "announce, cold": cold,
        "announce, steady": steady,
        "fetch, all alive": alive,
        "fetch, 30 % just killed": killed,
    }
    return {name: operation.figures() for name, operation in operations.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--nodes", type=int, default=100, help="that serve the DHT")
    parser.add_argument("--announcers", type=int, default=300)
    parser.add_argument("--fetches", type=int, default=30)
    parser.add_argument("--links", nargs="+", choices=LINKS, default=list(LINKS))
    options = parser.parse_args()
    sizes = (options.nodes, options.announcers, options.fetches)
    figures, rows = {}, []
    for link in options.links:
        figures[link] = uvloop.run(measure(*sizes, wan=LINKS[link]))
        for name, f in figures[link].items():
            rows.append(
                (
                    f"{link}: {name}",
                    f"{f['complete']}/{f['runs']}",
                    f"{1000 * f['p50_s']:.0f} ms",
                    f"{1000 * f['p99_s']:.0f} ms",
                    f"{f['datagrams']:.0f}",
                    f"{f['bytes'] / 1024:.1f} KiB",
                )
            )
    show(
        f"{options.announcers} announcers on {options.nodes} DHT nodes, one process",
        ("operation", "complete", "p50", "p99", "datagrams", "bytes"),
        rows,
    )
    settings = {**vars(options), "ttl_s": TTL, "wan": "one-way 10..60 ms, 1 % loss", "seed": 1}
    save("dht", settings, figures)


if __name__ == "__main__":
    main()
