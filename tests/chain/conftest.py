"""A tiny model, peers for it, and the answer that nobody disturbed."""

from __future__ import annotations

import asyncio

import pytest

from swarmd.compute.ends import ModelEnds
from swarmd.compute.model_folder import ModelFolder, open_folder
from tests.chain.answers import SPANS, answer
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
