"""Lying and hostile peers."""

from __future__ import annotations

import asyncio
import logging
import random
import socket
from typing import Any

import pytest
from kademlia.node import Node

from swarmd.dht.addresses import pack_nodes
from swarmd.dht.answers import may_refer
from swarmd.dht.directory import Directory
from swarmd.dht.envelope import Drop, Kind, seal
from swarmd.dht.messages import Method, QueryRequest, Want
from swarmd.dht.protocol import SwarmProtocol
from swarmd.dht.records import Record
from swarmd.dht.shards import Shard
from swarmd.swarm_key import KeyRing, SwarmKey
from tests.conftest import Runner
from tests.dht.swarm import (
    MODEL,
    announce_all,
    directory_of,
    ids,
    info_of,
    kill,
    open_swarm,
    until,
)
from tests.dht.test_wire import KEY, POISON, sealed_raw


def protocol_of(node: Directory) -> SwarmProtocol:
    assert node._server is not None
    protocol: SwarmProtocol = node._server.protocol
    return protocol


def answer_queries(node: Directory, reply: Any) -> None:
    """From now on, `node` answers every QUERY with `reply`."""

    def answer(values: object, host: tuple[str, int]) -> Any:
        return reply

    protocol_of(node)._answer[Method.QUERY] = answer


def test_poisoned_contacts_leave_the_socket_open(run_either: Runner) -> None:
    """Each of these closed the socket of a vanilla node for good under asyncio."""

    async def main() -> None:
        async with open_swarm(4) as nodes:
            await announce_all(nodes)
            victim = nodes[0]
            protocol = protocol_of(victim)
            for n, (host, port) in enumerate(POISON):
                assert protocol.transport.sendto(b"x", (host, port)) is False
                poison = Node(bytes([n]) * 20, host, port)
                protocol.router.buckets[0].add_node(poison)
                protocol.router._by_address[(host, port)] = poison
            assert ids(await victim.fetch(MODEL)) == {node.peer_id for node in nodes}
            assert not protocol.transport.is_closing()
            assert victim.statistics().drops[Drop.UNSENDABLE] >= len(POISON)
            assert ids(await nodes[1].fetch(MODEL)) == {node.peer_id for node in nodes}

    run_either(main())


def lies() -> list[Any]:
    good = [b"", b"t" * 8, 0, 0, 0, [], False]
    found: list[Any] = [None, 5, "no", b"", [], [good], {"value": 1}, good[:-1]]
    for host, port in POISON:
        found.append([[[b"i" * 20, host, port]], *good[1:]])
    for at in range(len(good)):
        found += [[*good[:at], wrong, *good[at + 1 :]] for wrong in (None, -1, "x", [1], b"odd")]
    fakes = [(random.Random(n).randbytes(20), "127.0.0.1", 1 + n) for n in range(20)]
    edge = [(b"a" * 20, "0.0.0.0", 5), (b"b" * 20, "255.255.255.255", 5), (b"c" * 20, "1.1.1.1", 0)]
    return [*found, [pack_nodes(fakes), *good[1:]], [pack_nodes(edge), *good[1:]]]


def test_a_liar_breaks_no_lookup(run_either: Runner) -> None:
    async def main() -> None:
        async with open_swarm(5) as nodes:
            await announce_all(nodes)
            everybody = {node.peer_id for node in nodes}
            victim = nodes[2]
            for lie in lies():
                answer_queries(nodes[1], lie)
                protocol_of(victim).welcome_if_new(Node(nodes[1].peer_id, *_host(nodes[1])))
                assert ids(await victim.fetch(MODEL)) == everybody
            assert not protocol_of(victim).transport.is_closing()

    run_either(main())


def _host(node: Directory) -> tuple[str, int]:
    return (node.address.host, node.address.port)


@pytest.mark.parametrize(
    ("informant", "contact", "followed"),
    [
        ("127.0.0.1", "127.0.0.1", True),
        ("127.0.0.1", "10.0.0.2", True),
        ("10.0.0.1", "10.0.0.2", True),
        ("10.0.0.1", "127.0.0.1", False),
    ],
)
def test_loopback_contacts_stay_on_their_machine(
    run_async: Runner, informant: str, contact: str, followed: bool
) -> None:
    async def main() -> None:
        async with directory_of(1) as node:
            hint = (Node(b"i" * 20, informant, 5), Node(b"c" * 20, contact, 5))
            assert protocol_of(node).believes(*hint) == followed
            assert may_refer(informant, contact) == followed

    run_async(main())


