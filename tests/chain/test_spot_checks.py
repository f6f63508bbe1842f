"""Peers that lie with finite numbers: they are found, and the answer equals the undisturbed one."""

from __future__ import annotations

import asyncio
import dataclasses
from typing import Any

import pytest

from swarmd.blocks import Span
from swarmd.client.evidence import Evidence
from swarmd.client.generate import Withdrawn, decode_events
from swarmd.client.sampling import Sampler, SamplingConfig
from swarmd.client.spot_checks import CheckConfig
from swarmd.compute.ends import ModelEnds
from swarmd.errors import Busy
from swarmd.routing.verification import Verdict
from tests.chain.answers import NEW_TOKENS, PROMPT, SAMPLING, SPANS
from tests.chain.lies import ALL, GREEDY, LAST, Honest, checked_answer, lying
from tests.chain.test_refusals import refusing
from tests.conftest import Runner
from tests.local_swarm import LocalSwarm


@pytest.mark.parametrize("pace", [0.0, 0.01], ids=["fast", "slow"])
@pytest.mark.parametrize("hop", [0, 1, 2])
@pytest.mark.parametrize(
    "first", [0, 20, len(PROMPT) - 1, len(PROMPT), len(PROMPT) + 9, LAST]
)  # fmt: skip
def test_a_lie_from_any_position_on_is_found_and_redone(
    first: int,
    hop: int,
    pace: float,
    sampling: SamplingConfig,
    honest: Honest,
    swarm: LocalSwarm,
    ends: ModelEnds,
    run_async: Runner,
) -> None:
    expected = honest(sampling)

    async def work() -> None:
        kept: list[Evidence] = []

        async def keep(evidence: Evidence) -> None:
            kept.append(evidence)

        async with swarm.running(SPANS * 3):
            liar = swarm.peers[hop]
            lying(liar, lambda position: position >= first)
            checks = dataclasses.replace(ALL, keep=keep)
            session = await swarm.session(swarm.peers[:3], max_length=64, checks=checks)
            async with session:
                told = await checked_answer(ends, session, sampling, pace=pace)
                assert told.tokens == expected
                assert told.withdrawn == [max(0, first + 1 - len(PROMPT))]
                assert session.checks is not None
                assert {one.verified for one in session.checks.checked} == {LAST + 1}
                assert session.checks.statistics.evidence == kept
            (evidence,) = kept
            assert evidence.verdict is Verdict.HOP_LIED
            assert evidence.liar == liar.info.peer_id
            assert (evidence.position, evidence.span) == (first, SPANS[hop])
            assert len({who for who, _ in evidence.opinions}) == 3
            assert liar.info.peer_id in swarm.router.health.banned(1e12)

    run_async(work())


def test_an_honest_answer_is_verified_whole_and_not_withdrawn(
    sampling: SamplingConfig, honest: Honest, swarm: LocalSwarm, ends: ModelEnds, run_async: Runner
) -> None:
    expected = honest(sampling)

    async def work() -> None:
        async with swarm.running(SPANS * 2):
            for checks in (ALL, CheckConfig(fraction=0.1, seed=b"2")):
                async with await swarm.session(
                    swarm.peers[:3], max_length=64, checks=checks
                ) as session:
                    told = await checked_answer(ends, session, sampling)
                    assert (told.tokens, told.withdrawn) == (expected, [])
                    assert session.checks is not None
                    found = session.checks.statistics
                    assert found.checks > 0
                    assert found.disputes == 0
                    assert not found.skipped
                    assert found.largest_difference < 1e-4
                    assert all(one.verified > len(PROMPT) - 1 for one in session.checks.checked)
            assert not swarm.router.health.banned(swarm.router.clock.monotonic())

    run_async(work())


@pytest.mark.parametrize("fraction", [0.1, 0.3])
def test_a_rare_lie_is_found_when_any_later_position_is_drawn(
    fraction: float, honest: Honest, swarm: LocalSwarm, ends: ModelEnds, run_async: Runner
) -> None:
    """One wrong output, long before the one that is drawn."""
    expected = honest(SAMPLING)

    async def work() -> None:
        async with swarm.running(SPANS * 3):
            lying(swarm.peers[1], lambda position: position == 40)
            checks = CheckConfig(fraction=fraction, seed=b"3")
            async with await swarm.session(
                swarm.peers[:3], max_length=64, checks=checks
            ) as session:
                told = await checked_answer(ends, session, SAMPLING)
                assert told.tokens == expected
                assert told.withdrawn == [4]

    run_async(work())


