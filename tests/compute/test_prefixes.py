"""Beginnings that sessions share are computed once, and what they give is the same to the bit."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest
import torch

from swarmd.blocks import Span
from swarmd.compute.block_span import BlockSpan
from swarmd.compute.engine import Engine, EngineSession
from swarmd.compute.model_folder import open_folder
from swarmd.compute.pages import PAGE_TOKENS
from swarmd.compute.prefixes import page_names
from swarmd.compute.scheduler import Scheduler
from tests.conftest import Runner
from tests.families import save_tiny

ALL = Span(0, 6)
PROMPT = 3 * PAGE_TOKENS + 5


@pytest.fixture(scope="module")
def blocks(tmp_path_factory: pytest.TempPathFactory) -> BlockSpan:
    path = save_tiny("qwen3", tmp_path_factory.mktemp("prefixes") / "qwen3")
    return BlockSpan(open_folder(path), ALL, dtype="float32")


@pytest.fixture
def ran(blocks: BlockSpan, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """How many tokens each run of the blocks had."""
    counts: list[int] = []
    original = blocks.run

    def run(arena, pieces):  # type: ignore[no-untyped-def]
        counts.append(sum(piece.tokens for piece in pieces))
        return original(arena, pieces)

    monkeypatch.setattr(blocks, "run", run)
    yield counts


def values(tokens: int, seed: int = 1) -> torch.Tensor:
    return torch.randn((1, tokens, 32), generator=torch.Generator().manual_seed(seed))


async def outputs(engine: Engine, session: EngineSession, *steps: torch.Tensor) -> torch.Tensor:
    found, start = [], 0
    for hidden in steps:
        found.append((await engine.step(session, start, hidden)).hidden)
        start += hidden.shape[1]
    return torch.cat(found, dim=1)


def test_the_second_session_computes_only_what_is_its_own(
    blocks: BlockSpan, ran: list[int], run_async: Runner
) -> None:
    mine = torch.cat([values(PROMPT)[:, : 2 * PAGE_TOKENS], values(40, 2)], dim=1)

    async def work() -> None:
        async with Engine(blocks, kv_tokens=1024) as engine:
            one, two, three = (engine.open(ALL, 400) for _ in range(3))
            first = await outputs(engine, one, values(PROMPT), values(1, 7))
            ran.clear()
            again = await outputs(engine, two, values(PROMPT), values(1, 7))
            assert ran == [5, 1]
            assert torch.equal(first[:, : 3 * PAGE_TOKENS], again[:, : 3 * PAGE_TOKENS])
            assert torch.allclose(first, again, atol=1e-5)
            ran.clear()
            other = await outputs(engine, three, mine)
            assert sum(ran) == 40
            assert engine.prefixes is not None
            assert engine.prefixes.found == 5 * PAGE_TOKENS
            assert 0 < engine.prefixes.hit_rate < 1
        async with Engine(blocks, kv_tokens=1024, share_prefixes=False) as plain:
            ran.clear()
            alone = await outputs(plain, plain.open(ALL, 400), mine)
            assert ran == [mine.shape[1]]
            assert torch.allclose(other, alone, atol=1e-5)
            await outputs(plain, plain.open(ALL, 400), mine)
            assert ran == [mine.shape[1]] * 2

    run_async(work())


def test_a_cut_into_a_shared_page_harms_nobody(blocks: BlockSpan, run_async: Runner) -> None:
    async def work() -> None:
        async with Engine(blocks, kv_tokens=1024) as engine:
            one, two = engine.open(ALL, 400), engine.open(ALL, 400)
            await outputs(engine, one, values(PROMPT))
            await outputs(engine, two, values(PROMPT))
            await engine.step(two, 40, values(30, 5))  # in the middle of the second page
            after = (await engine.step(one, PROMPT, values(1, 7))).hidden
            mine = (await engine.step(two, 70, values(1, 8))).hidden
        async with Engine(blocks, kv_tokens=1024, share_prefixes=False) as plain:
            one, two = plain.open(ALL, 400), plain.open(ALL, 400)
            expected = await outputs(plain, one, values(PROMPT), values(1, 7))
            assert torch.allclose(after, expected[:, -1:], atol=1e-5)
            expected = await outputs(plain, two, values(PROMPT)[:, :40], values(30, 5))
            expected = (await plain.step(two, 70, values(1, 8))).hidden
            assert torch.allclose(mine, expected, atol=1e-5)

    run_async(work())


def test_a_replay_of_the_same_inputs_is_free(
    blocks: BlockSpan, ran: list[int], run_async: Runner
) -> None:
    """Also after the session that computed them is gone."""

    async def work() -> None:
        async with Engine(blocks, kv_tokens=1024) as engine:
            session = engine.open(ALL, 400)
            first = await outputs(engine, session, values(4 * PAGE_TOKENS))
            engine.close(session)
            ran.clear()
            again = engine.open(ALL, 400)
            for _ in range(2):
                assert torch.equal(await outputs(engine, again, values(4 * PAGE_TOKENS)), first)
            assert ran == []
            engine.close(again)
            await engine.call(lambda: None)
            assert engine.kv_free == 1024

    run_async(work())


def test_kept_pages_are_room_and_are_forgotten_for_it(blocks: BlockSpan, run_async: Runner) -> None:
    async def work() -> None:
        async with Engine(blocks, kv_tokens=8 * PAGE_TOKENS) as engine:
            for seed in range(20):
                session = engine.open(ALL, 256)
                await outputs(engine, session, values(6 * PAGE_TOKENS, seed), values(1, 3))
                engine.close(session)
            await engine.call(lambda: None)
            assert engine.kv_free == 8 * PAGE_TOKENS

    run_async(work())


def test_sessions_at_once_with_one_beginning(blocks: BlockSpan, run_async: Runner) -> None:
    """They overtake one another in chunks; whoever comes first leaves it for the others."""

    async def work() -> None:
        scheduler = Scheduler(chunk_tokens=PAGE_TOKENS)
        async with Engine(blocks, kv_tokens=4096, scheduler=scheduler) as engine:
            sessions = [engine.open(ALL, 400) for _ in range(6)]
            found = await asyncio.gather(
                *(outputs(engine, session, values(PROMPT), values(1, 7)) for session in sessions)
            )
            for other in found[1:]:
                assert torch.allclose(found[0], other, atol=1e-5)
            for session in sessions:
                engine.close(session)
            await engine.call(lambda: None)
            assert engine.kv_free == 4096

    run_async(work())


def test_names_tell_everything_before_apart() -> None:
    page = bytes(range(4)) * PAGE_TOKENS
    other = page[:-1] + b"x"

    def names(raw: bytes, *, blocks: Span = ALL, before: tuple[bytes, ...] = ()) -> list[bytes]:
        return page_names(blocks, before, memoryview(raw), 4)

    two = names(page + page + b"rest")
    assert len(set(two)) == 2
    assert names(page) == two[:1]
    assert names(page, before=(two[0],)) == two[1:]
    assert names(other + page)[1] != two[1]
    assert names(page, blocks=Span(0, 5)) != two[:1]
    assert names(page[:-1]) == []
