"""What one network, one address or one wrong clock may do."""

from __future__ import annotations

import dataclasses
import logging

import pytest
from kademlia.node import Node

from swarmd.clock import ManualClock
from swarmd.dht.addresses import ip_group
from swarmd.dht.config import DhtConfig
from swarmd.dht.envelope import Drop, Kind, seal
from swarmd.dht.messages import QueryRequest, Want
from swarmd.dht.rates import BURST, RequestRates
from swarmd.dht.shards import Shard
from swarmd.dht.skew import LEAST_PEERS, ClockOffset
from swarmd.dht.storage import PutStatus, RecordStorage
from swarmd.dht.table import Router
from swarmd.identity import PeerId
from swarmd.swarm_key import KeyRing, SwarmKey
from tests.conftest import Runner
from tests.dht.swarm import CONFIG, MODEL, NOW, directory_of, info_of, open_swarm, record_of
from tests.dht.test_hostile import protocol_of
from tests.dht.test_wire import KEY

ROOT = Shard(MODEL).key


@pytest.mark.parametrize(
    ("host", "group"),
    [
        ("1.2.3.4", bytes([1, 2, 3])),
        ("2606:4700:10::1", bytes.fromhex("260647000010")),
        ("10.0.0.1", None),
        ("192.168.1.1", None),
        ("127.0.0.1", None),
        ("100.64.0.1", None),
        ("fd00::1", None),
        ("::1", None),
        ("no address", None),
    ],
)
def test_networks(host: str, group: bytes | None) -> None:
    assert ip_group(host) == group


@pytest.mark.parametrize(
    ("keys", "source", "places"),
    [
        (CONFIG.keys, "1.2.3.{}", 4),
        (CONFIG.keys, "1.2.{}.4", 10),
        (CONFIG.keys, "10.0.0.{}", 10),
        (KeyRing(SwarmKey(b"k" * 32)), "1.2.3.{}", 10),
    ],
)
def test_a_public_network_gets_few_places_of_a_key(keys: KeyRing, source: str, places: int) -> None:
    storage = RecordStorage(dataclasses.replace(CONFIG, keys=keys))
    sources = [source.format(n + 1) for n in range(10)]
    put = [storage.put(ROOT, record_of(n), NOW, sources[n]).status for n in range(10)]
    assert put.count(PutStatus.OK) == places
    assert storage.more(ROOT, NOW) == (places < 10)
    renewed = record_of(1, now=NOW + 1)
    assert storage.put(ROOT, renewed, NOW + 1, sources[1]).status is PutStatus.OK
    later = NOW + 200  # all have expired
    again = [storage.put(ROOT, record_of(n, now=later), later, sources[n]) for n in range(4)]
    assert [result.status for result in again] == [PutStatus.OK] * 4


def test_a_public_network_gets_few_places_in_the_table() -> None:
    def filled(host: str, limits: tuple[int, int] | None) -> Router:
        table = Router(None, 20, Node(bytes(20)))
        table.limits = limits
        for n in range(300, 330):  # so that there are several buckets
            table.add_contact(Node(record_of(n).info.peer_id, f"10.1.1.{n - 299}", 4000))
        for n in range(1, 250):
            node = Node(record_of(n).info.peer_id, host.format(n), 4000)
            assert table.has_room(node) == table.add_contact(node)
        return table

    def public(table: Router) -> list[Node]:
        return [node for node in table.contacts() if node.ip.startswith("1.2.3.")]

    table = filled("1.2.3.{}", (10, 2))
    assert 2 < len(public(table)) <= 10
    assert all(sum(node in public(table) for node in b.get_nodes()) <= 2 for b in table.buckets)
    for node in public(table):
        assert table.add_contact(node)  # who is in stays in
    gone = public(table)[0]
    table.remove_contact(gone)
    assert table.add_contact(gone)
    for free in (filled("10.0.0.{}", (10, 2)), filled("1.2.3.{}", None)):
        assert len(free) > 40


def test_rates_let_bursts_pass_and_floods_not() -> None:
    rates = RequestRates(CONFIG)
    for is_write, rate in ((False, 200), (True, 20)):
        allowed = sum(rates.allow("1.2.3.4", is_write, 5.0) for _ in range(1000))
        assert allowed == rate * BURST
        assert sum(rates.allow("1.2.3.4", is_write, 5.5) for _ in range(1000)) == rate // 2
        assert rates.allow("1.2.3.5", is_write, 5.5)
        flood = [rates.allow(f"2606:4700:10::{n:x}", is_write, 5.5) for n in range(1000)]
        assert sum(flood) == rate * BURST
        assert rates.allow("2606:4700:11::1", is_write, 5.5)
        assert all(rates.allow(host, is_write, 5.5) for host in ("127.0.0.1", "::1") * 1000)


