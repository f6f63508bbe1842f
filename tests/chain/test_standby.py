"""A second peer with a ready cache: a loss costs no replay, and the answer stays the same."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest
import torch

from swarmd.blocks import Span
from swarmd.client import spares
from swarmd.client.chain_session import ChainSession
from swarmd.client.generate import Withdrawn, decode_events
from swarmd.client.sampling import Sampler
from swarmd.client.session_config import SessionConfig
from swarmd.compute.ends import ModelEnds
from swarmd.errors import Busy
from tests.chain.answers import NEW_TOKENS, PROMPT, SAMPLING, SPANS
from tests.chain.lies import ALL, lying
from tests.conftest import Runner
from tests.local_swarm import LocalPeer, LocalSwarm

STANDBY = SessionConfig(standby=True)
Disturb = Callable[[int], Awaitable[None]]


@contextlib.asynccontextmanager
async def followed(
    swarm: LocalSwarm, config: SessionConfig = STANDBY
) -> AsyncIterator[ChainSession]:
    """A session over the first three peers."""
    session = await swarm.session(swarm.peers[:3], max_length=64, config=config)
    async with session:
        yield session


def behind(session: ChainSession) -> int:
    """By how many positions the standby that lacks most is behind; all if one is missing."""
    hops = session._machine.hops
    held = [session._spares.held(key) for key, _ in hops]
    known = [len(session._bounds.inputs[key]) for key, _ in hops]
    return max(now - (has or 0) for now, has in zip(known, held, strict=True))


async def caught_up(session: ChainSession) -> None:
    async with asyncio.timeout(10):
        while behind(session):
            await asyncio.sleep(0.005)


async def answered(ends: ModelEnds, session: ChainSession, disturb: Disturb) -> list[int]:
    found: list[int] = []
    async for event in decode_events(
        ends, session, PROMPT, Sampler(SAMPLING), max_new_tokens=NEW_TOKENS,
        eos_token_ids=frozenset(),
    ):  # fmt: skip
        if isinstance(event, Withdrawn):
            del found[event.kept :]
        else:
            found.append(event)
            await disturb(len(found))
    return found


@pytest.mark.parametrize("route", ["ring", "hub"])
@pytest.mark.parametrize("hop", [0, 1, 2])
def test_the_loss_of_a_hop_costs_no_replay(
    hop: int, route: str, swarm: LocalSwarm, ends: ModelEnds, undisturbed: list[int],
    run_async: Runner,
) -> None:  # fmt: skip
    async def work() -> None:
        swarm.router.route = route  # type: ignore[assignment]
        async with followed(swarm) as session:

            async def disturb(token: int) -> None:
                if token == 12:
                    await caught_up(session)
                    swarm.peers[hop].kill()

            assert await answered(ends, session, disturb) == undisturbed
            (recovery,) = session.statistics.recoveries
            assert recovery.lost.span == SPANS[hop]
            assert recovery.by[0].peer.peer_id == swarm.peers[3 + hop].identity.peer_id
            # the positions of one or two steps, which had not come to the standby
            assert session.statistics.replayed_positions <= 2, session.story
            # another one takes its place if there is one; here, there is none
            assert sum("stands by" in line for line in session.story) == 3

    async def whole() -> None:
        async with swarm.running(SPANS + SPANS):
            await work()

    run_async(whole())


def test_hop_after_hop_as_long_as_somebody_stands_by(
    swarm: LocalSwarm, ends: ModelEnds, undisturbed: list[int], run_async: Runner,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """The hop, then who stood by and took its place; a third one stands by in the meantime."""
    monkeypatch.setattr(spares, "BUSY_SECONDS", 0.01)

    async def work() -> None:
        async with swarm.running([*SPANS, *SPANS, SPANS[1]]), followed(swarm) as session:

            async def disturb(token: int) -> None:
                if token in (6, 14):
                    await caught_up(session)
                    now = session.chain[1].peer.peer_id
                    next(p for p in swarm.peers if p.identity.peer_id == now).kill()

            assert await answered(ends, session, disturb) == undisturbed
            assert len(session.statistics.recoveries) == 2
            assert session.statistics.replayed_positions <= 4, session.story

    run_async(work())


def test_who_stands_by_may_die_first_or_with_its_hop(
    swarm: LocalSwarm, ends: ModelEnds, undisturbed: list[int], run_async: Runner
) -> None:
    async def work() -> None:
        async with swarm.running([*SPANS, *SPANS, *SPANS]), followed(swarm) as session:

            async def disturb(token: int) -> None:
                if token not in (5, 10):
                    return
                await caught_up(session)
                victims = [standby_of(session, swarm, token == 10)]
                if token == 10:
                    now = session.chain[1].peer.peer_id
                    victims.append(next(p for p in swarm.peers if p.identity.peer_id == now))
                for victim in victims:
                    victim.kill()

            assert await answered(ends, session, disturb) == undisturbed
            assert any("which stood by, is lost" in line for line in session.story)

    run_async(work())


def standby_of(session: ChainSession, swarm: LocalSwarm, middle: bool) -> LocalPeer:
    key = session._machine.hops[1 if middle else 0][0]
    peer_id = session._spares._ready[key].hop.peer.peer_id
    return next(peer for peer in swarm.peers if peer.identity.peer_id == peer_id)


def test_steps_that_cut_back_are_followed(
    swarm: LocalSwarm, ends: ModelEnds, run_async: Runner
) -> None:
    """As speculation does: from a position before the end, with other inputs."""

    async def outputs(kill: bool) -> list[bytes]:
        async with swarm.running(SPANS + SPANS), followed(swarm) as session:
            size = session._bounds.position_bytes
            ids = [torch.tensor([[number]]) for number in range(3, 60)]
            rows = [ends.embed(one, 0).numpy().tobytes() for one in ids]
            assert len(rows[0]) == size
            found = []
            for start, count in ((0, 20), (18, 5), (10, 4), (14, 1), (3, 6), (9, 1)):
                data = b"".join(rows[(start + n + count) % len(rows)] for n in range(count))
                found.append(await session.step(start, data, count))
                if kill:
                    await caught_up(session)
            if kill:
                for victim in swarm.peers[:3]:
                    victim.kill()
            found.append(await session.step(10, rows[7], 1))
            if kill:
                assert session.statistics.replayed_positions <= 2, session.story
            return found

    calm = run_async(outputs(False))
    assert run_async(outputs(True)) == calm


def test_a_standby_without_room_is_asked_again(
    swarm: LocalSwarm, ends: ModelEnds, undisturbed: list[int], run_async: Runner,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(spares, "BUSY_SECONDS", 0.02)

    async def work() -> None:
        async with swarm.running(SPANS + SPANS), followed(swarm) as session:
            engine, refused = swarm.peers[3].engine, 0
            run = engine.step

            async def full_at_first(*arguments: object, **options: object) -> object:
                nonlocal refused
                if refused < 3:
                    refused += 1
                    raise Busy("no room", retry_after=0.01)
                return await run(*arguments, **options)  # type: ignore[arg-type]

            monkeypatch.setattr(engine, "step", full_at_first)

            async def disturb(token: int) -> None:
                if token == 8:
                    await caught_up(session)

            assert await answered(ends, session, disturb) == undisturbed
            assert refused == 3
            assert not session.statistics.recoveries

    run_async(work())


def test_without_the_option_nobody_holds_a_second_cache(
    swarm: LocalSwarm, ends: ModelEnds, undisturbed: list[int], run_async: Runner
) -> None:
    async def work() -> None:
        async with swarm.running(SPANS + SPANS), followed(swarm, SessionConfig()) as session:

            async def disturb(token: int) -> None:
                if token == 8:
                    for peer in swarm.peers[3:]:
                        assert not peer.server._live

            assert await answered(ends, session, disturb) == undisturbed
            assert "stands by" not in "".join(session.story)

    run_async(work())


def test_where_no_single_peer_holds_the_blocks_nobody_stands_by(
    swarm: LocalSwarm, ends: ModelEnds, undisturbed: list[int], run_async: Runner
) -> None:
    async def work() -> None:
        halves = [Span(2, 3), Span(3, 4)]
        async with swarm.running([*SPANS, *halves]), followed(swarm) as session:

            async def disturb(token: int) -> None:
                if token == 8:
                    swarm.peers[1].kill()

            assert await answered(ends, session, disturb) == undisturbed
            assert len(session.statistics.recoveries[0].by) == 2

    run_async(work())


def test_a_liar_is_replaced_by_who_stands_by(
    swarm: LocalSwarm, ends: ModelEnds, undisturbed: list[int], run_async: Runner
) -> None:
    config = SessionConfig(standby=True, checks=ALL)

    async def work() -> None:
        async with swarm.running([*SPANS, *SPANS, SPANS[1]]), followed(swarm, config) as session:
            lying(swarm.peers[1], lambda position: position >= 45)

            async def disturb(token: int) -> None:
                await caught_up(session) if token < 8 else await asyncio.sleep(0.05)

            assert await answered(ends, session, disturb) == undisturbed
            await session.settle()
            (recovery,) = session.statistics.recoveries
            assert recovery.reason == "its outputs were wrong"
            assert recovery.by[0].peer.peer_id != swarm.peers[1].identity.peer_id

    run_async(work())
