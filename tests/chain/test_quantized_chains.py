"""Peers with quantized weights: the same to the token among themselves, kept apart from others."""

from __future__ import annotations

import asyncio
import dataclasses

import pytest

from swarmd.client.chain_session import ChainSession
from swarmd.client.generate import decode_events
from swarmd.client.hop_link import HopLink
from swarmd.client.sampling import Sampler
from swarmd.client.spot_checks import CheckConfig
from swarmd.compute.ends import ModelEnds
from swarmd.compute.model_folder import ModelFolder, open_folder
from swarmd.errors import ModelMismatch, NoRoute
from tests.chain.answers import NEW_TOKENS, PROMPT, SAMPLING, SPANS, answer, killing
from tests.conftest import Runner
from tests.families import save_tiny
from tests.local_swarm import LocalSwarm

KINDS = ["int8", "int4"]
NONE = ["none"] * 3


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> ModelFolder:
    path = tmp_path_factory.mktemp("m") / "llama"
    return open_folder(save_tiny("llama", path, intermediate_size=64))


@pytest.fixture(scope="module")
def swarm(folder: ModelFolder) -> LocalSwarm:
    return LocalSwarm(folder)


@pytest.fixture(scope="module")
def ends(folder: ModelFolder) -> ModelEnds:
    return ModelEnds(folder, dtype="float32")


@pytest.fixture(scope="module")
def undisturbed(swarm: LocalSwarm, ends: ModelEnds) -> dict[str, list[int]]:
    async def work(kind: str) -> list[int]:
        async with swarm.running(SPANS, quantizations=[kind] * 3):
            async with await swarm.session(swarm.peers, max_length=64) as session:
                return await answer(ends, session)

    return {kind: asyncio.run(work(kind)) for kind in ("none", *KINDS)}


async def checked_answer(ends: ModelEnds, session: ChainSession) -> list[object]:
    """As `answer`, of a session with spot checks; withdrawals are among the tokens."""
    events = decode_events(
        ends, session, PROMPT, Sampler(SAMPLING),
        max_new_tokens=NEW_TOKENS, eos_token_ids=frozenset(),
    )  # fmt: skip
    return [event async for event in events]


def test_the_answers_of_the_kinds_differ(undisturbed: dict[str, list[int]]) -> None:
    assert undisturbed["none"] != undisturbed["int4"], "else these tests prove little"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("token", [0, 1, 9, NEW_TOKENS - 1])
@pytest.mark.parametrize("hop", [0, 2])
def test_failover_among_equally_quantized_peers_is_the_same_to_the_token(
    hop: int,
    token: int,
    kind: str,
    swarm: LocalSwarm,
    ends: ModelEnds,
    undisturbed: dict[str, list[int]],
    run_async: Runner,
) -> None:
    async def work() -> None:
        # the spares of another kind are nearer in every respect but their weights
        async with swarm.running(SPANS * 3, quantizations=[kind] * 6 + NONE):
            for peer in swarm.peers[6:]:
                peer.decode_us = 1
            primary = swarm.peers[:3]
            async with await swarm.session(primary, max_length=64) as session:
                found = await answer(ends, session, killing({token: [primary[hop]]}))
                (recovery,) = session.statistics.recoveries
            assert recovery.by[0].peer.quantization == kind
            assert found == undisturbed[kind]
            assert "may differ" not in " ".join(session.story)

    run_async(work())


def test_where_no_such_peer_is_left_another_kind_goes_on_and_says_so(
    swarm: LocalSwarm, ends: ModelEnds, undisturbed: dict[str, list[int]], run_async: Runner
) -> None:
    async def work() -> None:
        async with swarm.running([*SPANS, SPANS[1]], quantizations=["int8"] * 3 + ["none"]):
            primary = swarm.peers[:3]
            async with await swarm.session(primary, max_length=64) as session:
                found = await answer(ends, session, killing({9: [primary[1]]}))
                (recovery,) = session.statistics.recoveries
            assert recovery.by[0].peer.quantization == "none"
            assert found[:9] == undisturbed["int8"][:9]
            assert len(found) == NEW_TOKENS
            told = "quantization none, before int8: the answer may differ from here on"
            assert told in session.story

    run_async(work())


