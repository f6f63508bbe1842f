"""Nodes that die and datagrams that are lost cost no records."""

from __future__ import annotations

import asyncio
import random
from typing import Any

import pytest

from swarmd.dht.transport import GuardedTransport
from tests.conftest import Runner
from tests.dht.swarm import MODEL, announce_all, ids, info_of, kill, open_swarm, until


def test_a_fifth_dead_costs_no_seconds_and_no_records(run_async: Runner) -> None:
    async def main() -> None:
        async with open_swarm(30) as nodes:
            await announce_all(nodes)
            everybody = {node.peer_id for node in nodes}
            dead, alive = nodes[2::5], [n for i, n in enumerate(nodes) if i % 5 != 2]
            await kill(dead)
            async with asyncio.timeout(10):  # 24 lookups: 0.1 s each here, 5 s each in vanilla
                for node in alive:
                    assert ids(await node.fetch(MODEL)) == everybody
            async with asyncio.timeout(3):
                assert await alive[0].announce(info_of(alive[0].peer_id)) >= 6  # still a quorum
                assert await alive[0].announce(info_of(alive[0].peer_id)) == 9  # looked up anew

    run_async(main())


def test_dead_contacts_are_evicted(run_async: Runner) -> None:
    async def main() -> None:
        async with open_swarm(8) as nodes:
            await until(lambda: all(len(node.contacts()) == 7 for node in nodes))
            await kill(nodes[4:])
            for _ in range(3):
                await nodes[0].fetch(MODEL)
            alive = {node.peer_id for node in nodes[1:4]}
            await until(lambda: set(dict(nodes[0].contacts())) == alive)

    run_async(main())


def test_most_dead_at_once(run_async: Runner) -> None:
    async def main() -> None:
        async with open_swarm(12) as nodes:
            await announce_all(nodes)
            await kill(nodes[:8])
            async with asyncio.timeout(10):
                found = await nodes[-1].fetch(MODEL)
            assert ids(found) >= {node.peer_id for node in nodes[8:]}

    run_async(main())


def test_lost_datagrams_lose_no_records(run_async: Runner, monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        async with open_swarm(20) as nodes:
            await announce_all(nodes)
            everybody = {node.peer_id for node in nodes}
            rng = random.Random(3)
            send = GuardedTransport.sendto

            def lossy(self: GuardedTransport, data: bytes, address: Any) -> bool:
                return True if rng.random() < 0.03 else send(self, data, address)

            monkeypatch.setattr(GuardedTransport, "sendto", lossy)
            for node in nodes:
                assert ids(await node.fetch(MODEL)) == everybody
            monkeypatch.undo()

    run_async(main())
