"""The real SmolLM2 through two hops over sockets, against `transformers.generate`."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import AutoModelForCausalLM

from swarmd.blocks import Span
from swarmd.client.generate import decode_tokens
from swarmd.client.loading import eos_token_ids
from swarmd.client.sampling import Sampler, SamplingConfig
from swarmd.client.text import TextCodec
from swarmd.compute.ends import ModelEnds
from swarmd.compute.model_folder import open_folder
from tests.conftest import Runner
from tests.local_swarm import LocalSwarm

PROMPTS = [
    "The capital of France is",
    "def fibonacci(n):\n",
    "Water boils at 100 degrees",
    "Once upon a time, in a village by the sea,",
    "List three uses of copper:\n1.",
]
NEW_TOKENS = 64


def test_64_greedy_tokens_of_5_prompts_equal_generate(smollm2: Path, run_async: Runner) -> None:
    folder = open_folder(smollm2)
    text = TextCodec(smollm2, eos_token_ids=eos_token_ids(smollm2, folder.config))
    prompts = [text.encode(prompt) for prompt in PROMPTS]
    model = AutoModelForCausalLM.from_pretrained(smollm2, dtype=torch.float32).eval()
    expected = []
    for ids in prompts:
        tensor = torch.tensor([ids])
        out = model.generate(
            tensor,
            attention_mask=torch.ones_like(tensor),
            max_new_tokens=NEW_TOKENS,
            do_sample=False,
            eos_token_id=None,
            pad_token_id=0,
        )
        expected.append(out[0, len(ids) :].tolist())
    del model
    ends = ModelEnds(folder, dtype="float32")

    async def work() -> None:
        swarm = LocalSwarm(folder)
        async with swarm.running([Span(0, 15), Span(15, 30)]):
            for ids, tokens in zip(prompts, expected, strict=True):
                session = await swarm.session(max_length=len(ids) + NEW_TOKENS)
                async with session:
                    found = [
                        token
                        async for token in decode_tokens(
                            ends,
                            session,
                            ids,
                            Sampler(SamplingConfig()),
                            max_new_tokens=NEW_TOKENS,
                            eos_token_ids=frozenset(),
                        )
                    ]
                assert found == tokens

    run_async(work())
