"""Kill any peer at any token: the answer goes on and equals the undisturbed one."""

from __future__ import annotations

import asyncio
import dataclasses

import pytest

from swarmd.blocks import Span
from swarmd.client.chain_session import ChainSession
from swarmd.client.generate import decode_tokens
from swarmd.client.sampling import Sampler, SamplingConfig
from swarmd.compute.ends import ModelEnds
from swarmd.compute.model_folder import ModelFolder, open_folder
from swarmd.errors import NoRoute, ReplayExhausted
from tests.conftest import Runner
from tests.families import save_tiny
from tests.local_swarm import LocalPeer, LocalSwarm

PROMPT = list(range(3, 40))
NEW_TOKENS = 24
SAMPLING = SamplingConfig(temperature=1.0, seed=11)
SPANS = [Span(0, 2), Span(2, 4), Span(4, 6)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> ModelFolder:
    return open_folder(save_tiny("llama", tmp_path_factory.mktemp("m") / "llama"))


@pytest.fixture(scope="module")
def ends(folder: ModelFolder) -> ModelEnds:
    return ModelEnds(folder, dtype="float32")


@pytest.fixture(scope="module")
def swarm(folder: ModelFolder) -> LocalSwarm:
    return LocalSwarm(folder)


async def answer(
    ends: ModelEnds, session: ChainSession, kills: dict[int, list[LocalPeer]] | None = None
) -> list[int]:
    """Greedy tokens; `kills` are the peers that die just before a token of that number."""
    tokens: list[int] = []
    for victim in (kills or {}).get(0, []):
        victim.kill()
    async for token in decode_tokens(
        ends,
        session,
        PROMPT,
        Sampler(SAMPLING),
        max_new_tokens=NEW_TOKENS,
        eos_token_ids=frozenset(),
    ):
        tokens.append(token)
        for victim in (kills or {}).get(len(tokens), []):
            victim.kill()
    return tokens


@pytest.fixture(scope="module")
def undisturbed(swarm: LocalSwarm, ends: ModelEnds) -> list[int]:
    async def work() -> list[int]:
        async with swarm.running(SPANS):
            async with await swarm.session(swarm.peers, max_length=64) as session:
                return await answer(ends, session)

    tokens = asyncio.run(work())
    assert len(set(tokens)) > 4, "an answer that repeats itself proves little"
    return tokens


@pytest.mark.parametrize("hop", [0, 1, 2])
@pytest.mark.parametrize("token", range(NEW_TOKENS))
def test_killing_any_hop_at_any_token(
    hop: int,
    token: int,
    swarm: LocalSwarm,
    ends: ModelEnds,
    undisturbed: list[int],
    run_async: Runner,
) -> None:
    async def work() -> None:
        async with swarm.running(SPANS + SPANS):
            primary = swarm.peers[:3]
            async with await swarm.session(primary, max_length=64) as session:
                assert await answer(ends, session, {token: [primary[hop]]}) == undisturbed
                (recovery,) = session.statistics.recoveries
                assert recovery.lost.span == SPANS[hop]
                assert recovery.by[0].peer.peer_id == swarm.peers[3 + hop].info.peer_id

    run_async(work())


@pytest.mark.parametrize("pair", [(0, 1), (0, 2), (1, 2)])
@pytest.mark.parametrize("token", [0, 1, 11, 23])
def test_killing_two_peers_at_once(
    pair: tuple[int, int],
    token: int,
    swarm: LocalSwarm,
    ends: ModelEnds,
    undisturbed: list[int],
    run_async: Runner,
) -> None:
    async def work() -> None:
        async with swarm.running(SPANS + SPANS):
            victims = [swarm.peers[i] for i in pair]
            async with await swarm.session(swarm.peers[:3], max_length=64) as session:
                assert await answer(ends, session, {token: victims}) == undisturbed
                assert len(session.statistics.recoveries) == 2

    run_async(work())


@pytest.mark.parametrize("hop", [0, 1, 2])
def test_killing_during_a_chunked_prefill(
    hop: int, swarm: LocalSwarm, ends: ModelEnds, undisturbed: list[int], run_async: Runner
) -> None:
    async def work() -> None:
        async with swarm.running(SPANS + SPANS):
            victim = swarm.peers[hop]
            session = await swarm.session(swarm.peers[:3], max_length=64)
            session._machine.chunk_tokens = 5  # many chunks, so that some are under way
            original = victim.engine.step
            steps = 0

            async def dying(*args: object, **kwargs: object) -> object:
                nonlocal steps
                steps += 1
                if steps == 3:
                    victim.kill()
                return await original(*args, **kwargs)  # type: ignore[arg-type]

            victim.engine.step = dying  # type: ignore[method-assign, assignment]
            async with session:
                assert await answer(ends, session) == undisturbed
            assert [r.lost.span for r in session.statistics.recoveries] == [SPANS[hop]]

    run_async(work())


def test_one_failure_after_the_other_until_spares_with_other_spans_serve(
    swarm: LocalSwarm, ends: ModelEnds, undisturbed: list[int], run_async: Runner
) -> None:
    """The replacement dies as well; what is left holds the blocks in other spans."""

    async def work() -> None:
        spares = [Span(1, 5), Span(0, 3), Span(3, 6)]
        async with swarm.running([*SPANS, *SPANS, *spares]):
            first, second = swarm.peers[1], swarm.peers[4]
            kills = {5: [first], 9: [second], 10: [swarm.peers[0], swarm.peers[3]]}
            async with await swarm.session(swarm.peers[:3], max_length=64) as session:
                assert await answer(ends, session, kills) == undisturbed
                assert len(session.statistics.recoveries) >= 2

    run_async(work())


def test_without_a_spare_one_error_names_the_missing_blocks(
    swarm: LocalSwarm, ends: ModelEnds, run_async: Runner
) -> None:
    async def work() -> None:
        async with swarm.running(SPANS):
            async with await swarm.session(swarm.peers, max_length=64) as session:
                with pytest.raises(NoRoute, match="blocks 2:4 of llama") as caught:
                    await answer(ends, session, {4: [swarm.peers[1]]})
                assert caught.value.missing == (Span(2, 4),)
                assert "swarmd serve --blocks 2:4" in str(caught.value)

    run_async(work())


def test_wait_goes_on_when_somebody_serves_the_blocks(
    swarm: LocalSwarm, ends: ModelEnds, undisturbed: list[int], run_async: Runner
) -> None:
    async def work() -> None:
        async with swarm.running([*SPANS, SPANS[1]]):
            *primary, late = swarm.peers
            swarm.peers = primary
            swarm.router.config = dataclasses.replace(
                swarm.router.config, refresh_at_most_every=0.05
            )
            session = await swarm.session(primary, max_length=64, wait=30.0)
            waiting = asyncio.Event()
            session._on_story = lambda line: waiting.set() if "waiting" in line else None

            async def join_late() -> None:
                await waiting.wait()
                swarm.peers = [*primary, late]

            async with session:
                joining = asyncio.ensure_future(join_late())
                assert await answer(ends, session, {4: [primary[1]]}) == undisturbed
                await joining

    run_async(work())


def test_a_peer_that_hangs_is_replaced_after_its_deadline(
    swarm: LocalSwarm, ends: ModelEnds, undisturbed: list[int], run_async: Runner
) -> None:
    async def work() -> None:
        async with swarm.running(SPANS + SPANS):
            victim = swarm.peers[1]

            async def never(*_args: object, **_kwargs: object) -> object:
                return await asyncio.get_running_loop().create_future()

            session = await swarm.session(swarm.peers[:3], max_length=64)
            async with session:
                tokens = []
                async for token in decode_tokens(
                    ends,
                    session,
                    PROMPT,
                    Sampler(SAMPLING),
                    max_new_tokens=NEW_TOKENS,
                    eos_token_ids=frozenset(),
                ):
                    tokens.append(token)
                    if len(tokens) == 10:
                        victim.engine.step = never  # type: ignore[method-assign, assignment]
                assert tokens == undisturbed
                (recovery,) = session.statistics.recoveries
                assert "no answer within" in recovery.reason

    run_async(work())


def test_a_bug_is_not_taken_for_a_bad_network(
    swarm: LocalSwarm, ends: ModelEnds, run_async: Runner
) -> None:
    """What is not retryable stops at once: here a step beyond the session's limit."""

    async def work() -> None:
        from swarmd.errors import PositionOutOfRange

        async with swarm.running(SPANS + SPANS):
            session = await swarm.session(swarm.peers[:3], max_length=8)
            async with session:
                with pytest.raises(PositionOutOfRange):
                    await session.step(0, bytes(9 * 32 * 4), 9)
                assert session.statistics.recoveries == []

    run_async(work())


def test_peers_that_keep_failing_end_in_one_error_with_the_story(
    swarm: LocalSwarm, ends: ModelEnds, run_async: Runner
) -> None:
    async def work() -> None:
        async with swarm.running(SPANS, kv_tokens=32):  # never room for the prompt
            swarm.router.config = dataclasses.replace(swarm.router.config, longest_pause=0.01)
            session = await swarm.session(swarm.peers, max_length=64)
            async with session:
                with pytest.raises(ReplayExhausted, match="the attention cache is full"):
                    await answer(ends, session)

    run_async(work())


def test_a_peer_that_returns_nan_is_replaced(
    swarm: LocalSwarm, ends: ModelEnds, undisturbed: list[int], run_async: Runner
) -> None:
    async def work() -> None:
        async with swarm.running(SPANS + SPANS):
            liar = swarm.peers[1]
            original = liar.engine.step

            async def poisoned(*args: object, **kwargs: object) -> object:
                result = await original(*args, **kwargs)  # type: ignore[arg-type]
                hidden = result.hidden.clone()
                hidden[0, -1, 3] = float("nan")
                return dataclasses.replace(result, hidden=hidden)

            liar.engine.step = poisoned  # type: ignore[method-assign, assignment]
            async with await swarm.session(swarm.peers[:3], max_length=64) as session:
                assert await answer(ends, session) == undisturbed
            (recovery,) = session.statistics.recoveries
            assert "not finite" in recovery.reason

    run_async(work())