@pytest.mark.parametrize("wanted", ["one", "int8"])
def test_who_wants_one_kind_gets_no_other(
    wanted: str, swarm: LocalSwarm, ends: ModelEnds, run_async: Runner
) -> None:
    async def work() -> None:
        async with swarm.running([*SPANS, SPANS[1]], quantizations=["int8"] * 3 + ["none"]):
            swarm.router = swarm.new_router(wanted)
            primary = swarm.peers[:3]
            async with await swarm.session(primary, max_length=64) as session:
                with pytest.raises(NoRoute, match="2:4") as caught:
                    await answer(ends, session, killing({9: [primary[1]]}))
            assert ("leaves out 1 live peer" in str(caught.value)) == (wanted == "int8")

    run_async(work())


def test_spot_checks_ask_peers_of_the_same_kind_only(
    swarm: LocalSwarm, ends: ModelEnds, undisturbed: dict[str, list[int]], run_async: Runner
) -> None:
    async def work() -> None:
        kinds = ["int4"] * 6 + NONE + NONE
        async with swarm.running(SPANS * 4, quantizations=kinds):
            checks = CheckConfig(1.0, seed=b"s" * 32)
            primary = swarm.peers[:3]
            async with await swarm.session(primary, max_length=64, checks=checks) as session:
                assert await checked_answer(ends, session) == undisturbed["int4"]
                assert session.checks is not None
                found = session.checks.statistics
                assert found.disputes == 0
                assert found.checks > 0
            for peer in swarm.peers[6:]:
                assert peer.server.statistics.sessions == 0, "it was asked for an opinion"

    run_async(work())


def test_a_checked_session_never_goes_on_with_another_kind(
    swarm: LocalSwarm, ends: ModelEnds, run_async: Runner
) -> None:
    async def work() -> None:
        async with swarm.running(SPANS + SPANS, quantizations=["int8"] * 3 + NONE):
            primary = swarm.peers[:3]
            checks = CheckConfig(0.5, seed=b"s" * 32)
            async with await swarm.session(primary, max_length=64, checks=checks) as session:
                primary[1].kill()
                with pytest.raises(NoRoute):
                    await checked_answer(ends, session)
            mixed = [swarm.peers[0], *swarm.peers[4:6]]
            with pytest.raises(ValueError, match="one quantization"):
                await swarm.session(mixed, max_length=64, checks=checks)

    run_async(work())


def test_a_peer_that_came_back_with_other_weights_is_not_used(
    swarm: LocalSwarm, run_async: Runner
) -> None:
    async def work() -> None:
        async with swarm.running([SPANS[0]], quantizations=["int4"]):
            (peer,) = swarm.peers
            old = dataclasses.replace(peer.info, quantization="none")
            with pytest.raises(ModelMismatch, match="now serves 0:2 in float32 int4, not 0:2 in"):
                await HopLink.open(old, SPANS[0], swarm.pool, max_length=64, timeout=5.0)

    run_async(work())


def test_a_first_chain_mixes_only_where_there_is_no_other(
    swarm: LocalSwarm, run_async: Runner
) -> None:
    async def work() -> None:
        async with swarm.running(SPANS + SPANS[:2], quantizations=["int8"] * 3 + NONE[:2]):
            for peer in swarm.peers[3:]:
                peer.decode_us = 1
            assert (await swarm.router.choose_fresh()).quantizations == ("int8",)
            swarm.router = swarm.new_router("any")
            chain = await swarm.router.choose_fresh()
            assert chain.quantizations == ("int8", "none")
            assert chain.describe().count(" int8 via ") == 1
            swarm.peers.pop(0)  # int8 lacks a block now
            swarm.router = swarm.new_router()
            assert (await swarm.router.choose_fresh()).quantizations == ("int8", "none")
            for wanted in ("one", "none", "int8", "int4"):
                swarm.router = swarm.new_router(wanted)
                with pytest.raises(NoRoute):
                    await swarm.router.choose_fresh()

    run_async(work())
