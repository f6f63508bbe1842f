"""A tiny llama over three hops, and the same model on one machine."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from swarmd.compute.model_folder import ModelFolder, open_folder
from tests.families import save_tiny
from tests.hf.serving import Serving, stock
from tests.local_swarm import LocalSwarm


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> ModelFolder:
    return open_folder(save_tiny("llama", tmp_path_factory.mktemp("hf") / "llama"))


@pytest.fixture(scope="session")
def swarm(folder: ModelFolder) -> LocalSwarm:
    return LocalSwarm(folder)


@pytest.fixture(scope="session")
def whole(folder: ModelFolder) -> Any:
    return stock(folder)


@pytest.fixture
def serving(swarm: LocalSwarm) -> Iterator[Serving]:
    with Serving(swarm).running() as running:
        yield running


@pytest.fixture
def model(serving: Serving) -> Iterator[Any]:
    with serving.model() as model:
        yield model
