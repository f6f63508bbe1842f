"""Joining a swarm, joining it again, and the peers that are remembered between two starts."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
from collections.abc import Iterable
from pathlib import Path

import pytest

from swarmd.dht import DhtConfig, Directory, PeersFile
from swarmd.dht.peers_file import Entry
from swarmd.errors import BootstrapFailed
from swarmd.peers import Address
from tests.conftest import Runner
from tests.dht.swarm import (
    CONFIG,
    MODEL,
    NO_HOST,
    announce_all,
    directory_of,
    identity_of,
    ids,
    info_of,
    open_swarm,
    until,
)


def test_bootstrap_failures_name_the_contacts(run_async: Runner) -> None:
    async def main() -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as deaf:
            deaf.bind(("127.0.0.1", 0))
            silent = Address(*deaf.getsockname())
            async with directory_of(1) as node:
                with pytest.raises(BootstrapFailed, match=str(silent)):
                    await node.bootstrap([silent, Address("127.0.0.1", 1)], timeout=0.5)
                with pytest.raises(BootstrapFailed):
                    await node.bootstrap([Address(NO_HOST, 5)], timeout=0.5)
                assert node.statistics().pending == 0

    run_async(main())


def test_bootstrap_goes_on_at_the_first_answer(run_async: Runner) -> None:
    async def main() -> None:
        async with open_swarm(4) as nodes, directory_of(9) as node:
            dead = [Address("127.0.0.1", port) for port in (1, 2, 3)]
            async with asyncio.timeout(3):
                found = await node.bootstrap(
                    [*dead, Address("localhost", nodes[0].address.port)], 60
                )
            assert found >= 1
            await until(lambda: len(node.contacts()) == 4)

    run_async(main())


def test_a_node_that_lost_everybody_joins_again(run_async: Runner) -> None:
    async def main() -> None:
        async with directory_of(1, bootstrap_retry_period=0.1) as node:
            async with directory_of(2) as first:
                port = first.address.port
                await node.bootstrap([first.address])
            await node.fetch(MODEL)
            await until(lambda: not node.contacts())
            async with directory_of(2, port=port) as again:
                await until(lambda: dict(node.contacts()) == {again.peer_id: again.address})

    run_async(main())


def test_a_peer_that_moved_is_found_at_its_new_address(run_async: Runner) -> None:
    async def main() -> None:
        async with directory_of(1) as node:
            async with directory_of(2) as old:
                await old.bootstrap([node.address])
                await until(lambda: dict(node.contacts()).get(old.peer_id) == old.address)
            async with directory_of(2) as new:
                assert new.address != old.address
                await new.bootstrap([node.address])
                await until(lambda: dict(node.contacts()).get(new.peer_id) == new.address)

    run_async(main())


class OffLoop(PeersFile):
    """Must not be read or written in the thread of the event loop: both may wait for a disk."""

    def load(self) -> list[Entry]:
        assert threading.current_thread() is not threading.main_thread()
        return super().load()

    def record(self, entries: Iterable[Entry]) -> None:
        assert threading.current_thread() is not threading.main_thread()
        super().record(entries)


def test_the_peers_file_is_written_and_used(run_async: Runner, tmp_path: Path) -> None:
    async def main() -> None:
        file = OffLoop(tmp_path / "peers.json")
        async with open_swarm(3) as nodes:
            async with Directory(CONFIG, identity_of(8), peers_file=file) as node:
                await node.bootstrap([nodes[0].address])
                await until(lambda: len(node.contacts()) == 3)
            noted = {peer for peer, _, _ in PeersFile(file.path).load()}
            assert noted == {n.peer_id for n in nodes}
            async with Directory(CONFIG, identity_of(8), peers_file=file) as node:
                assert await node.bootstrap([]) >= 1

    run_async(main())


def test_an_unwritable_peers_file_is_one_warning(
    run_async: Runner, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        (tmp_path / "file").touch()
        file = PeersFile(tmp_path / "file" / "peers.json")
        async with directory_of(1) as node, Directory(CONFIG, identity_of(8), peers_file=file) as d:
            assert await d.bootstrap([node.address]) == 1

    run_async(main())
    assert "cannot write the peers file" in caplog.text


def test_a_parted_swarm_heals(run_async: Runner, tmp_path: Path) -> None:
    """Two halves that know one another from their peers files only; in life it takes minutes."""

    async def main() -> None:
        async with contextlib.AsyncExitStack() as stack:
            halves: list[list[Directory]] = []
            for half in range(2):
                file = PeersFile(tmp_path / f"{half}.json")
                config = DhtConfig(ping_period=0.2, repair_delay=0.05)
                nodes = [
                    Directory(config, identity_of(10 * half + n), peers_file=file) for n in range(4)
                ]
                for node in nodes:
                    await stack.enter_async_context(node)
                    others = [nodes[0].address] if node is not nodes[0] else []
                    await node.bootstrap(others)
                    await node.announce(info_of(node.peer_id))
                halves.append(nodes)
            everybody = {node.peer_id for half in halves for node in half}
            assert not ids(await halves[0][1].fetch(MODEL)) & {n.peer_id for n in halves[1]}
            far = halves[1][2]
            PeersFile(tmp_path / "0.json").record([(far.peer_id, far.address, 1e11)])
            reader = halves[0][3]
            async with asyncio.timeout(20):
                while ids(await reader.fetch(MODEL)) != everybody:
                    await asyncio.sleep(0.05)

    run_async(main())


def test_a_swarm_on_ipv6(run_either: Runner) -> None:
    """One family a socket: an IPv4 contact of the peers file or of `--peer` is passed over."""

    async def main() -> None:
        async with open_swarm(6, host="::1") as nodes, directory_of(50) as other:
            assert str(nodes[0].address) == f"[::1]:{nodes[0].address.port}"
            await announce_all(nodes)
            async with directory_of(9, host="::1", serving=False) as client:
                await client.bootstrap([nodes[3].address, other.address])
                assert ids(await client.fetch(MODEL)) == {node.peer_id for node in nodes}
                with pytest.raises(BootstrapFailed):
                    await client.bootstrap([other.address], timeout=0.5)
            assert other.statistics().datagrams_in == 0

    run_either(main())
