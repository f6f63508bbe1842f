"""A tiny model with a tokenizer of bytes, peers for it, a gateway, and the official client."""

from __future__ import annotations

import contextlib
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from openai import AsyncOpenAI
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from swarmd.api.gateway import Gateway
from swarmd.api.keys import ApiKeys
from swarmd.api.limits import ApiLimits
from swarmd.api.server import serve_api
from swarmd.blocks import Span
from swarmd.compute.model_folder import ModelFolder, open_folder
from tests.families import save_tiny
from tests.local_swarm import LocalSwarm

ALIAS = "tiny-model"
SPANS = [Span(0, 3), Span(3, 6)]
TEMPLATE = (
    "{% for m in messages %}"
    "{% if m['content'] == 'refuse me' %}{{ raise_exception('not that') }}{% endif %}"
    "{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}assistant: "
)


def save_tokenizer(folder: Path) -> None:
    """One token a byte, and a template; ids 0 to 2 are the model's special ones."""
    names = ["<pad>", "<s>", "</s>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    tokenizer = Tokenizer(models.BPE({name: at for at, name in enumerate(names)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<s>", eos_token="</s>"
    )
    fast.chat_template = TEMPLATE
    fast.save_pretrained(folder)


def save_model(path: Path, **fields: Any) -> ModelFolder:
    save_tiny("llama", path, vocab_size=259, **fields)
    save_tokenizer(path)
    # random weights would end an answer at any token
    for name in ("config.json", "generation_config.json"):
        fields = json.loads((path / name).read_text())
        (path / name).write_text(json.dumps({**fields, "eos_token_id": 2}))
    return open_folder(path)


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> ModelFolder:
    return save_model(tmp_path_factory.mktemp("api") / "tiny")


@pytest.fixture(scope="session")
def long_swarm(tmp_path_factory: pytest.TempPathFactory) -> LocalSwarm:
    """Of a model whose answers take some seconds."""
    path = tmp_path_factory.mktemp("api-long") / "tiny"
    return LocalSwarm(save_model(path, max_position_embeddings=4096))


@pytest.fixture(scope="session")
def swarm(folder: ModelFolder) -> LocalSwarm:
    return LocalSwarm(folder)


@dataclass
class Served:
    """A running server over running peers."""

    swarm: LocalSwarm
    gateway: Gateway
    port: int

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @contextlib.asynccontextmanager
    async def client(self, key: str = "none", **options: Any) -> AsyncIterator[AsyncOpenAI]:
        async with AsyncOpenAI(
            base_url=f"{self.url}/v1", api_key=key, max_retries=0, timeout=20, **options
        ) as client:
            yield client

    @property
    def idle(self) -> bool:
        """No session anywhere, and every page of every cache is free."""
        free = all(
            peer.engine.kv_free == peer.engine.kv_tokens for peer in self.swarm.peers if peer.alive
        )
        return free and self.gateway.places.taken == 0


@contextlib.asynccontextmanager
async def served(
    swarm: LocalSwarm,
    spans: list[Span] | None = None,
    *,
    kv_tokens: int = 4096,
    keys: tuple[str, ...] = (),
    limits: ApiLimits | None = None,
) -> AsyncIterator[Served]:
    async with swarm.running(SPANS if spans is None else spans, kv_tokens=kv_tokens):
        gateway = Gateway(swarm.folder, swarm.pool, swarm.router, limits=limits, alias=ALIAS)
        async with gateway, serve_api(gateway, "127.0.0.1", 0, ApiKeys(keys)) as port:
            yield Served(swarm, gateway, port)
