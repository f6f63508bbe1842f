"""Dialling back: who is dialled, how often, and what the answers mean."""

from __future__ import annotations

import asyncio
import logging
import random
from pathlib import Path
from typing import Any

import pytest

from bench.nodes import free_port
from swarmd.blocks import BlockRequest
from swarmd.compute.model_folder import open_folder
from swarmd.config import DaemonConfig
from swarmd.errors import Busy
from swarmd.identity import Identity, PeerId
from swarmd.node.announced import Announced
from swarmd.node.dial_back_budget import IN_ALL, PER_HOST, PERIOD, DialBackBudget
from swarmd.node.reach import Reach
from swarmd.node.reachability import Answer, Reachability, Verdict, ask, verdict
from swarmd.peers import Address, PeerInfo, PeerState
from swarmd.tasks import TaskOwner
from swarmd.wire.greeting import Door
from swarmd.wire.messages import Dialback, Dialled, Ping, Pong
from swarmd.wire.transport import Greeting, dial
from tests.conftest import Runner
from tests.dht.swarm import info_of
from tests.families import save_tiny
from tests.local_swarm import LocalSwarm
from tests.node.hostile_client import ALL, until

OTHER = Identity.generate()


@pytest.fixture(scope="module")
def swarm(tmp_path_factory: pytest.TempPathFactory) -> LocalSwarm:
    folder: Path = save_tiny("llama", tmp_path_factory.mktemp("reach") / "llama")
    return LocalSwarm(open_folder(folder))


def test_a_peer_dials_back_and_says_what_it_found(swarm: LocalSwarm, run_async: Runner) -> None:
    async def main() -> None:
        async with swarm.running([ALL, ALL]):
            helper, asker = swarm.peers
            greeting = Greeting(identity=asker.identity)
            expected = helper.identity.peer_id
            port = asker.address.port
            good = Answer(True, "127.0.0.1")
            assert await ask(helper.address, port, greeting, expected) == good
            # nothing listens there
            assert not (await ask(helper.address, free_port(), greeting, expected)).reachable
            # another peer than the asker answers there
            stranger = Greeting()
            assert not (await ask(helper.address, port, stranger, expected)).reachable

    run_async(main())


def test_the_connection_goes_on_and_the_budget_ends(swarm: LocalSwarm, run_async: Runner) -> None:
    async def main() -> None:
        async with swarm.running([ALL]):
            (helper,) = swarm.peers
            greeted = await dial(helper.address, Greeting())
            connection = greeted.connection
            for _ in range(PER_HOST):
                await connection.send(Dialback(free_port()))
                assert (await connection.receive())[0] == Dialled(False, "127.0.0.1")
            await connection.send(Dialback(free_port()))
            error, _ = await connection.receive()
            assert isinstance(error.to_error(), Busy)  # type: ignore[union-attr]
            await connection.send(Ping(5))
            assert (await connection.receive())[0] == Pong(5)
            await connection.close()

    run_async(main())


def test_a_budget_is_a_budget_whatever_is_asked() -> None:
    budget, rng, now = DialBackBudget(), random.Random(1), 0.0
    taken: list[tuple[float, str]] = []
    for _ in range(5000):
        now += rng.expovariate(5)
        host = f"192.0.2.{rng.randrange(40)}"
        recent = [one for one in taken if one[0] > now - PERIOD]
        free = len(recent) < IN_ALL and sum(one[1] == host for one in recent) < PER_HOST
        assert budget.take(host, now) is free
        if free:
            taken.append((now, host))
        assert len(budget._dials) <= IN_ALL
    assert len(taken) > 100


@pytest.mark.parametrize(
    ("found", "means"),
    [
        ([], Verdict.UNKNOWN),
        ([True], Verdict.REACHABLE),
        ([False], Verdict.UNREACHABLE),
        ([True, False], Verdict.REACHABLE),
        ([True, False, False], Verdict.UNREACHABLE),
        ([True, True, False], Verdict.REACHABLE),
    ],
)
def test_what_answers_mean_together(found: list[bool], means: Verdict) -> None:
    assert verdict([Answer(one, "192.0.2.1") for one in found]) is means


