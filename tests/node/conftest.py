"""The stage: one peer of a tiny model, with a healthy session on it that nobody may harm."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator

import pytest

from swarmd.compute.model_folder import ModelFolder, open_folder
from swarmd.node.limits import SessionLimits
from tests.families import save_tiny
from tests.local_swarm import LocalSwarm
from tests.node.hostile_client import ALL, KV_TOKENS, Scene, Stage, healthy_steps, until


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> ModelFolder:
    return open_folder(save_tiny("llama", tmp_path_factory.mktemp("bad") / "llama"))


@pytest.fixture(scope="module")
def swarm(folder: ModelFolder) -> LocalSwarm:
    return LocalSwarm(folder)


@pytest.fixture(scope="module")
def undisturbed(swarm: LocalSwarm) -> list[bytes]:
    async def work() -> list[bytes]:
        async with swarm.running([ALL]):
            async with await swarm.session(max_length=64) as session:
                return await healthy_steps(session, 0, 3)

    return asyncio.run(work())


@pytest.fixture
def stage(swarm: LocalSwarm, undisturbed: list[bytes], caplog: pytest.LogCaptureFixture) -> Stage:
    """Sets the scene, and checks at its end that nobody was harmed."""
    caplog.set_level(logging.DEBUG, logger="swarmd")

    @contextlib.asynccontextmanager
    async def staged(
        *, limits: SessionLimits | None = None, kv_tokens: int = KV_TOKENS
    ) -> AsyncIterator[Scene]:
        async with swarm.running([ALL], limits=limits, kv_tokens=kv_tokens):
            (peer,) = swarm.peers
            async with await swarm.session(max_length=64) as session:
                assert await healthy_steps(session, 0, 2) == undisturbed[:2]
                yield Scene(peer, session)
                assert await healthy_steps(session, 2, 1) == undisturbed[2:]
                assert session.statistics.recoveries == [], "the healthy session was hurt"
            await until(lambda: peer.engine.kv_free == peer.engine.kv_tokens)
            assert peer.server.open_sessions == 0
            await swarm.pool.__aexit__()
            await until(lambda: peer.server.quotas.open_connections == 0)
        for record in caplog.records:
            assert record.levelno < logging.ERROR, record.getMessage()
            assert record.levelno < logging.WARNING or not record.exc_info
            assert record.name != "swarmd.tasks" or record.levelno < logging.WARNING, (
                f"a connection's handler raised: {record.getMessage()}"
            )

    return staged