def test_evil_holders_near_the_key_are_seen_through(run_async: Runner) -> None:
    """They name 20 nodes each that are nearer to the key than anybody, and do not exist."""

    async def main() -> None:
        async with open_swarm(14) as nodes:
            await announce_all(nodes)
            key = Shard(MODEL).key
            target = Node(key)
            by_distance = sorted(nodes, key=lambda n: target.distance_to(Node(n.peer_id)))
            for n, evil in enumerate(by_distance[:3]):
                ghosts = [
                    (key[:18] + bytes([n, i]), "127.0.0.1", 1 + 20 * n + i) for i in range(20)
                ]
                reply = [pack_nodes(ghosts), b"t" * 8, 0, 0, 0, [], False]
                answer_queries(evil, reply)
            async with asyncio.timeout(15):
                for reader in by_distance[-3:]:
                    assert ids(await reader.fetch(MODEL)) == {node.peer_id for node in nodes}

    run_async(main())


def test_a_holder_that_pages_for_ever_is_left(run_async: Runner) -> None:
    async def main() -> None:
        async with open_swarm(4) as nodes:
            await announce_all(nodes)
            answer_queries(nodes[1], [b"", b"t" * 8, 2**32 - 1, 5, 9, [b"junk"], True])
            async with asyncio.timeout(10):
                assert len(await nodes[3].fetch(MODEL)) == 4
            assert nodes[3].statistics().datagrams_out < 2000

    run_async(main())


def test_another_swarm_key_gets_no_answer(run_async: Runner) -> None:
    async def main() -> None:
        async with (
            directory_of(1) as node,
            directory_of(2, keys=KeyRing(SwarmKey(b"k" * 32))) as stranger,
        ):
            from swarmd.errors import BootstrapFailed

            with pytest.raises(BootstrapFailed):
                await stranger.bootstrap([node.address], timeout=0.7)
            assert node.statistics().datagrams_out == 0
            assert node.statistics().drops["tag"] > 0
            assert node.contacts() == []

    run_async(main())


