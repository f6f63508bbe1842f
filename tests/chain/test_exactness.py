"""A chain over real sockets gives what `transformers` gives on one machine."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from swarmd.blocks import Span
from swarmd.client.forward import forward
from swarmd.compute.ends import ModelEnds
from swarmd.compute.model_folder import open_folder
from tests.conftest import Runner
from tests.families import N_BLOCKS, save_tiny
from tests.local_swarm import LocalSwarm

CHAINS = {1: [(0, 6)], 2: [(0, 3), (3, 6)], 3: [(0, 1), (1, 4), (4, 6)]}
PROMPT = [5, 17, 3, 88, 41, 9, 60, 22, 71, 13, 36]
DECODE_STEPS = 32
FAMILIES = [
    "llama", "gemma3_text", "bloom", "falcon", "deepseek_v3", "gpt_oss", "gpt2", "granite",
    "cohere2", "llama4_text",
]  # fmt: skip
"""One of each kind; `tests/compute/test_families.py` walks all, without sockets."""


def reference(folder: Path, prompt: list[int], steps: int) -> tuple[list[int], list[torch.Tensor]]:
    """Greedy tokens and the logits before each, by the stock model with its own cache."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    tokens, logits, cache = list(prompt), [], None
    pending = torch.tensor([prompt])
    with torch.inference_mode():
        for _ in range(steps + 1):
            out = model(pending, past_key_values=cache, use_cache=True)
            cache = out.past_key_values
            logits.append(out.logits[0, -1])
            tokens.append(int(logits[-1].argmax()))
            pending = torch.tensor([[tokens[-1]]])
    return tokens[len(prompt) :], logits


@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_is_exact_over_1_2_and_3_hops(
    family: str, tmp_path: Path, run_async: Runner
) -> None:
    path = save_tiny(family, tmp_path / family)
    tokens, expected = reference(path, PROMPT, DECODE_STEPS)
    folder = open_folder(path)
    assert folder.n_blocks == N_BLOCKS
    ends = ModelEnds(folder, dtype="float32")

    async def chain(spans: list[tuple[int, int]]) -> None:
        swarm = LocalSwarm(folder)
        async with swarm.running([Span(*span) for span in spans]):
            session = await swarm.session(swarm.peers, max_length=64)
            async with session:
                pending, position, found = PROMPT, 0, []
                for step in range(DECODE_STEPS + 1):
                    logits = await forward(ends, session, pending, position)
                    error = (logits - expected[step]).abs().max().item()
                    assert error < 1e-5, f"step {step}: {error}"
                    position += len(pending)
                    found.append(int(logits.argmax()))
                    pending = [found[-1]]
                assert found == tokens

    for spans in CHAINS.values():
        run_async(chain(spans))


def test_a_session_may_enter_and_leave_mid_span_and_cut_back(
    tmp_path: Path, run_async: Runner
) -> None:
    path = save_tiny("gemma2", tmp_path / "m")
    tokens, expected = reference(path, PROMPT, 8)
    folder = open_folder(path)
    ends = ModelEnds(folder, dtype="float32")

    async def work() -> None:
        swarm = LocalSwarm(folder)
        async with swarm.running([Span(0, 4), Span(1, 6)]):
            first, second = swarm.peers
            from dataclasses import replace

            from swarmd.routing.chain import Chain, Hop

            session = await swarm.session([first], max_length=64)
            session = type(session)(
                swarm.router,
                swarm.pool,
                Chain((Hop(first.info, Span(0, 2)), Hop(second.info, Span(2, 6))), 0.0),
                hidden_size=folder.hidden_size,
                max_length=64,
            )
            assert replace(first.info).span == Span(0, 4)
            async with session:
                await forward(ends, session, PROMPT, 0)
                wrong = [1, 2, 3, 4, 5, 6, 7, 8, 9]  # a rejected draft, beyond a window of 8
                await forward(ends, session, wrong, len(PROMPT))
                position = len(PROMPT)
                for step, token in enumerate(tokens[:8]):
                    logits = await forward(ends, session, [token], position)
                    assert (logits - expected[step + 1]).abs().max() < 1e-5
                    position += 1

    run_async(work())