def test_a_flood_is_dropped_without_an_answer(run_async: Runner) -> None:
    async def main() -> None:
        async with directory_of(1, clock=ManualClock()) as node:
            protocol = protocol_of(node)
            request = [2, b"", QueryRequest(b"k" * 20, Want.STATUS).pack()]
            for n in range(500):
                data = seal(KEY, Kind.REQUEST, n.to_bytes(8, "big"), request)
                protocol.datagram_received(data, ("10.9.8.7", 9))
            assert node.statistics().drops[Drop.RATE] == 100

    run_async(main())


def test_a_key_that_is_far_away_is_refused(run_async: Runner) -> None:
    """40 nodes are nearer than we, so no reader would ask us."""

    async def main() -> None:
        async with directory_of(1, clock=ManualClock(NOW)) as node:
            protocol = protocol_of(node)
            host = ("127.0.0.1", 9)
            token = protocol._answers._mint.mint(host[0], NOW)
            put = (ROOT, token, record_of(3).raw)
            for n in range(40):
                near = Node(ROOT[:18] + n.to_bytes(2, "big"), "10.0.0.1", 1000 + n)
                protocol.router.buckets[0].add_node(near)
                protocol.router._by_address[(near.ip, near.port)] = near
                if n == 38:
                    answer = protocol._answers.put(put, host)
                    assert answer is not None
                    assert answer[0] == PutStatus.OK
            answer = protocol._answers.put(put, host)
            assert answer is not None
            assert answer[0] == PutStatus.FAR

    run_async(main())


def test_records_are_sent_against_a_token_alone(run_async: Runner) -> None:
    """So a forged source address draws no page of records onto its owner."""

    async def main() -> None:
        async with directory_of(1, clock=ManualClock(NOW)) as node:
            await node.announce(info_of(node.peer_id))
            answers = protocol_of(node)._answers
            good = answers._mint.mint("10.0.0.1", NOW)
            for token, count in ((b"", 0), (b"t" * 8, 0), (good, 1)):
                query = QueryRequest(ROOT, Want.RECORDS, token).pack()
                reply = answers.query(tuple(query), ("10.0.0.1", 9))
                assert reply is not None
                assert (reply[2], len(reply[5])) == (1, count)  # type: ignore[arg-type]

    run_async(main())


def test_no_peer_alone_sets_the_clock() -> None:
    clock = ClockOffset()
    peers = [PeerId(bytes([n]) * 20) for n in range(40)]
    for n in range(LEAST_PEERS - 1):
        clock.sample(peers[n], 1000.0, 9.0, 11.0)
        clock.sample(peers[n], 1000.0, 9.0, 11.0)
    assert clock.offset is None
    clock.sample(peers[5], 12.0, 9.0, 11.0)
    clock.sample(peers[6], 12.0, 9.0, 11.0)
    clock.sample(peers[7], 12.0, 9.0, 11.0)
    assert clock.offset == 2.0
    for peer in peers:
        clock.sample(peer, 10.0, 9.0, 11.0)
    assert clock.offset == 0.0
    assert clock.peers < len(peers)


@pytest.mark.parametrize(
    ("ahead", "holders", "warns"), [(0, 6, False), (4, 6, False), (8, 6, True), (-31, 0, True)]
)
def test_a_wrong_clock_warns_and_then_announces_nothing(
    run_async: Runner, caplog: pytest.LogCaptureFixture, ahead: float, holders: int, warns: bool
) -> None:
    async def main() -> None:
        right = ManualClock()
        async with open_swarm(5, clock=right) as nodes:
            async with directory_of(77, clock=ManualClock(right.now + ahead)) as node:
                await node.bootstrap([n.address for n in nodes])
                assert await node.announce(info_of(node.peer_id)) == holders
                assert node.statistics().clock_offset == pytest.approx(-ahead)
                assert len(await nodes[0].fetch(MODEL)) == (holders > 0)

    caplog.set_level(logging.WARNING)
    run_async(main())
    assert ("clock" in caplog.text) == warns
    assert ("announces nothing" in caplog.text) == (holders == 0)


def test_defaults_are_those_of_the_design() -> None:
    config = DhtConfig()
    assert (config.max_puts_per_second, config.max_queries_per_second) == (20, 200)
    assert (config.max_records_per_group, config.max_contacts_per_group_and_bucket) == (4, 2)
    assert (config.clock_warn, config.clock_refuse) == (5, 30)
