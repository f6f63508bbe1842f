"""The cache: cut back, then append equals a fresh run; a refusal leaves nothing reserved."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from swarmd.blocks import Span
from swarmd.compute.block_span import BlockSpan
from swarmd.compute.kv_cache import GROWTH_TOKENS, KvBudget, SessionCache
from swarmd.compute.model_folder import open_folder
from swarmd.errors import BlocksNotHeld, Busy, PositionOutOfRange
from tests.families import save_tiny

HIDDEN = 32
ALL = Span(0, 6)
FAMILIES = ["llama", "gemma2", "mistral", "deepseek_v3"]


@pytest.fixture(scope="module", params=FAMILIES)
def blocks(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> BlockSpan:
    """gemma2 mixes sliding windows of 8 with full attention; mistral has them in all blocks."""
    path: Path = save_tiny(request.param, tmp_path_factory.mktemp("kv") / request.param)
    return BlockSpan(open_folder(path), ALL, dtype="float32")


def values(tokens: int, seed: int) -> torch.Tensor:
    return torch.randn((1, tokens, HIDDEN), generator=torch.Generator().manual_seed(seed))


def step(blocks: BlockSpan, cache: SessionCache, start: int, hidden: torch.Tensor) -> torch.Tensor:
    cache.prepare(start, hidden.shape[1])
    return blocks.run(ALL, hidden, cache)


def fresh(blocks: BlockSpan, limit: int = 600) -> SessionCache:
    return blocks.new_cache(ALL, limit, KvBudget(100_000))


def test_cut_back_then_append_equals_a_fresh_run(blocks: BlockSpan) -> None:
    first, wrong, right = values(13, 1), values(17, 2), values(11, 3)
    clean = fresh(blocks)
    expected = [step(blocks, clean, 0, first), step(blocks, clean, 13, right)]
    cache = fresh(blocks)
    assert torch.equal(step(blocks, cache, 0, first), expected[0])
    step(blocks, cache, 13, wrong)  # goes beyond the window of 8
    step(blocks, cache, 30, wrong)
    assert torch.equal(step(blocks, cache, 13, right), expected[1])
    assert torch.equal(step(blocks, cache, 0, first), expected[0])
    assert torch.equal(step(blocks, cache, 13, right), expected[1])
    assert cache.position == 24


def test_a_cut_into_a_window_that_was_passed(blocks: BlockSpan) -> None:
    prompt = values(40, 1)
    cache = fresh(blocks)
    step(blocks, cache, 0, prompt)
    for number in range(20):
        step(blocks, cache, 40 + number, values(1, 100 + number))
    clean = fresh(blocks)
    step(blocks, clean, 0, prompt)
    again = step(blocks, cache, 5, values(2, 7))
    clean.cut(5)
    assert torch.equal(again, step(blocks, clean, 5, values(2, 7)))
    one = fresh(blocks)
    step(blocks, one, 0, prompt[:, :5])
    alone = step(blocks, one, 5, values(2, 7))
    assert torch.allclose(again, alone, atol=1e-5)


def test_chunks_and_growth_give_what_one_step_gives(blocks: BlockSpan) -> None:
    tokens = GROWTH_TOKENS + 20  # over the edge of the first buffer
    whole = values(tokens, 5)[:, : min(tokens, 250)]
    expected = step(blocks, fresh(blocks), 0, whole)
    cache, found = fresh(blocks), []
    for start in range(0, whole.shape[1], 37):
        found.append(step(blocks, cache, start, whole[:, start : start + 37]))
    assert torch.allclose(torch.cat(found, dim=1), expected, atol=1e-4)


def test_buffers_grow_without_losing_what_they_hold() -> None:
    cache = SessionCache(1, 10_000, KvBudget(100_000))
    (layer,) = cache.layers
    keys, all_values = torch.randn(1, 2, 1500, 4), torch.randn(1, 2, 1500, 4)
    start = 0
    for tokens in (1, 255, 1, 700, 543):
        span = slice(start, start + tokens)
        got_keys, got_values = layer.update(keys[:, :, span], all_values[:, :, span])
        start += tokens
        assert torch.equal(got_keys, keys[:, :, :start])
        assert torch.equal(got_values, all_values[:, :, :start])


def test_a_failed_block_leaves_the_cache_as_it_was(
    blocks: BlockSpan, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = values(9, 1), values(3, 2)
    clean = fresh(blocks)
    step(blocks, clean, 0, first)
    expected = step(blocks, clean, 9, second)
    cache = fresh(blocks)
    step(blocks, cache, 0, first)
    original = cache.layers[3].update

    def broken(*_args: object, **_kwargs: object) -> None:
        raise RuntimeError("out of memory, say")

    cache.layers[3].update = broken  # type: ignore[method-assign, assignment]
    with pytest.raises(RuntimeError):
        step(blocks, cache, 9, second)
    cache.layers[3].update = original  # type: ignore[method-assign]
    assert cache.position == 9
    assert {layer.length for layer in cache.layers} == {9}
    assert torch.equal(step(blocks, cache, 9, second), expected)


def test_blocks_that_are_not_held(blocks: BlockSpan) -> None:
    for wrong in (Span(0, 7), Span(6, 7), Span(5, 9)):
        with pytest.raises(BlocksNotHeld, match=str(wrong)):
            blocks.new_cache(wrong, 10, KvBudget(10))


# ---- the reservation: no model needed ----------------------------------------------------------


def test_positions_out_of_range_cut_and_reserve_nothing() -> None:
    budget = KvBudget(1000)
    cache = SessionCache(2, 20, budget)
    cache.prepare(0, 10)
    cache.advance(10)
    free = budget.free
    for start, tokens in ((11, 1), (10, 11), (0, 21), (1 << 24, 1)):
        with pytest.raises(PositionOutOfRange):
            cache.prepare(start, tokens)
        assert cache.position == 10
        assert budget.free == free
    cache.prepare(10, 10)


def test_busy_reserves_and_cuts_nothing() -> None:
    budget = KvBudget(GROWTH_TOKENS + 10)
    cache = SessionCache(2, 2000, budget)
    cache.prepare(0, 100)
    cache.advance(100)
    assert budget.free == 10
    with pytest.raises(Busy) as caught:
        cache.prepare(50, GROWTH_TOKENS)
    assert caught.value.retry_after is not None
    assert budget.free == 10
    assert cache.position == 100
    cache.prepare(50, 10)  # there is room for less
    assert cache.position == 50


steps = st.tuples(st.integers(0, 2), st.integers(0, 900), st.integers(1, 700))


@given(st.lists(steps, max_size=25))
def test_reservations_for_any_sequence_of_steps(plan: list[tuple[int, int, int]]) -> None:
    """Never more than the budget, always enough for what is held, and all of it given back."""
    budget = KvBudget(1500)
    caches = [SessionCache(1, limit, budget) for limit in (100, 700, 2000)]
    reserved = {0: 0, 1: 0, 2: 0}
    for which, start, tokens in plan:
        cache = caches[which]
        before, position = budget.free, cache.position
        try:
            cache.prepare(start, tokens)
        except (Busy, PositionOutOfRange):
            assert (budget.free, cache.position) == (before, position)
        else:
            cache.advance(tokens)
            reserved[which] += before - budget.free
            assert cache.position == start + tokens <= cache.limit
            assert cache.position <= reserved[which] <= cache.limit
            assert reserved[which] < cache.position + GROWTH_TOKENS or before == budget.free
        assert 0 <= budget.free <= 1500
        assert budget.free == 1500 - sum(reserved.values())
    for cache in caches:
        cache.close()
        cache.close()
    assert budget.free == 1500


def test_close_is_idempotent() -> None:
    budget = KvBudget(1000)
    one, two = SessionCache(1, 300, budget), SessionCache(1, 300, budget)
    one.prepare(0, 10)
    two.prepare(0, 10)
    for _ in range(3):
        one.close()
    assert budget.free == 1000 - GROWTH_TOKENS
    two.close()
    assert budget.free == 1000


def test_the_budget_is_exact_under_threads() -> None:
    budget = KvBudget(50)
    taken = []

    def work() -> None:
        for _ in range(500):
            try:
                budget.take(7)
            except Busy:
                continue
            taken.append(7)
            assert budget.free >= 0
            budget.give_back(7)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert taken
    assert budget.free == 50
