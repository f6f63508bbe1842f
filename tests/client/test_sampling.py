"""The next token: seeds repeat, bounds hold, wrong values are refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from swarmd.client.sampling import Sampler, SamplingConfig
from swarmd.errors import UsageError

VOCABULARY = 50


def logits(seed: int, size: int = VOCABULARY) -> torch.Tensor:
    return 3 * torch.randn(size, generator=torch.Generator().manual_seed(seed))


def drawn(config: SamplingConfig, scores: torch.Tensor, count: int = 200) -> list[int]:
    sampler = Sampler(config)
    return [sampler.choose([1, 2], scores) for _ in range(count)]


@pytest.mark.parametrize("seed", [0, 1, 2**63 - 1])
def test_the_same_seed_gives_the_same_tokens(seed: int) -> None:
    config = SamplingConfig(temperature=1.3, top_k=20, top_p=0.9, seed=seed)
    first = drawn(config, logits(1))
    torch.manual_seed(5)  # the global generator plays no part
    assert drawn(config, logits(1)) == first
    assert len(set(first)) > 1


def test_other_seeds_and_no_seed_give_others() -> None:
    flat = torch.zeros(1000)
    configs = [SamplingConfig(temperature=1.0, seed=seed) for seed in (1, 2, None, None)]
    assert len({tuple(drawn(config, flat, 20)) for config in configs}) == 4


@given(st.integers(0, 1000))
def test_greedy_is_the_largest_whatever_else_is_set(seed: int) -> None:
    scores = logits(seed)
    best = int(scores.argmax())
    for config in (SamplingConfig(), SamplingConfig(top_k=3, top_p=0.5, seed=4)):
        assert Sampler(config).choose([], scores) == best
    assert set(drawn(SamplingConfig(temperature=1.0, top_k=1), scores, 5)) == {best}
    assert set(drawn(SamplingConfig(temperature=1.0, top_p=1e-6), scores, 5)) == {best}


@given(st.integers(0, 1000), st.integers(1, 60))
@settings(max_examples=30)
def test_top_k_draws_from_the_k_largest(seed: int, k: int) -> None:
    scores = logits(seed)
    allowed = set(scores.topk(min(k, VOCABULARY)).indices.tolist())
    found = set(drawn(SamplingConfig(temperature=5.0, top_k=k, seed=seed), scores))
    assert found <= allowed
    assert len(found) > 1 or k == 1


@given(st.integers(0, 1000), st.floats(0.05, 0.99))
@settings(max_examples=30)
def test_top_p_draws_from_the_smallest_set_with_that_much(seed: int, p: float) -> None:
    scores = logits(seed)
    sorted_probabilities, order = torch.softmax(scores, -1).sort(descending=True)
    before = sorted_probabilities.cumsum(-1) - sorted_probabilities
    allowed = set(order[before < p + 1e-4].tolist())
    assert set(drawn(SamplingConfig(temperature=1.0, top_p=p, seed=seed), scores)) <= allowed


def test_the_draw_follows_the_probabilities() -> None:
    scores = torch.tensor([0.7, 0.2, 0.1]).log()
    found = drawn(SamplingConfig(temperature=1.0, seed=3), scores, 4000)
    shares = [found.count(token) / 4000 for token in range(3)]
    assert shares == pytest.approx([0.7, 0.2, 0.1], abs=0.04)


@pytest.mark.parametrize("temperature", [5e-324, 1e-300, 1e-40, 1e-30, 1e-5, 0.01, 100.0])
def test_every_temperature_that_is_accepted_works(temperature: float) -> None:
    scores = 100 * logits(2)
    tokens = drawn(SamplingConfig(temperature=temperature, seed=1), scores, 20)
    if temperature < 0.1:
        assert set(tokens) == {int(scores.argmax())}


def test_the_repetition_penalty_moves_the_choice_and_leaves_the_logits() -> None:
    scores = torch.tensor([2.0, 1.9, -1.0])
    before = scores.clone()
    assert Sampler(SamplingConfig(repetition_penalty=1.5)).choose([0], scores) == 1
    assert Sampler(SamplingConfig()).choose([0], scores) == 0
    assert torch.equal(scores, before)


@pytest.mark.parametrize(
    ("wrong", "option"),
    [
        ({"temperature": -0.1}, "--temperature"),
        ({"temperature": 101.0}, "--temperature"),
        ({"temperature": float("nan")}, "--temperature"),
        ({"temperature": float("inf")}, "--temperature"),
        ({"top_k": -1}, "--top-k"),
        ({"top_p": 0.0}, "--top-p"),
        ({"top_p": 1.01}, "--top-p"),
        ({"top_p": float("nan")}, "--top-p"),
        ({"repetition_penalty": 0.0}, "--repetition-penalty"),
        ({"repetition_penalty": -1.0}, "--repetition-penalty"),
        ({"repetition_penalty": float("nan")}, "--repetition-penalty"),
        ({"seed": -1}, "--seed"),
        ({"seed": 1 << 63}, "--seed"),
    ],
)
def test_wrong_values_are_refused_by_name(wrong: dict[str, Any], option: str) -> None:
    with pytest.raises(UsageError, match=option):
        SamplingConfig(**wrong)