def test_a_verifier_that_lies_is_convicted_and_the_hop_is_not(
    sampling: SamplingConfig, honest: Honest, swarm: LocalSwarm, ends: ModelEnds, run_async: Runner
) -> None:
    expected = honest(sampling)

    async def work() -> None:
        async with swarm.running([*SPANS, SPANS[1], SPANS[1]]):
            liar = swarm.peers[3]
            lying(liar, lambda position: position >= 41)
            met = set()
            for seed in range(8):  # until the liar was drawn as the verifier
                checks = CheckConfig(fraction=1.0, seed=bytes([seed]))
                async with await swarm.session(
                    swarm.peers[:3], max_length=64, checks=checks
                ) as session:
                    told = await checked_answer(ends, session, sampling)
                    assert (told.tokens, told.withdrawn) == (expected, [])
                    assert session.checks is not None
                    met |= {one.verdict for one in session.checks.statistics.evidence}
                    assert session.checks.convicted <= {liar.info.peer_id}
            assert met == {Verdict.VERIFIER_LIED}
            assert swarm.router.health.banned(0.0) == {liar.info.peer_id}

    run_async(work())


def test_liars_at_two_hops_are_both_found(
    sampling: SamplingConfig, honest: Honest, swarm: LocalSwarm, ends: ModelEnds, run_async: Runner
) -> None:
    expected = honest(sampling)

    async def work() -> None:
        async with swarm.running(SPANS * 3):
            liars = [swarm.peers[0], swarm.peers[2]]
            lying(liars[0], lambda position: position >= 45)
            lying(liars[1], lambda position: position >= 41)
            async with await swarm.session(swarm.peers[:3], max_length=64, checks=ALL) as session:
                assert (await checked_answer(ends, session, sampling)).tokens == expected
                assert session.checks is not None
                assert session.checks.convicted == {liar.info.peer_id for liar in liars}

    run_async(work())


def test_a_liar_that_dies_is_still_found_when_several_hops_take_its_place(
    honest: Honest, swarm: LocalSwarm, ends: ModelEnds, run_async: Runner
) -> None:
    """Its outputs stay its own: none of those that replace it is blamed for them."""
    expected = honest(SAMPLING)

    async def work() -> None:
        parts = [Span(2, 3), Span(3, 4)]
        async with swarm.running([*SPANS, SPANS[1], SPANS[1], *parts, *parts]):
            liar, *_ = swarm.peers[1:2]
            lying(liar, lambda position: position >= 39)
            hidden = swarm.peers[3:5]
            checks = CheckConfig(fraction=1.0, seed=b"5")
            session = await swarm.session(swarm.peers[:3], max_length=64, checks=checks)
            assert session.checks is not None
            tokens: list[int] = []
            async with session:
                choose = swarm.router.choose
                left_out = {peer.info.peer_id for peer in hidden}
                swarm.router.choose = lambda *a, **k: choose(  # type: ignore[method-assign]
                    *a, **{**k, "without": frozenset(k.get("without", ())) | left_out}
                )
                second = session.checks._second

                async def held(segment: Any, check: Any) -> Any:
                    while liar.alive:  # the check comes when the liar has gone
                        await asyncio.sleep(0.001)
                    return await second(segment, check)

                session.checks._second = held  # type: ignore[method-assign]
                async for event in decode_events(
                    ends, session, PROMPT, Sampler(SAMPLING),
                    max_new_tokens=NEW_TOKENS, eos_token_ids=frozenset(),
                ):  # fmt: skip
                    if isinstance(event, Withdrawn):
                        assert event.kept == 3
                        del tokens[event.kept :]
                    else:
                        tokens.append(event)
                        if len(tokens) == 6:
                            liar.kill()
                assert [hop.span for hop in session.chain] == [SPANS[0], *parts, SPANS[2]]
                assert tokens == expected
                assert session.checks.convicted == {liar.info.peer_id}

    run_async(work())


def test_without_a_third_peer_the_answer_goes_on_with_a_warning(
    swarm: LocalSwarm, ends: ModelEnds, run_async: Runner
) -> None:
    async def work() -> None:
        async with swarm.running([*SPANS, SPANS[1]]):
            lying(swarm.peers[1], lambda position: position >= 40)
            async with await swarm.session(swarm.peers[:3], max_length=64, checks=ALL) as session:
                told = await checked_answer(ends, session, GREEDY)
                assert (len(told.tokens), told.withdrawn) == (NEW_TOKENS, [])
                assert session.checks is not None
                (evidence,) = session.checks.statistics.evidence
                assert evidence.verdict is Verdict.UNSETTLED
                assert evidence.liar is None
                assert [c.verified for c in session.checks.checked] == [0, 40, 0]
                assert any(line.startswith("WARNING") for line in session.story)
            assert not swarm.router.health.banned(swarm.router.clock.monotonic())

    run_async(work())


