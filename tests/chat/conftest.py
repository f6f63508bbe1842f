"""A tiny model with a tokenizer of bytes and a chat template, and peers for it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from swarmd.compute.model_folder import ModelFolder, open_folder
from tests.api.conftest import save_tokenizer
from tests.families import save_tiny
from tests.local_swarm import LocalSwarm


def save_chat_model(path: Path) -> Path:
    """A model whose answers end at their limit (random weights would end them anywhere)."""
    save_tiny("llama", path, vocab_size=259)
    save_tokenizer(path)
    for name in ("config.json", "generation_config.json"):
        fields = json.loads((path / name).read_text())
        (path / name).write_text(json.dumps({**fields, "eos_token_id": 2}))
    return path


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> ModelFolder:
    return open_folder(save_chat_model(tmp_path_factory.mktemp("chat") / "tiny"))


@pytest.fixture(scope="session")
def swarm(folder: ModelFolder) -> LocalSwarm:
    return LocalSwarm(folder)
