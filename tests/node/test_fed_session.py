"""Steps that come to a session from the hop before it: who may feed it, and what comes late."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace

import pytest

from swarmd.blocks import Span
from swarmd.clock import ManualClock
from swarmd.errors import BadRequest, DeadlineExceeded, UnknownSession
from swarmd.identity import PeerId
from swarmd.node.edge import KnownPeers
from swarmd.peers import Address, ModelId, PeerInfo, PeerState
from swarmd.wire.messages import (
    Close,
    Closed,
    Fed,
    Feed,
    Link,
    Opened,
    Output,
    Ping,
    Pong,
    Unlinked,
)
from swarmd.wire.messages import Open as OpenMessage
from tests.conftest import Runner
from tests.families import N_BLOCKS
from tests.node.hostile_client import ID, OTHER_ID, Gate, Stage, Stranger, hidden, step, until

SECRET, WRONG = b"f" * 16, b"w" * 16


async def opened(client: Stranger) -> None:
    await client.greet()
    client.send(OpenMessage(ID, 0, N_BLOCKS, 100, SECRET))
    await client.expect(Opened)


async def feeding(feeder: Stranger) -> None:
    await feeder.greet()
    feeder.send(Feed(ID, SECRET))
    await feeder.expect(Fed)


def test_steps_that_are_fed_are_answered_to_the_client(stage: Stage, run_async: Runner) -> None:
    async def work() -> None:
        async with stage() as scene, scene.stranger() as client, scene.stranger() as before:
            await opened(client)
            await feeding(before)
            before.send(Ping(7))
            assert (await before.expect(Pong)).nonce == 7
            before.send(step(0, 1, tokens=2), payload=hidden(2, 5))
            assert (await client.expect(Output)).step == 1
            client.send(step(2, 2), payload=hidden(1, 6))
            assert (await client.expect(Output)).step == 2
            client.send(Close(ID))
            await client.expect(Closed)
            await before.ended()

    run_async(work())


@pytest.mark.parametrize(
    "feed", [Feed(ID, WRONG), Feed(OTHER_ID, SECRET)], ids=["wrong secret", "wrong session"]
)
def test_who_does_not_know_the_secret_feeds_nothing(
    stage: Stage, run_async: Runner, feed: Feed
) -> None:
    async def work() -> None:
        async with stage() as scene, scene.stranger() as client, scene.stranger() as other:
            await opened(client)
            await other.greet()
            other.send(feed)
            await other.refused(UnknownSession)
            other.send(step(0, 1), payload=hidden(1, 5))
            await other.refused(UnknownSession)
            await other.ended()
            await client.is_served()

    run_async(work())


def test_a_session_that_was_opened_without_a_secret_cannot_be_fed(
    stage: Stage, run_async: Runner
) -> None:
    async def work() -> None:
        async with stage() as scene, scene.stranger() as client, scene.stranger() as other:
            await client.greet()
            await client.open()
            await other.greet()
            other.send(Feed(ID, bytes(16)))
            await other.refused(UnknownSession)
            await client.is_served()

    run_async(work())


def test_a_secret_opens_one_session_only(stage: Stage, run_async: Runner) -> None:
    async def work() -> None:
        async with stage() as scene, scene.stranger() as client, scene.stranger() as other:
            await opened(client)
            await other.greet()
            other.send(OpenMessage(OTHER_ID, 0, N_BLOCKS, 100, SECRET))
            await other.refused(BadRequest)
            await client.is_served()

    run_async(work())


def test_a_second_feeder_takes_the_place_of_the_first(stage: Stage, run_async: Runner) -> None:
    async def work() -> None:
        async with (
            stage() as scene, scene.stranger() as client,
            scene.stranger() as first, scene.stranger() as second,
        ):  # fmt: skip
            await opened(client)
            await feeding(first)
            await feeding(second)
            await first.ended()
            second.send(step(0, 1), payload=hidden(1, 5))
            assert (await client.expect(Output)).step == 1

    run_async(work())


def test_a_feeder_that_says_anything_else_is_dropped_alone(stage: Stage, run_async: Runner) -> None:
    async def work() -> None:
        async with stage() as scene, scene.stranger() as client, scene.stranger() as before:
            await opened(client)
            await feeding(before)
            before.send(Close(ID))
            await before.refused(BadRequest)
            await before.ended()
            await client.is_served()

    run_async(work())


def test_what_comes_late_does_not_cut_back(stage: Stage, run_async: Runner) -> None:
    """A fed step of a lower number is dropped; one of the client's own is refused."""

    async def work() -> None:
        async with stage() as scene, scene.stranger() as client, scene.stranger() as before:
            await opened(client)
            await feeding(before)
            client.send(step(0, 5, tokens=3), payload=hidden(3, 5))
            assert (await client.expect(Output)).step == 5
            before.send(step(0, 4), payload=hidden(1, 6))
            client.send(step(3, 3), payload=hidden(1, 6))
            assert (await client.refused(DeadlineExceeded)).step == 3
            before.send(step(3, 6), payload=hidden(1, 7))  # at 3, so nothing was cut back
            assert (await client.expect(Output)).step == 6

    run_async(work())


