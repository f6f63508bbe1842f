"""Penalties lower what the answer has already; scores are of the model's own distribution."""

from __future__ import annotations

import math

import pytest
import torch

from swarmd.client.sampling import SamplingConfig
from swarmd.client.scored_sampling import ScoredSampler

GREEDY = SamplingConfig()
LOGITS = torch.tensor([0.0, 1.0, 2.0, 1.5])


@pytest.mark.parametrize(
    ("new", "presence", "frequency", "chosen"),
    [
        ([], 2.0, 2.0, 2),
        ([2], 0.4, 0.0, 2),
        ([2], 0.6, 0.0, 3),
        ([2], 0.0, 0.4, 2),
        ([2, 2], 0.0, 0.4, 3),
        ([2, 3], 1.1, 0.0, 1),
        ([0], -2.5, 0.0, 0),
    ],
)
def test_penalties(new: list[int], presence: float, frequency: float, chosen: int) -> None:
    sampler = ScoredSampler(GREEDY, prompt_tokens=3, presence=presence, frequency=frequency)
    logits = LOGITS.clone()
    assert sampler.choose([2, 2, 2, *new], logits) == chosen
    assert torch.equal(logits, LOGITS), "the caller's logits stay as they were"
    assert sampler.last is None


def test_scores_are_before_penalties_and_temperature() -> None:
    config = SamplingConfig(temperature=50.0, seed=1)
    sampler = ScoredSampler(config, prompt_tokens=0, presence=2.0, top_logprobs=2)
    token = sampler.choose([2], LOGITS)
    total = math.log(sum(math.exp(value) for value in LOGITS.tolist()))
    assert sampler.last is not None
    assert sampler.last.token_id == token
    assert sampler.last.logprob == pytest.approx(LOGITS[token].item() - total)
    assert [found for found, _ in sampler.last.top] == [2, 3]