def test_garbage_is_counted_and_nothing_else(
    run_either: Runner, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    rng = random.Random(11)

    async def main() -> None:
        async with open_swarm(2) as nodes:
            await until(lambda: not any(node.statistics().pending for node in nodes))
            await announce_all(nodes)
            caplog.clear()
            node = protocol_of(nodes[0])
            before = nodes[0].statistics()
            request = QueryRequest(Shard(MODEL).key, Want(3)).pack()
            good = seal(KEY, Kind.REQUEST, b"i" * 8, [2, b"", request])
            sender = ("127.0.0.1", 9)
            sent = 0
            for _ in range(3000):
                outsider = rng.randbytes(rng.randrange(1400))
                broken = bytearray(good[9:-16])
                for _ in range(rng.randint(1, 5)):
                    broken[rng.randrange(len(broken))] = rng.randrange(256)
                for data in (outsider, sealed_raw(bytes(broken)), sealed_raw(rng.randbytes(40), 2)):
                    node.datagram_received(data, sender)
                    sent += 1
            after = nodes[0].statistics()
            assert after.datagrams_in - before.datagrams_in >= sent
            assert Drop.BUG not in after.drops
            assert {Drop.SIZE, Drop.TAG, Drop.BODY, Drop.SHAPE} <= set(after.drops)
            assert after.pending == 0
            assert len(await nodes[1].fetch(MODEL)) == 2

    run_either(main())
    assert [r for r in caplog.records if r.name.startswith(("swarmd", "asyncio", "rpcudp"))] == []


def test_every_field_of_every_request_wrong_typed(run_async: Runner) -> None:
    async def main() -> None:
        async with directory_of(1) as node:
            protocol = protocol_of(node)
            good: dict[int, list[Any]] = {
                1: [b"n" * 16],
                2: QueryRequest(b"k" * 20, Want(3)).pack(),
                3: [b"k" * 20, b"t" * 8, b"record"],
            }
            wrongs: list[Any] = [None, -1, 1.5, "x", [], b"x" * 3, True, 2**64 - 1]
            for method, values in good.items():
                for at in range(len(values)):
                    for wrong in wrongs:
                        body = [*values[:at], wrong, *values[at + 1 :]]
                        for request in (
                            [method, b"", body],
                            [wrong, b"", values],
                            [method, wrong, values],
                        ):
                            protocol.datagram_received(
                                seal(KEY, Kind.REQUEST, b"i" * 8, request),
                                ("127.0.0.1", 9),
                            )
            assert Drop.BUG not in node.statistics().drops
            assert node.statistics().drops[Drop.SHAPE] > 100

    run_async(main())


def test_a_reply_counts_only_from_the_address_that_was_asked(run_async: Runner) -> None:
    async def main() -> None:
        async with directory_of(1) as node:
            protocol = protocol_of(node)
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as deaf:
                deaf.bind(("127.0.0.1", 0))
                asked = Node(b"a" * 20, *deaf.getsockname())
                query = protocol.call_query(asked, QueryRequest(b"k" * 20, Want.STATUS))
                task = protocol.spawn(query, "query")
                await until(lambda: protocol.pending)
                (message_id,) = protocol._pending
                reply = [b"a" * 20, [b"", b"t" * 8, 0, 0, 0, [], False]]
                forged = seal(KEY, Kind.REPLY, message_id, reply)
                protocol.datagram_received(forged, ("127.0.0.1", 9))
                assert node.statistics().drops[Drop.SOURCE] == 1
                assert not task.done()
                protocol.datagram_received(forged, deaf.getsockname())
                assert (await task) is not None
                protocol.datagram_received(forged, deaf.getsockname())
                assert node.statistics().drops[Drop.UNASKED] == 1

    run_async(main())


def test_an_unverified_id_never_enters_a_table(run_async: Runner) -> None:
    """500 ids from one address put 256 into a vanilla table."""

    async def main() -> None:
        async with directory_of(1) as node:
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as mute:
                mute.bind(("127.0.0.1", 0))
                for n in range(500):
                    sender = random.Random(n).randbytes(20)
                    values = QueryRequest(b"k" * 20, Want.STATUS).pack()
                    request = [int(Method.QUERY), sender, values]
                    data = seal(KEY, Kind.REQUEST, n.to_bytes(8, "big"), request)
                    protocol_of(node).datagram_received(data, mute.getsockname())
                await until(lambda: node.statistics().pending == 0)
                assert node.contacts() == []
                assert node.statistics().datagrams_out <= 502  # the answers, and one ping twice

    run_async(main())


def test_a_write_needs_a_token_of_the_same_address(run_async: Runner) -> None:
    async def main() -> None:
        async with open_swarm(2) as nodes:
            await announce_all(nodes)
            holder = protocol_of(nodes[0])
            record: Record = holder.storage.live(Shard(MODEL).key, nodes[0]._clock.wall())[0]
            for token, source in (
                (b"t" * 8, "127.0.0.1"),
                (holder._answers._mint.mint("127.0.0.1", 0.0), "127.0.0.1"),
                (holder._answers._mint.mint("10.0.0.1", nodes[0]._clock.monotonic()), "127.0.0.1"),
            ):
                status = holder._answers.put((Shard(MODEL).key, token, record.raw), (source, 9))
                assert status is not None
                assert status[0] == 4

    run_async(main())


def test_old_tokens_are_renewed(run_async: Runner) -> None:
    async def main() -> None:
        async with open_swarm(4) as nodes:
            await announce_all(nodes)
            for node in nodes:  # as if each had restarted: all tokens given out are void
                protocol_of(node)._answers._mint._secret = b"new"
            assert await nodes[2].announce(info_of(nodes[2].peer_id)) == 4

    run_async(main())


def test_a_cancelled_fetch_leaves_nothing(
    run_either: Runner, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        async with open_swarm(8) as nodes:
            await announce_all(nodes)
            await kill(nodes[4:])
            reader = nodes[0]
            for _ in range(30):
                loop = asyncio.get_running_loop()
                task = loop.create_task(reader.fetch(MODEL))
                await until(lambda: reader.statistics().pending)
                task.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await task
            await until(lambda: reader.statistics().pending == 0)
            assert {node.peer_id for node in nodes[:4]} <= ids(await reader.fetch(MODEL))

    run_either(main())
    assert "InvalidStateError" not in caplog.text
    assert "exception was never retrieved" not in caplog.text


def test_closing_in_the_middle_of_a_fetch(run_either: Runner) -> None:
    async def main() -> None:
        async with open_swarm(6) as nodes:
            await announce_all(nodes)
            await kill(nodes[3:])
            loop = asyncio.get_running_loop()
            tasks = [loop.create_task(nodes[0].fetch(MODEL)) for _ in range(3)]
            await until(lambda: nodes[0].statistics().pending)
            await nodes[0].__aexit__()
            results = await asyncio.gather(*tasks, return_exceptions=True)
            from swarmd.errors import DhtError

            assert all(isinstance(result, list | DhtError) for result in results), results

    run_either(main())
