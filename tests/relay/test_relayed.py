"""A node that nobody can dial serves through a relay: the same answers, and bounded."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
from collections.abc import Callable

import pytest

from swarmd.blocks import Span
from swarmd.client.hop_link import HopLink
from swarmd.compute.ends import ModelEnds
from swarmd.errors import ConnectionLost, NotRelaying, PeerFailure, PeerMismatch
from swarmd.identity import Identity
from swarmd.swarm_key import KeyRing, SwarmKey
from swarmd.wire.greeting import Greeting
from swarmd.wire.knock import make_ticket_knock
from swarmd.wire.messages import ErrorMessage, Reserve
from swarmd.wire.pool import Pool
from swarmd.wire.transport import dial
from tests.chain.answers import SPANS, answer, killing
from tests.conftest import Runner
from tests.local_swarm import LocalPeer, LocalSwarm


async def until(true: Callable[[], object]) -> None:
    async with asyncio.timeout(30):
        while not true():
            await asyncio.sleep(0.01)


async def behind(node: LocalPeer, *relays: LocalPeer) -> None:
    """Hide a node behind one of some relays."""
    relayed = node.hide(lambda: [relay.info for relay in relays if relay.alive])
    await until(lambda: relayed.relay is not None)


def test_a_hop_behind_a_relay_gives_the_same_answer(
    swarm: LocalSwarm, ends: ModelEnds, undisturbed: list[int], run_either: Runner
) -> None:
    async def work() -> None:
        async with swarm.running(SPANS):
            relay, hidden, _ = swarm.peers
            await behind(hidden, relay)
            assert hidden.address == relay.address
            async with await swarm.session(swarm.peers, max_length=64) as session:
                assert await answer(ends, session) == undisturbed
                assert session.statistics.recoveries == []
                assert relay.desk.streams >= 1
            assert hidden.server.statistics.sessions == 1

    run_either(work())


@pytest.mark.parametrize("token", [0, 1, 11])
def test_a_relay_that_dies_is_replaced_by_another(
    token: int, swarm: LocalSwarm, ends: ModelEnds, undisturbed: list[int], run_async: Runner
) -> None:
    """The only holder of the middle blocks: its session goes on through the second relay."""

    async def work() -> None:
        async with swarm.running([*SPANS, Span(0, 1), Span(0, 1)]):
            *primary, one, other = swarm.peers
            await behind(primary[1], one, other)
            first, second = (one, other) if primary[1].address == one.address else (other, one)
            swarm.peers = primary
            async with await swarm.session(primary, max_length=64, wait=30.0) as session:
                assert await answer(ends, session, killing({token: [first]})) == undisturbed
            assert primary[1].address == second.address

    run_async(work())


def test_a_relayed_node_that_dies_is_a_lost_hop(
    swarm: LocalSwarm, ends: ModelEnds, undisturbed: list[int], run_async: Runner
) -> None:
    async def work() -> None:
        async with swarm.running([*SPANS, SPANS[1]]):
            relay, hidden = swarm.peers[:2]
            await behind(hidden, relay)
            async with await swarm.session(swarm.peers[:3], max_length=64) as session:
                assert await answer(ends, session, killing({9: [hidden]})) == undisturbed
                assert len(session.statistics.recoveries) == 1
            await until(lambda: relay.desk.relayed == 0 and relay.desk.streams == 0)

    run_async(work())


def test_a_relay_cannot_stand_in_for_its_node(swarm: LocalSwarm, run_async: Runner) -> None:
    """It takes the client's knock for one of its own, and answers itself."""

    async def work() -> None:
        async with swarm.running(SPANS[:2]):
            relay, hidden = swarm.peers
            await behind(hidden, relay)
            as_another = dataclasses.replace(relay.info, peer_id=hidden.info.peer_id)
            greeting = Greeting(hidden.folder.model_id)
            with pytest.raises(PeerMismatch):
                await dial(
                    relay.plain_address,
                    dataclasses.replace(greeting, plaintext=True),
                    expected=as_another.peer_id,
                )
            greeted = await dial(relay.address, greeting, expected=hidden.info.peer_id)
            assert greeted.peer_id == greeted.connection.peer_id == hidden.info.peer_id
            await greeted.connection.close()

    run_async(work())