def test_a_fed_step_that_is_refused_is_the_clients_to_hear(stage: Stage, run_async: Runner) -> None:
    async def work() -> None:
        async with stage() as scene, scene.stranger() as client, scene.stranger() as before:
            await opened(client)
            await feeding(before)
            gate = Gate(scene)
            late = replace(step(0, 1), deadline_ms=1)
            before.send(late, payload=hidden(1, 5))
            await until(lambda: gate.waiting == 1)
            passed = asyncio.get_running_loop().time() + 0.002
            await until(lambda: asyncio.get_running_loop().time() > passed)
            gate.open.set()
            assert (await client.refused(DeadlineExceeded)).step == 1
            await client.is_served()

    run_async(work())


def test_a_link_to_nobody_and_links_without_end(stage: Stage, run_async: Runner) -> None:
    async def work() -> None:
        async with stage() as scene, scene.stranger() as client:
            await opened(client)
            client.send(Link(ID, 1, b"p" * 20, OTHER_ID, WRONG))
            assert "announces no blocks" in (await client.expect(Unlinked)).reason
            for number in range(2, 260):
                client.send(Link(ID, number, b"p" * 20, OTHER_ID, WRONG))
            reasons = set()
            while True:
                answer = await client.expect(Unlinked)
                reasons.add(answer.reason)
                if answer.link == 259:
                    break
            assert "too many links" in reasons
            await client.is_served()

    run_async(work())


def announcement(number: int) -> PeerInfo:
    return PeerInfo(
        PeerId(bytes([number]) * 20), Address("127.0.0.1", 4000 + number), ModelId(bytes(16)),
        "tiny", 2, Span(0, 2), PeerState.ONLINE, 1000, 100, 1024, "float32",
    )  # fmt: skip


def test_a_node_dials_only_whom_it_finds_announced(run_async: Runner) -> None:
    async def work() -> None:
        announced: list[PeerInfo] = [announcement(1)]
        fetches = 0

        async def fetch() -> Sequence[PeerInfo]:
            nonlocal fetches
            fetches += 1
            return list(announced)

        clock = ManualClock()
        known = KnownPeers(fetch, clock)
        late = announcement(2)
        assert await known.whereis(announced[0].peer_id) == announced[0].address
        assert await known.whereis(late.peer_id) is None
        assert await known.whereis(PeerId(b"x" * 20)) is None
        assert fetches == 1, "strangers cost at most a fetch each 2 s"
        announced.append(late)
        clock.advance(2.5)
        assert await known.whereis(late.peer_id) == late.address
        assert await known.whereis(announced[0].peer_id) == announced[0].address
        assert fetches == 2
        del announced[0]
        clock.advance(61)
        assert await known.whereis(announcement(1).peer_id) is None
        assert fetches == 3

    run_async(work())