def test_two_that_collude_convict_an_honest_third(
    swarm: LocalSwarm, ends: ModelEnds, run_async: Runner
) -> None:
    """The documented limit of a majority of three: the answer is theirs."""

    async def work() -> None:
        async with swarm.running([*SPANS, SPANS[1], SPANS[1]]):
            for liar in swarm.peers[3:]:
                lying(liar, lambda position: position >= 40)
            async with await swarm.session(swarm.peers[:3], max_length=64, checks=ALL) as session:
                await checked_answer(ends, session, GREEDY)
                assert session.checks is not None
                assert session.checks.convicted == {swarm.peers[1].info.peer_id}

    run_async(work())


def test_nobody_to_ask_is_a_skipped_check(
    honest: Honest, swarm: LocalSwarm, ends: ModelEnds, run_async: Runner
) -> None:
    expected = honest(GREEDY)

    async def work() -> None:
        async with swarm.running([*SPANS, SPANS[1]]):
            refusing(swarm.peers[3], Busy("no room"))
            async with await swarm.session(swarm.peers[:3], max_length=64, checks=ALL) as session:
                assert (await checked_answer(ends, session, GREEDY)).tokens == expected
                assert session.checks is not None
                found = session.checks.statistics
                assert found.checks == 0
                assert set(found.skipped) == {"no other peer", "busy"}
                assert {one.verified for one in session.checks.checked} == {0}

    run_async(work())


def test_a_verifier_that_dies_is_replaced_by_another(
    honest: Honest, swarm: LocalSwarm, ends: ModelEnds, run_async: Runner
) -> None:
    async def work() -> None:
        async with swarm.running(SPANS * 3):
            async with await swarm.session(swarm.peers[:3], max_length=64, checks=ALL) as session:
                assert session.checks is not None
                tokens = []
                async for event in decode_events(
                    ends, session, PROMPT, Sampler(GREEDY),
                    max_new_tokens=NEW_TOKENS, eos_token_ids=frozenset(),
                ):  # fmt: skip
                    tokens.append(event)
                    if len(tokens) == 12:
                        await session.checks.settle()
                        for segment in session.checks._all():
                            assert segment.verifier is not None
                            victim = segment.verifier.peer.peer_id
                            for peer in swarm.peers:
                                if peer.info.peer_id == victim:
                                    peer.kill()
                assert tokens == honest(GREEDY)
                assert not session.checks.statistics.skipped
                assert {one.verified for one in session.checks.checked} == {LAST + 1}

    run_async(work())


def test_a_known_liar_is_in_no_chain_even_where_nobody_else_is_left(
    swarm: LocalSwarm, run_async: Runner
) -> None:
    async def work() -> None:
        from swarmd.errors import NoRoute

        async with swarm.running(SPANS):
            liar = swarm.peers[1].info
            await swarm.router.choose_fresh()
            swarm.router.convict(liar.peer_id)
            swarm.router.health.succeeded(liar.peer_id)
            with pytest.raises(NoRoute, match="2:4"):
                await swarm.router.choose_fresh()

    run_async(work())


def test_old_data_under_a_new_step_number_is_a_lie_like_any_other(
    honest: Honest, swarm: LocalSwarm, ends: ModelEnds, run_async: Runner
) -> None:
    """The number of the step is checked without --verify; what stands under it is not."""

    async def work() -> None:
        async with swarm.running(SPANS * 3):
            peer = swarm.peers[1]
            original, last = peer.engine.step, None

            async def stale(*args: Any, **options: Any) -> object:
                nonlocal last
                result = await original(*args, **options)
                old, last = last, result
                return old if old is not None and old.hidden.shape[1] == 1 else result

            peer.engine.step = stale  # type: ignore[method-assign, assignment]
            async with await swarm.session(swarm.peers[:3], max_length=64, checks=ALL) as session:
                told = await checked_answer(ends, session, GREEDY)
                assert told.tokens == honest(GREEDY)
                assert told.withdrawn == [2]  # the prompt and one token were right

    run_async(work())


