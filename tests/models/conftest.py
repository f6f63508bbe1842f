"""Tiny models with several shards, one real conversion a session, and a hub on loopback."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from swarmd.compute.convert import convert_gguf
from swarmd.compute.model_folder import ModelFolder
from swarmd.compute.source import find_default_gguf
from swarmd.errors import ModelError

from .fake_hub import FakeHub


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache folder of the test's own, for swarmd and for huggingface_hub."""
    from huggingface_hub import constants

    monkeypatch.setenv("SWARMD_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hf"))
    monkeypatch.delenv("HF_TOKEN", raising=False)
    return tmp_path / "cache"


@pytest.fixture(scope="session")
def tiny_source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A llama of six blocks in several shards; read only."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=96, hidden_size=32, intermediate_size=64, num_hidden_layers=6,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=128,
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("tiny") / "tiny-llama"
    LlamaForCausalLM(config).save_pretrained(str(folder), max_shard_size="60KB")
    return folder


@pytest.fixture
def tiny(tiny_source: Path, tmp_path: Path) -> Path:
    """A copy of the tiny llama that the test may damage."""
    return Path(shutil.copytree(tiny_source, tmp_path / "tiny-llama"))


@pytest.fixture(scope="session")
def single_source(tiny_source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same model in the one file `model.safetensors`; read only."""
    from transformers import LlamaForCausalLM

    folder = tmp_path_factory.mktemp("single") / "single-llama"
    LlamaForCausalLM.from_pretrained(str(tiny_source)).save_pretrained(str(folder))
    return folder


@pytest.fixture(scope="session")
def smollm_gguf() -> Path:
    try:
        return find_default_gguf()
    except ModelError as exc:
        pytest.skip(str(exc))


@pytest.fixture(scope="session")
def smollm_stages() -> list[tuple[str, int, int]]:
    """The progress that the session's conversion reported."""
    return []


@pytest.fixture(scope="session")
def smollm(
    smollm_gguf: Path,
    smollm_stages: list[tuple[str, int, int]],
    tmp_path_factory: pytest.TempPathFactory,
) -> ModelFolder:
    """SmolLM2 converted once for all tests; read only."""

    def note(stage: str, done: int, total: int) -> None:
        smollm_stages.append((stage, done, total))

    return convert_gguf(smollm_gguf, tmp_path_factory.mktemp("smollm") / "smollm2", progress=note)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    with FakeHub() as server:
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        yield server