def test_streams_of_a_node_are_bounded(swarm: LocalSwarm, run_either: Runner) -> None:
    async def work() -> None:
        async with swarm.running(SPANS[:2]):
            relay, hidden = swarm.peers
            limits = dataclasses.replace(relay.desk.limits, streams=2)
            relay.desk.limits = relay.desk._ledger.limits = limits
            await behind(hidden, relay)
            greeting = Greeting(hidden.folder.model_id)
            passing = [
                await dial(relay.address, greeting, expected=hidden.info.peer_id) for _ in range(2)
            ]
            with pytest.raises(ConnectionLost):
                await dial(relay.address, greeting, expected=hidden.info.peer_id)
            await passing.pop().connection.close()
            await until(lambda: relay.desk.streams == 1)
            passing.append(await dial(relay.address, greeting, expected=hidden.info.peer_id))
            for greeted in passing:
                await greeted.connection.close()
            await until(lambda: relay.desk.streams == 0)

    run_either(work())


def test_a_client_whose_node_does_not_come_is_let_go(swarm: LocalSwarm, run_either: Runner) -> None:
    async def work() -> None:
        async with swarm.running(SPANS[:2]):
            relay, hidden = swarm.peers
            limits = dataclasses.replace(relay.desk.limits, call_timeout=0.2)
            relay.desk.limits = relay.desk._ledger.limits = limits
            await behind(hidden, relay)

            async def never(*_: object) -> None:
                await asyncio.get_running_loop().create_future()

            hidden.listener.come_for = never  # type: ignore[method-assign, assignment]
            greeting = Greeting(hidden.folder.model_id)
            with pytest.raises(PeerFailure):
                await dial(relay.address, greeting, expected=hidden.info.peer_id, timeout=20)
            assert not relay.desk._all

    run_either(work())


def test_outsiders_unknown_tickets_and_old_ones_get_no_byte(
    swarm: LocalSwarm, run_either: Runner
) -> None:
    async def work() -> None:
        async with swarm.running(SPANS[:2]):
            relay, hidden = swarm.peers
            await behind(hidden, relay)
            outsider = Greeting(keys=KeyRing(SwarmKey.generate()))
            with pytest.raises(ConnectionLost, match="without an answer"):
                await dial(relay.address, outsider, expected=hidden.info.peer_id)
            now = relay.desk._clock.wall()
            key = relay.server.door.keys.current
            for knock in (
                make_ticket_knock(key, bytes(16), now=now),
                make_ticket_knock(key, bytes(16), now=now - 300),
                make_ticket_knock(SwarmKey.generate(), bytes(16), now=now),
            ):
                address = relay.address
                reader, writer = await asyncio.open_connection(address.host, address.port)
                writer.write(knock)
                with contextlib.suppress(ConnectionResetError):
                    assert await reader.read(1) == b""
                writer.close()

    run_either(work())


def test_a_node_that_does_not_relay_says_so(swarm: LocalSwarm, run_async: Runner) -> None:
    async def work() -> None:
        async with swarm.running(SPANS[:1]):
            (peer,) = swarm.peers
            peer.server.desk = None
            greeted = await dial(peer.address, Greeting())
            await greeted.connection.send(Reserve())
            answer, _ = await greeted.connection.receive()
            assert isinstance(answer, ErrorMessage)
            assert isinstance(answer.to_error(), NotRelaying)
            await greeted.connection.close()

    run_async(work())


def test_an_idle_connection_is_used_again_through_the_relay(
    swarm: LocalSwarm, run_async: Runner
) -> None:
    async def work() -> None:
        async with swarm.running(SPANS[:2]):
            relay, hidden = swarm.peers
            await behind(hidden, relay)
            async with Pool(Greeting(hidden.folder.model_id, Identity.generate())) as pool:
                for _ in range(3):
                    link = await HopLink.open(
                        hidden.info, SPANS[1], pool, max_length=16, timeout=10
                    )
                    await link.close()
                assert relay.desk.streams == 1
            await until(lambda: relay.desk.streams == 0)

    run_async(work())