def test_an_absurd_announced_speed_loses_the_route_after_one_session(
    swarm: LocalSwarm, ends: ModelEnds, run_async: Runner
) -> None:
    async def work() -> None:
        async with swarm.running([*SPANS, SPANS[1]]):
            boaster = swarm.peers[1]
            boaster.decode_us = 1
            swarm.peers[3].decode_us = 1500
            original = boaster.engine.step

            async def slow(*args: Any, **options: Any) -> object:
                await asyncio.sleep(0.03)
                return await original(*args, **options)

            boaster.engine.step = slow  # type: ignore[method-assign, assignment]
            session = await swarm.session([swarm.peers[0], boaster, swarm.peers[2]], max_length=64)
            assert boaster.info.peer_id in swarm.router.choose().peer_ids, "the claim attracts"
            async with session:
                await checked_answer(ends, session, GREEDY)
            for _ in range(20):  # whatever the jitter
                assert boaster.info.peer_id not in swarm.router.choose().peer_ids

    run_async(work())


@pytest.mark.parametrize("hop", [0, 2])
def test_a_node_of_ones_own_settles_it_alone(
    hop: int, honest: Honest, swarm: LocalSwarm, ends: ModelEnds, run_async: Runner
) -> None:
    """No third peer, and none is needed."""
    expected = honest(SAMPLING)

    async def work() -> None:
        async with swarm.running(SPANS * 2):
            liar, own = swarm.peers[hop], swarm.peers[3 + hop]
            lying(liar, lambda position: position >= 20)
            checks = dataclasses.replace(ALL, own=frozenset({own.info.peer_id}))
            session = await swarm.session(swarm.peers[:3], max_length=64, checks=checks)
            async with session:
                told = await checked_answer(ends, session, SAMPLING)
                assert told.tokens == expected
                assert session.checks is not None
                (evidence,) = session.checks.statistics.evidence
                assert (evidence.verdict, evidence.liar) == (Verdict.HOP_LIED, liar.info.peer_id)
                assert {who for who, _ in evidence.opinions} == {
                    liar.info.peer_id, own.info.peer_id
                }  # fmt: skip
                assert any("of your own" in line for line in session.story)

    run_async(work())


def test_a_node_of_ones_own_is_asked_before_others(
    honest: Honest, swarm: LocalSwarm, ends: ModelEnds, run_async: Runner
) -> None:
    expected = honest(GREEDY)

    async def work() -> None:
        async with swarm.running(SPANS * 4):
            own = swarm.peers[9:]
            checks = dataclasses.replace(ALL, own=frozenset(peer.info.peer_id for peer in own))
            session = await swarm.session(swarm.peers[:3], max_length=64, checks=checks)
            async with session:
                assert (await checked_answer(ends, session, GREEDY)).tokens == expected
            assert all(peer.server.statistics.sessions == 1 for peer in own)
            assert not any(peer.server.statistics.sessions for peer in swarm.peers[3:9])

    run_async(work())


def test_nobody_convicts_a_node_of_ones_own(
    honest: Honest, swarm: LocalSwarm, ends: ModelEnds, run_async: Runner
) -> None:
    """Two others lie alike about it, which would convict anybody else."""
    expected = honest(GREEDY)

    async def work() -> None:
        async with swarm.running(SPANS * 3):
            own, others = swarm.peers[1], {swarm.peers[4], swarm.peers[7]}
            for other in others:
                lying(other, lambda position: position == 10)
            checks = dataclasses.replace(ALL, own=frozenset({own.info.peer_id}))
            session = await swarm.session(swarm.peers[:3], max_length=64, checks=checks)
            async with session:
                told = await checked_answer(ends, session, GREEDY)
                assert (told.tokens, told.withdrawn) == (expected, [])
                assert session.checks is not None
                assert session.checks.convicted == {other.info.peer_id for other in others}

    run_async(work())


def test_between_two_of_ones_own_a_third_decides(
    honest: Honest, swarm: LocalSwarm, ends: ModelEnds, run_async: Runner
) -> None:
    expected = honest(GREEDY)

    async def work() -> None:
        async with swarm.running(SPANS * 3):
            liar = swarm.peers[1]
            lying(liar, lambda position: position >= 20)
            everybody = frozenset(peer.info.peer_id for peer in swarm.peers)
            checks = dataclasses.replace(ALL, own=everybody)
            session = await swarm.session(swarm.peers[:3], max_length=64, checks=checks)
            async with session:
                assert (await checked_answer(ends, session, GREEDY)).tokens == expected
                assert session.checks is not None
                assert session.checks.convicted == {liar.info.peer_id}

    run_async(work())
