"""A tiny model, peers for it, and the answer that nobody disturbed."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from swarmd.client.generate import decode_tokens
from swarmd.client.sampling import Sampler, SamplingConfig
from swarmd.compute.ends import ModelEnds
from swarmd.compute.model_folder import ModelFolder, open_folder
from tests.chain.answers import NEW_TOKENS, PROMPT, SAMPLING, SPANS, answer
from tests.chain.lies import GREEDY
from tests.families import save_tiny
from tests.local_swarm import LocalSwarm


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> ModelFolder:
    return open_folder(save_tiny("llama", tmp_path_factory.mktemp("m") / "llama"))


@pytest.fixture(scope="session")
def ends(folder: ModelFolder) -> ModelEnds:
    return ModelEnds(folder, dtype="float32")


@pytest.fixture(scope="session")
def swarm(folder: ModelFolder) -> LocalSwarm:
    return LocalSwarm(folder)


@pytest.fixture(scope="session")
def undisturbed(swarm: LocalSwarm, ends: ModelEnds) -> list[int]:
    async def work() -> list[int]:
        async with swarm.running(SPANS):
            async with await swarm.session(swarm.peers, max_length=64) as session:
                return await answer(ends, session)

    tokens = asyncio.run(work())
    assert len(set(tokens)) > 4, "an answer that repeats itself proves little"
    return tokens


@pytest.fixture(params=["greedy", "sampled"])
def sampling(request: pytest.FixtureRequest) -> SamplingConfig:
    return GREEDY if request.param == "greedy" else SAMPLING


@pytest.fixture(scope="session")
def honest(swarm: LocalSwarm, ends: ModelEnds) -> Callable[[SamplingConfig], list[int]]:
    """The tokens of an undisturbed answer without checks."""
    known: dict[SamplingConfig, list[int]] = {}

    async def work(sampling: SamplingConfig) -> list[int]:
        async with swarm.running(SPANS):
            async with await swarm.session(swarm.peers, max_length=64) as session:
                tokens = decode_tokens(
                    ends, session, PROMPT, Sampler(sampling),
                    max_new_tokens=NEW_TOKENS, eos_token_ids=frozenset(),
                )  # fmt: skip
                return [token async for token in tokens]

    def get(sampling: SamplingConfig) -> list[int]:
        if sampling not in known:
            known[sampling] = asyncio.run(work(sampling))
        return known[sampling]

    return get
