"""More records of a model than one key holds: they go deeper, and readers find them there."""

from __future__ import annotations

import asyncio
import itertools
import random

import pytest

from swarmd.blocks import Span
from swarmd.clock import ManualClock
from swarmd.dht.config import MAX_TTL
from swarmd.dht.envelope import Drop
from swarmd.dht.messages import Method, QueryRequest
from swarmd.dht.shards import BUCKETS, MAX_DEPTH, Ascent, Depth, Frontier, Shard
from swarmd.peers import ModelId, PeerInfo
from tests.conftest import Runner
from tests.dht.swarm import MODEL, directory_of, identity_of, ids, info_of, open_swarm
from tests.dht.test_hostile import protocol_of


def tries(ascent: Ascent, full: set[int]) -> list[int]:
    """The depths that an announcement tries where those in `full` have no room."""
    tried = []
    while ascent.at is not None:
        tried.append(ascent.at)
        ascent.tried(ascent.at in full)
    return tried


def test_what_a_writer_tries() -> None:
    """Each row of the table in `shards.py`."""
    depth = Depth(probe_period=100)
    assert tries(depth.ascend(0), set()) == [0]
    assert tries(depth.ascend(1), {0, 1}) == [0, 1, 2]
    assert depth.settled == 2
    assert tries(depth.ascend(2), {0, 1}) == [2]
    assert tries(depth.ascend(101), {0, 1}) == [1, 2]
    assert tries(depth.ascend(102), {0, 1}) == [2]
    assert tries(depth.ascend(202), {0}) == [1, 0]
    assert depth.settled == 1
    assert tries(depth.ascend(203), {0, 1}) == [1, 2]
    assert tries(depth.ascend(303), set()) == [1, 0]
    assert depth.settled == 0
    everything = set(range(MAX_DEPTH + 1))
    assert tries(depth.ascend(304), everything) == sorted(everything)
    assert depth.settled == 0


@pytest.mark.parametrize("n_blocks", [1, 7, 8, 30, 65535])
def test_every_shard_of_a_record_is_below_the_one_before(n_blocks: int) -> None:
    rng = random.Random(n_blocks)
    for seed in range(20):
        start = rng.randrange(n_blocks)
        info = info_of(identity_of(seed).peer_id, n_blocks=n_blocks, span=Span(start, n_blocks))
        chain = [Shard.of(info, depth) for depth in range(MAX_DEPTH + 1)]
        assert len({shard.key for shard in chain}) == len(chain)
        for above, below in itertools.pairwise(chain):
            assert below in above.children()
    assert chain[-1].children() == []
    assert len(Shard(MODEL).children()) == BUCKETS


def test_a_frontier_reads_all_within_its_budget() -> None:
    def walk(max_keys: int, max_records: int) -> tuple[int, int]:
        frontier = Frontier(MODEL, max_records=max_records, max_keys=max_keys, rng=random.Random(1))
        read: set[Shard] = set()
        while batch := frontier.next(8, 10 * len(read)):
            assert not read & set(batch)
            read |= set(batch)
            for shard in batch:
                frontier.read(shard, shard.depth < 3)
        return len(read), frontier.depth

    assert walk(1000, 100_000) == (1 + 8 + 16 + 32, 3)
    assert walk(20, 100_000)[0] == 20
    assert walk(1000, 50)[0] <= 16


async def announce_for(nodes: list, count: int, clock: ManualClock) -> set[bytes]:  # type: ignore[type-arg]
    """Records of `count` publishers beside the nodes, each written by a client of its own."""
    peers = set()
    for seed in range(1000, 1000 + count):
        async with directory_of(seed, clock=clock, serving=False, max_records_per_key=4) as client:
            await client.bootstrap([nodes[seed % len(nodes)].address])
            start = seed % 30
            assert await client.announce(info_of(client.peer_id, span=Span(start, 30))) > 0
            peers.add(client.peer_id)
    return peers


def test_a_hundred_publishers_with_four_places_a_key_are_all_found(run_async: Runner) -> None:
    async def main() -> None:
        clock = ManualClock()
        limits = {"max_records_per_key": 4, "fetch_keys": 500}
        async with open_swarm(12, clock=clock, **limits) as nodes:
            peers = await announce_for(nodes, 100, clock)
            for reader in (nodes[0], nodes[-1]):
                assert ids(await reader.fetch(MODEL)) == peers

    run_async(main())


def test_who_lies_deep_is_found_when_the_root_is_empty_and_moves_up(run_async: Runner) -> None:
    async def main() -> None:
        clock = ManualClock()
        limits = {"max_records_per_key": 2, "fetch_keys": 500}
        async with open_swarm(8, clock=clock, **limits) as nodes:
            late = nodes[5]
            for node in (nodes[1], nodes[2], late):
                assert await node.announce(info_of(node.peer_id)) == 8
            await nodes[1].withdraw()
            assert late._server is not None
            assert late._server._depth.settled == 1
            root = Shard(MODEL).key
            for _ in range(4):
                clock.advance(60)  # the others' records expire, but not that they sent us deeper
                await late.announce(info_of(late.peer_id))
                for node in nodes:
                    assert late.peer_id in ids(await node.fetch(MODEL))
            assert late._server._depth.settled == 0
            assert ids(await nodes[0].fetch(MODEL)) == {late.peer_id}
            clock.advance(MAX_TTL)
            for node in nodes:
                assert not protocol_of(node).storage.more(root, clock.wall())

    run_async(main())


def test_a_tombstone_reaches_a_record_that_lies_deep(run_async: Runner) -> None:
    async def main() -> None:
        async with open_swarm(6, max_records_per_key=2) as nodes:
            for node in nodes:
                assert await node.announce(info_of(node.peer_id)) == 6
            await nodes[4].withdraw()
            expected = {node.peer_id for node in nodes} - {nodes[4].peer_id}
            assert ids(await nodes[0].fetch(MODEL)) == expected

    run_async(main())


def test_a_liar_who_says_more_makes_no_work_alone_and_bounded_work_with_others(
    run_async: Runner,
) -> None:
    async def main() -> None:
        async with open_swarm(10, fetch_keys=16) as nodes:
            for node in nodes:
                await node.announce(info_of(node.peer_id))
            everybody = {node.peer_id for node in nodes}
            reader = nodes[-1]
            for liars in (1, 4):
                for node in nodes[:liars]:
                    lie(node)
                before = reader.statistics().datagrams_out
                async with asyncio.timeout(10):
                    assert ids(await reader.fetch(MODEL)) == everybody
                sent = reader.statistics().datagrams_out - before
                assert sent < (60 if liars == 1 else 16 * 60)
            assert Drop.BUG not in reader.statistics().drops

    run_async(main())


def lie(node: object) -> None:
    """From now on a node says `more` of every key."""
    protocol = protocol_of(node)  # type: ignore[arg-type]
    truth = protocol._answers.query

    def answer(values: object, host: tuple[str, int]) -> object:
        reply = truth(values, host)
        assert QueryRequest.parse(values) is None or reply is not None
        return reply and [*reply[:-1], True]

    protocol._answer[Method.QUERY] = answer  # type: ignore[assignment]


def test_a_fetch_ends_at_its_budget(run_async: Runner) -> None:
    async def main() -> None:
        async with open_swarm(10, max_records_per_key=2, fetch_records=4) as nodes:
            for node in nodes:
                assert await node.announce(info_of(node.peer_id)) > 0
            found: list[PeerInfo] = await nodes[0].fetch(MODEL)
            assert 2 <= len(found) < 10
            assert await nodes[0].fetch(ModelId(bytes(16))) == []

    run_async(main())