def test_a_node_on_loopback_asks_nobody(run_async: Runner) -> None:
    async def main() -> None:
        async def fetch() -> list[object]:
            raise AssertionError("asked")

        greeting = Greeting(identity=OTHER)
        rng = random.Random(1)
        await Reachability(Address("127.0.0.1", 1), fetch, greeting, rng=rng).run()  # type: ignore[arg-type]

    run_async(main())


def test_silent_peers_are_no_verdict(run_async: Runner, caplog: pytest.LogCaptureFixture) -> None:
    """Whom we cannot ask says nothing about us, and is no reason to warn."""
    caplog.set_level(logging.INFO, logger="swarmd")

    async def main() -> None:
        silent = info_of(PeerId(b"s" * 20), address=Address("localhost", free_port()))
        own = info_of(OTHER.peer_id, address=Address("192.0.2.1", 1))

        async def fetch() -> list[object]:
            return [silent, own]

        greeting = Greeting(identity=OTHER)
        check = Reachability(Address("192.0.2.1", 1), fetch, greeting, rng=random.Random(1))  # type: ignore[arg-type]
        assert await check.check() is Verdict.UNKNOWN

    run_async(main())
    assert caplog.records == []


class _Quiet:
    """Stands in for directory and announcer; notes what is announced."""

    def __init__(self, peers: list[PeerInfo]) -> None:
        self.state = PeerState.ONLINE
        self.told: list[tuple[PeerState, Address]] = []
        self.announced: Announced | None = None
        self._peers = peers

    async def fetch(self, _model_id: object) -> list[PeerInfo]:
        return self._peers

    async def announce(self, state: PeerState) -> None:
        assert self.announced is not None
        self.told.append((state, self.announced.address))


@pytest.mark.parametrize("told_to", [False, True])
def test_a_node_that_nobody_can_dial_seeks_a_relay(
    told_to: bool, swarm: LocalSwarm, run_async: Runner
) -> None:
    async def main() -> None:
        async with swarm.running([ALL, ALL]):
            relay, hidden = swarm.peers
            config = DaemonConfig(blocks=BlockRequest(span=ALL), relayed=told_to)
            own = Address("127.0.0.1", 9)
            announced = Announced(config, hidden.folder, hidden.identity.peer_id, own)
            quiet: Any = _Quiet([relay.info, hidden.info])
            quiet.announced = announced
            door = Door(hidden.identity)
            greeting = Greeting(identity=hidden.identity)
            reach = Reach(quiet, quiet, announced, door, greeting, random.Random(1))
            assert (reach.desk is None) is told_to
            async with TaskOwner("reach") as owner:
                await reach.begin(hidden.listener, owner)
                if not told_to:
                    assert quiet.told.pop() == (PeerState.ONLINE, own)
                    reach.found(Verdict.UNREACHABLE)
                    reach.found(Verdict.UNREACHABLE)
                await until(lambda: quiet.told == [(PeerState.ONLINE, relay.address)])
                relay.desk.close()
                for connection in relay.connections:
                    connection.abort()
                lost = PeerState.JOINING if told_to else PeerState.ONLINE
                await until(lambda: quiet.told[1:2] == [(lost, own)])
                await until(lambda: quiet.told[2:] == [(PeerState.ONLINE, relay.address)])
                if not told_to:
                    reach.found(Verdict.REACHABLE)
                    await until(lambda: quiet.told[3:] == [(PeerState.ONLINE, own)])
                    await until(lambda: relay.desk.relayed == 0)
            await reach.end()

    run_async(main())


