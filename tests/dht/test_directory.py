"""The directory as the rest of swarmd uses it."""

from __future__ import annotations

import asyncio
import dataclasses
from typing import Any

import pytest

from swarmd.clock import ManualClock
from swarmd.dht import DhtConfig, DhtStatistics
from swarmd.dht.records import INDEX_KEY, Record, pack, parse
from swarmd.dht.shards import Shard
from swarmd.errors import BootstrapFailed, DhtError, PortInUse, UsageError
from swarmd.identity import PeerId
from swarmd.peers import ModelId, PeerState
from swarmd.swarm_key import KeyRing, SwarmKey
from tests.conftest import Runner
from tests.dht.swarm import (
    CONFIG,
    MODEL,
    NO_HOST,
    OTHER,
    announce_all,
    directory_of,
    identity_of,
    ids,
    info_of,
    open_swarm,
    record_of,
)


def test_every_node_finds_every_other(run_either: Runner) -> None:
    async def main() -> None:
        async with open_swarm(12) as nodes:
            await announce_all(nodes)
            everybody = {node.peer_id for node in nodes}
            for node in nodes:
                found = await node.fetch(MODEL)
                assert ids(found) == everybody
                assert [info.peer_id for info in found] == sorted(everybody)

    run_either(main())


def test_what_was_announced_is_what_is_fetched(run_async: Runner) -> None:
    async def main() -> None:
        clock = ManualClock()
        async with open_swarm(3, clock=clock) as nodes:
            info = info_of(nodes[1].peer_id)
            assert await nodes[1].announce(info) == 3
            (found,) = await nodes[2].fetch(MODEL)
            assert found == dataclasses.replace(
                info,
                sequence=int(clock.now * 1000),
                announced_at=clock.now,
                expires_at=clock.now + CONFIG.ttl,
            )
            changed = dataclasses.replace(info, state=PeerState.DRAINING, kv_free=7)
            assert await nodes[1].announce(changed) == 3
            (found,) = await nodes[2].fetch(MODEL)
            assert (found.state, found.kv_free) == (PeerState.DRAINING, 7)
            assert found.sequence == int(clock.now * 1000) + 1

    run_async(main())


def test_a_lone_node_works(run_async: Runner) -> None:
    async def main() -> None:
        async with directory_of(1) as node, directory_of(2, serving=False) as client:
            assert await node.bootstrap([]) == 0
            assert await node.announce(info_of(node.peer_id)) == 1
            assert ids(await node.fetch(MODEL)) == {node.peer_id}
            assert await client.bootstrap([node.address]) == 1
            assert ids(await client.fetch(MODEL)) == {node.peer_id}
            assert await client.models() == {MODEL: "tiny-llama"}

    run_async(main())


def test_announcing_before_the_swarm_grows(run_async: Runner) -> None:
    """Nodes that come later and are nearer to the key are handed the record by its publisher."""

    async def main() -> None:
        nodes = [directory_of(seed, repair_delay=0.05) for seed in range(20)]
        for node in nodes:
            await node.__aenter__()
            if node is not nodes[0]:
                await node.bootstrap([nodes[0].address])
            await node.announce(info_of(node.peer_id))
        everybody = {node.peer_id for node in nodes}
        async with asyncio.timeout(10), directory_of(99, serving=False) as client:
            await client.bootstrap([nodes[7].address])
            while ids(await client.fetch(MODEL)) != everybody:
                await asyncio.sleep(0.05)
        for node in nodes:
            await node.__aexit__()

    run_async(main())


def test_models(run_async: Runner) -> None:
    async def main() -> None:
        async with open_swarm(10) as nodes:
            for node in nodes[:7]:
                await node.announce(info_of(node.peer_id))
            for node in nodes[7:]:
                info = info_of(node.peer_id, model_id=OTHER, model_name="other")
                await node.announce(info)
            assert await nodes[0].models() == {MODEL: "tiny-llama", OTHER: "other"}
            assert ids(await nodes[0].fetch(OTHER)) == {node.peer_id for node in nodes[7:]}
            assert await nodes[0].fetch(ModelId(bytes(16))) == []
            for node in nodes[7:]:
                await node.withdraw()
            assert await nodes[0].models() == {MODEL: "tiny-llama"}

    run_async(main())


def test_a_tombstone_takes_a_peer_out_at_once(run_async: Runner) -> None:
    async def main() -> None:
        async with open_swarm(10) as nodes:
            await announce_all(nodes)
            await nodes[3].withdraw()
            await nodes[3].withdraw()
            peers = await nodes[0].fetch(MODEL, tombstones=True)
            assert [one.peer_id for one in peers if one.state is PeerState.GONE] == [
                nodes[3].peer_id
            ]
            for node in nodes:
                assert ids(await node.fetch(MODEL)) == {n.peer_id for n in nodes} - {
                    nodes[3].peer_id
                }
            await nodes[3].announce(info_of(nodes[3].peer_id))
            assert nodes[3].peer_id in ids(await nodes[0].fetch(MODEL))

    run_async(main())


def test_a_replayed_record_does_not_undo_a_tombstone(run_async: Runner) -> None:
    async def main() -> None:
        async with open_swarm(6) as nodes:
            await announce_all(nodes)
            server = nodes[0]._server
            assert server is not None
            key = Shard(MODEL).key
            old = [
                r for r in (await server.read(key)).records if r.info.peer_id == nodes[3].peer_id
            ]
            await nodes[3].withdraw()
            placement = await server.place(key, old[0])
            assert placement.holders == 0
            assert nodes[3].peer_id not in ids(await nodes[1].fetch(MODEL))

    run_async(main())


