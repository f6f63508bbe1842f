"""The cache: cut back, then append equals a fresh run; a refusal leaves nothing held."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from swarmd.blocks import Span
from swarmd.compute.block_span import BlockSpan
from swarmd.compute.kv_cache import KvBudget, SessionCache
from swarmd.compute.model_folder import open_folder
from swarmd.compute.pages import PAGE_TOKENS, PagePool, pages_for
from swarmd.compute.sole_session import SoleSession
from swarmd.errors import BlocksNotHeld, Busy, PositionOutOfRange
from tests.families import save_tiny

HIDDEN = 32
ALL = Span(0, 6)
FAMILIES = ["llama", "gemma2", "mistral", "deepseek_v3", "falcon"]


@pytest.fixture(scope="module", params=FAMILIES)
def blocks(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> BlockSpan:
    """gemma2 mixes sliding windows of 8 with full attention; mistral has them in all blocks;
    falcon runs session by session."""
    path: Path = save_tiny(request.param, tmp_path_factory.mktemp("kv") / request.param)
    return BlockSpan(open_folder(path), ALL, dtype="float32")


def values(tokens: int, seed: int) -> torch.Tensor:
    return torch.randn((1, tokens, HIDDEN), generator=torch.Generator().manual_seed(seed))


def fresh(blocks: BlockSpan) -> SoleSession:
    return SoleSession(blocks, 600)


def test_cut_back_then_append_equals_a_fresh_run(blocks: BlockSpan) -> None:
    first, wrong, right = values(13, 1), values(17, 2), values(11, 3)
    clean = fresh(blocks)
    expected = [clean.step(first, 0), clean.step(right, 13)]
    session = fresh(blocks)
    assert torch.equal(session.step(first, 0), expected[0])
    session.step(wrong, 13)  # goes beyond the window of 8
    session.step(wrong, 30)
    assert torch.equal(session.step(right, 13), expected[1])
    assert torch.equal(session.step(first, 0), expected[0])
    assert torch.equal(session.step(right, 13), expected[1])
    assert session.cache.position == 24


def test_a_cut_into_a_window_that_was_passed(blocks: BlockSpan) -> None:
    prompt = values(40, 1)
    session = fresh(blocks)
    session.step(prompt)
    for number in range(20):
        session.step(values(1, 100 + number))
    clean = fresh(blocks)
    clean.step(prompt)
    again = session.step(values(2, 7), 5)
    assert torch.equal(again, clean.step(values(2, 7), 5))
    one = fresh(blocks)
    one.step(prompt[:, :5])
    assert torch.allclose(again, one.step(values(2, 7)), atol=1e-5)


def test_chunks_over_many_pages_give_what_one_step_gives(blocks: BlockSpan) -> None:
    whole = values(250, 5)
    expected = fresh(blocks).step(whole)
    session = fresh(blocks)
    found = [session.step(part) for part in whole.split(37, dim=1)]
    assert torch.allclose(torch.cat(found, dim=1), expected, atol=1e-4)


def test_scattered_pages_give_what_pages_in_a_row_give(blocks: BlockSpan) -> None:
    """Pages that other sessions left between held ones."""
    whole = values(5 * PAGE_TOKENS, 5)
    expected = fresh(blocks).step(whole)
    session = fresh(blocks)
    pool = session.arena.pool
    taken = pool.take(pool.n_pages)
    pool.release(taken[::2])
    found = session.step(whole)
    assert len(session.cache.slots(0, whole.shape[1])) == 5
    assert torch.equal(found, expected)
    assert torch.allclose(session.step(values(1, 9)), decoded(blocks, whole), atol=1e-5)


def decoded(blocks: BlockSpan, prompt: torch.Tensor) -> torch.Tensor:
    session = fresh(blocks)
    session.step(prompt)
    return session.step(values(1, 9))


def test_blocks_that_are_not_held(blocks: BlockSpan) -> None:
    for wrong in (Span(0, 7), Span(6, 7), Span(5, 9)):
        with pytest.raises(BlocksNotHeld, match=str(wrong)):
            SoleSession(blocks, 10, wrong)


# ---- pages and positions: no model needed --------------------------------------------------------


def test_positions_out_of_range_cut_and_hold_nothing() -> None:
    pool = PagePool(10)
    cache = SessionCache(ALL, 20, pool)
    cache.prepare(0, 10)
    cache.advance(10)
    free = pool.available
    for start, tokens in ((11, 1), (10, 11), (0, 21), (1 << 24, 1)):
        with pytest.raises(PositionOutOfRange):
            cache.prepare(start, tokens)
        assert cache.position == 10
        assert pool.available == free
    cache.prepare(10, 10)


@pytest.mark.parametrize("short", ["pool", "share"])
def test_busy_holds_and_cuts_nothing(short: str) -> None:
    pool = PagePool(5 if short == "pool" else 100)
    budget = KvBudget(5 * PAGE_TOKENS)
    cache = SessionCache(ALL, 2000, pool, budget)
    cache.prepare(0, 100)
    cache.advance(100)
    before = (pool.available, budget.free, cache.pages[:])
    with pytest.raises(Busy) as caught:
        cache.prepare(50, 5 * PAGE_TOKENS)
    assert caught.value.retry_after is not None
    assert (pool.available, budget.free, cache.pages) == before
    assert cache.position == 100
    cache.prepare(50, PAGE_TOKENS)  # there is room for less
    assert cache.position == 50


steps = st.tuples(st.integers(0, 2), st.integers(0, 900), st.integers(1, 700))


@given(st.lists(steps, max_size=25))
def test_pages_for_any_sequence_of_steps(plan: list[tuple[int, int, int]]) -> None:
    """Never more than there are, exactly as many as are needed, no page twice, all given back."""
    pool, shares = PagePool(47), [KvBudget(tokens) for tokens in (100_000, 640, 100_000)]
    caches = [
        SessionCache(ALL, limit, pool, share)
        for limit, share in zip((100, 700, 2000), shares, strict=True)
    ]
    for which, start, tokens in plan:
        cache = caches[which]
        before, position = pool.available, cache.position
        try:
            cache.prepare(start, tokens)
        except (Busy, PositionOutOfRange):
            assert (pool.available, cache.position) == (before, position)
        else:
            cache.advance(tokens)
            assert cache.position == start + tokens <= cache.limit
            assert len(cache.pages) == pages_for(cache.position)
        held = [page for cache in caches for page in cache.pages]
        assert len(set(held)) == len(held) == pool.n_pages - pool.available
        for cache, share in zip(caches, shares, strict=True):
            assert share.free == share.tokens - len(cache.pages) * PAGE_TOKENS
            covered = [
                slot
                for run in cache.slots(0, cache.position)
                for slot in range(run.start, run.start + run.count)
            ]
            assert covered == [
                cache.pages[n // PAGE_TOKENS] * PAGE_TOKENS + n % PAGE_TOKENS
                for n in range(cache.position)
            ]
    for cache in caches:
        cache.close()
        cache.close()
    assert pool.available == pool.n_pages
    assert all(share.free == share.tokens for share in shares)


def test_a_closed_session_takes_nothing_more() -> None:
    pool = PagePool(4)
    cache = SessionCache(ALL, 100, pool)
    cache.prepare(0, 50)
    cache.close()
    with pytest.raises(PositionOutOfRange):
        cache.prepare(0, 1)
    assert pool.available == 4


def test_a_share_is_exact_under_threads() -> None:
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