@pytest.mark.parametrize(
    ("host", "address", "upnp"),
    [
        ("127.0.0.1", "127.0.0.1", True),
        ("127.0.0.1", "192.0.2.1", True),  # --advertise does not make it listen elsewhere
        ("0.0.0.0", "127.0.0.1", True),
        ("0.0.0.0", "192.0.2.1", False),
    ],
)
def test_who_asks_no_router(
    host: str, address: str, upnp: bool, swarm: LocalSwarm, run_async: Runner,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """On loopback, or when told so, a node that cannot be dialled seeks a relay at once."""

    def asked(*_: object, **__: object) -> None:
        raise AssertionError("asked a router")

    monkeypatch.setattr("swarmd.node.reach.PortMapper", asked)

    async def main() -> None:
        async with swarm.running([ALL, ALL]):
            relay, hidden = swarm.peers
            config = DaemonConfig(blocks=BlockRequest(span=ALL), host=host, upnp=upnp)
            own = Address(address, 9)
            announced = Announced(config, hidden.folder, hidden.identity.peer_id, own)
            quiet: Any = _Quiet([relay.info, hidden.info])
            quiet.announced = announced
            greeting = Greeting(identity=hidden.identity)
            door = Door(hidden.identity)
            reach = Reach(quiet, quiet, announced, door, greeting, random.Random(1))
            async with TaskOwner("reach") as owner:
                reach._listener, reach._owner = hidden.listener, owner
                reach.found(Verdict.UNREACHABLE)
                await until(lambda: quiet.told == [(PeerState.ONLINE, relay.address)])
            await reach.end()

    run_async(main())


def test_a_router_is_asked_first_and_its_word_is_checked(
    swarm: LocalSwarm, run_async: Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    """asking, mapped, seeking, relayed, mapped again, and direct: the table of `Reach`."""
    outside = Address("1.2.3.4", 40000)

    async def main() -> None:
        async with swarm.running([ALL, ALL]):
            relay, hidden = swarm.peers
            mappers: list[_Mapper] = []

            class _Mapper:
                def __init__(self, _port: int, _on: object, _check: object, tell: Any, **_: Any):
                    self.tell, self.dropped, self.shakes = tell, False, 0
                    mappers.append(self)

                async def run(self) -> None:
                    await asyncio.Event().wait()

                async def drop(self) -> None:
                    self.dropped = True

                def shaken(self) -> None:
                    self.shakes += 1

            monkeypatch.setattr("swarmd.node.reach.PortMapper", _Mapper)
            monkeypatch.setattr("swarmd.node.reach.local_interfaces", lambda _: ["home"])
            config = DaemonConfig(blocks=BlockRequest(span=ALL), host="192.0.2.1")
            own = Address("192.0.2.1", 9)
            announced = Announced(config, hidden.folder, hidden.identity.peer_id, own)
            quiet: Any = _Quiet([relay.info, hidden.info])
            quiet.announced, quiet.address = announced, own
            greeting = Greeting(identity=hidden.identity)
            door = Door(hidden.identity)
            reach = Reach(quiet, quiet, announced, door, greeting, random.Random(1))
            at_router = (PeerState.ONLINE, outside)
            relayed = (PeerState.ONLINE, relay.address)
            at_home = (PeerState.ONLINE, own)
            async with TaskOwner("reach") as owner:
                reach._listener, reach._owner = hidden.listener, owner
                reach.found(Verdict.UNREACHABLE)
                (mapper,) = mappers
                await mapper.tell(outside)
                assert quiet.told == [at_router]
                reach.found(Verdict.UNREACHABLE)
                assert mapper.shakes == 1
                await mapper.tell(None)
                await until(lambda: quiet.told[1:] == [at_home, relayed])
                await mapper.tell(outside)
                await until(lambda: relay.desk.relayed == 0)
                assert quiet.told[3:] == [at_router]  # the lost relay is no news
                await mapper.tell(None)
                await until(lambda: quiet.told[4:] == [at_home, relayed])
                reach.found(Verdict.REACHABLE)
                await until(lambda: quiet.told[6:] == [at_home] and mapper.dropped)
                await reach.end()

    run_async(main())