def test_a_dead_peer_is_gone_after_its_ttl(run_async: Runner) -> None:
    async def main() -> None:
        clock = ManualClock()
        async with open_swarm(8, clock=clock, ttl=100.0) as nodes:
            await announce_all(nodes)
            dead = nodes[5]
            await dead.__aexit__()
            others = [node for node in nodes if node is not dead]
            for _ in range(9):
                clock.advance(10)
                await announce_all(others)  # renewals of others prolong nobody's life
                assert dead.peer_id in ids(await nodes[0].fetch(MODEL))
            clock.advance(10)
            for node in others:
                assert ids(await node.fetch(MODEL)) == {node.peer_id for node in others}
            clock.advance(100)
            for node in others:
                assert await node.fetch(MODEL) == []
                assert await node.models() == {}

    run_async(main())


def test_a_restart_with_an_older_clock_recovers(run_async: Runner) -> None:
    async def main() -> None:
        now = ManualClock()
        async with open_swarm(6, clock=now) as nodes:
            async with directory_of(50, clock=now) as before:
                await before.bootstrap([nodes[0].address])
                await before.announce(info_of(before.peer_id, kv_free=1))
                (old,) = await nodes[2].fetch(MODEL)
            async with directory_of(50, clock=ManualClock(now.now - 10)) as after:
                await after.bootstrap([nodes[0].address])
                assert await after.announce(info_of(after.peer_id, kv_free=2)) == 7
                (new,) = await nodes[2].fetch(MODEL)
                assert new.kv_free == 2
                assert new.sequence > old.sequence

    run_async(main())


def test_many_writers_of_one_model(run_async: Runner) -> None:
    """120 records: many pages, in parts. Nobody overwrites anybody."""

    async def main() -> None:
        async with open_swarm(12) as nodes:
            server = nodes[0]._server
            assert server is not None
            wall = nodes[0]._clock.wall()
            records = [record_of(1000 + n, now=wall) for n in range(120)]
            for record in records:
                assert (await server.place(Shard(MODEL).key, record)).holders == 9
            for node in (nodes[1], nodes[-1]):
                found = await node.fetch(MODEL)
                assert ids(found) == {record.info.peer_id for record in records}

    run_async(main())


def test_a_client_never_appears_in_tables(run_async: Runner) -> None:
    async def main() -> None:
        async with open_swarm(6) as nodes, directory_of(77, serving=False) as client:
            await client.bootstrap([nodes[2].address])
            await announce_all(nodes)
            for _ in range(3):
                assert len(await client.fetch(MODEL)) == 6
            for node in nodes:
                assert client.peer_id not in dict(node.contacts())
            with pytest.raises(BootstrapFailed):
                async with directory_of(78) as other:
                    await other.bootstrap([client.address], timeout=0.7)
            assert client.statistics().drops["client"] > 0
            assert client.statistics().records == 0

    run_async(main())


def test_steady_announcements_reuse_their_replicas(run_async: Runner) -> None:
    async def main() -> None:
        async with open_swarm(20) as nodes:
            node = nodes[4]
            await node.announce(info_of(node.peer_id))
            before = node.statistics()
            assert await node.announce(info_of(node.peer_id)) == 9
            after = node.statistics()
            assert after.datagrams_out - before.datagrams_out < 40  # 16 puts, and some answers
            assert after.pending == 0

    run_async(main())


def test_port_in_use(run_either: Runner) -> None:
    async def main() -> None:
        async with directory_of(1) as node:
            with pytest.raises(PortInUse, match=f"{node.address.port}.*--port"):
                await directory_of(2, port=node.address.port).__aenter__()
        async with directory_of(2, port=node.address.port) as second:
            assert second.address == node.address

    run_either(main())


@pytest.mark.parametrize("host", ["2001:db8::7", "203.0.113.7", NO_HOST])
def test_an_address_that_is_not_ours(run_async: Runner, host: str) -> None:
    async def main() -> None:
        with pytest.raises(UsageError, match="IP address of this machine"):
            await directory_of(1, host=host).__aenter__()

    run_async(main())


def test_closing_is_idempotent_and_final(run_either: Runner) -> None:
    async def main() -> None:
        node = directory_of(1)
        assert node.statistics() == DhtStatistics(0, 0, 0, 0, {}, 0, 0, 0)
        with pytest.raises(DhtError):
            await node.fetch(MODEL)
        await node.__aexit__()
        async with node:
            await node.announce(info_of(node.peer_id))
        await node.__aexit__()
        assert node.statistics().pending == 0
        for use in (node.fetch(MODEL), node.models(), node.bootstrap([]), node.withdraw()):
            with pytest.raises(DhtError):
                await use

    run_either(main())


@pytest.mark.parametrize(
    "wrong",
    [
        {"port": 70000},
        {"port": -1},
        {"probe_period": 300},
        {"ttl": 0},
        {"ttl": 301},
        {"k": 0},
        {"k": 29},
        {"alpha": 0},
    ],
)
def test_a_wrong_config_is_a_usage_error(wrong: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        DhtConfig(**wrong)


def test_the_swarm_key_is_not_printed() -> None:
    secret = SwarmKey(b"s" * 32)
    assert secret.secret.hex() not in repr(DhtConfig(keys=KeyRing(secret)))
    assert repr(secret.secret) not in repr(DhtConfig(keys=KeyRing(secret)))


def test_another_peers_announcement_cannot_be_made(run_async: Runner) -> None:
    async def main() -> None:
        async with directory_of(1) as node:
            with pytest.raises(ValueError):
                await node.announce(info_of(PeerId(bytes(20))))
            raw = pack(record_of(5).info, identity_of(5), CONFIG.swarm_id)
            assert isinstance(parse(raw, CONFIG.swarm_id, record_of(5).info.announced_at), Record)
            assert node._server is not None
            assert node._server.storage.live(INDEX_KEY, node._clock.wall()) == []

    run_async(main())
