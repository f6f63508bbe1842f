"""The engine: one thread, many sessions; a cancel, a bug, a deadline touch one of them only."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Sequence

import pytest
import torch

from swarmd.blocks import Span
from swarmd.compute.block_span import BlockSpan
from swarmd.compute.engine import Engine
from swarmd.compute.kv_arena import KvArena
from swarmd.compute.model_folder import open_folder
from swarmd.compute.ragged_batch import Piece
from swarmd.compute.scheduler import Scheduler
from swarmd.compute.sole_session import SoleSession
from swarmd.errors import (
    BlocksNotHeld,
    Busy,
    DeadlineExceeded,
    InternalError,
    PositionOutOfRange,
)
from tests.conftest import Runner
from tests.families import save_tiny

HIDDEN = 32
ALL = Span(0, 6)


@pytest.fixture(scope="module")
def blocks(tmp_path_factory: pytest.TempPathFactory) -> BlockSpan:
    path = save_tiny("llama", tmp_path_factory.mktemp("engine") / "llama")
    return BlockSpan(open_folder(path), ALL, dtype="float32")


def values(tokens: int, seed: int = 1) -> torch.Tensor:
    return torch.randn((1, tokens, HIDDEN), generator=torch.Generator().manual_seed(seed))


def alone(blocks: BlockSpan, *pieces: torch.Tensor, chunk: int = 10_000) -> torch.Tensor:
    """What a session gives that has the engine to itself; the last piece's output."""
    session = SoleSession(blocks, 1000)
    for piece in pieces:
        parts = piece.split(chunk, dim=1)
        found = torch.cat([session.step(part) for part in parts], dim=1)
    return found


class Valve:
    """Stops the engine's thread in front of a piece until `release`."""

    def __init__(self, blocks: BlockSpan, monkeypatch: pytest.MonkeyPatch) -> None:
        self.entered = threading.Event()
        self.pieces = 0
        self._go = threading.Event()
        original = blocks.run

        def run(arena: KvArena, pieces: Sequence[Piece]) -> list[torch.Tensor]:
            self.pieces += len(pieces)
            self.entered.set()
            assert self._go.wait(20)
            return original(arena, pieces)

        monkeypatch.setattr(blocks, "run", run)

    def release(self) -> None:
        self._go.set()


async def until(condition: Callable[[], bool], seconds: float = 20.0) -> None:
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.001)


def test_many_sessions_at_once_give_what_each_gives_alone(
    blocks: BlockSpan, run_either: Runner
) -> None:
    def inputs(number: int) -> list[torch.Tensor]:
        return [values(3 + 17 * number, number), *(values(1, 90 + number + i) for i in range(5))]

    expected = {
        number: [alone(blocks, *inputs(number)[: n + 1], chunk=32) for n in range(6)]
        for number in range(8)
    }

    async def one(engine: Engine, number: int) -> None:
        session = engine.open(ALL, 250)
        start = 0
        for piece, right in zip(inputs(number), expected[number], strict=True):
            result = await engine.step(session, start, piece)
            start += piece.shape[1]
            assert session.position == start
            assert torch.allclose(result.hidden, right, atol=1e-5, rtol=0)
            assert result.queue_seconds >= 0
            assert result.compute_seconds > 0
        engine.close(session)

    async def work() -> None:
        scheduler = Scheduler(chunk_tokens=32, decode_tokens=2)
        async with Engine(blocks, kv_tokens=4096, scheduler=scheduler) as engine:
            await asyncio.gather(*(one(engine, number) for number in range(8)))
            assert engine.queue_length == 0
            await engine.call(lambda: None)
            assert engine.kv_free == 4096

    run_either(work())


def test_a_cancelled_step_leaves_no_trace(
    blocks: BlockSpan, run_either: Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def work() -> None:
        async with Engine(blocks, kv_tokens=1024, scheduler=Scheduler(chunk_tokens=16)) as engine:
            session, other = engine.open(ALL, 250), engine.open(ALL, 250)
            first = await engine.step(session, 0, values(5))
            with monkeypatch.context() as patch:
                valve = Valve(blocks, patch)
                long = asyncio.ensure_future(engine.step(session, 5, values(200, 2)))
                await until(valve.entered.is_set)
                behind = asyncio.ensure_future(engine.step(other, 0, values(4)))
                queued = asyncio.ensure_future(engine.step(session, 5, values(1, 9)))
                await until(lambda: engine.queue_length == 3)
                for task in (long, queued):
                    task.cancel()
                await asyncio.wait([long, queued])
                assert engine.queue_length == 1
                valve.release()
                beside = await behind
                await engine.call(lambda: None)
                assert valve.pieces == 2, "the rest of the cancelled step did not run"
            assert torch.equal(beside.hidden, alone(blocks, values(4)))
            again = await engine.step(session, 5, values(3, 3))
            assert torch.equal(again.hidden, alone(blocks, values(5), values(3, 3)))
            assert torch.equal(first.hidden, alone(blocks, values(5)))
            assert not engine._jobs
            engine.close(session)
            engine.close(session)
            engine.close(other)
            await engine.call(lambda: None)
            assert engine.kv_free == 1024

    run_either(work())


def test_an_exception_in_one_session_leaves_the_others(
    blocks: BlockSpan, run_async: Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def work() -> None:
        async with Engine(blocks, kv_tokens=1024) as engine:
            bad, good = engine.open(ALL, 250), engine.open(ALL, 250)
            await engine.step(bad, 0, values(5))
            original = blocks.run

            def run(arena: KvArena, pieces: Sequence[Piece]) -> list[torch.Tensor]:
                if any(piece.cache is bad.cache for piece in pieces):
                    raise ZeroDivisionError("secret")
                return original(arena, pieces)

            with monkeypatch.context() as patch:
                patch.setattr(blocks, "run", run)
                results = await asyncio.gather(
                    engine.step(bad, 5, values(1)),
                    engine.step(good, 0, values(6)),
                    return_exceptions=True,
                )
            assert isinstance(results[0], InternalError)
            assert "ZeroDivisionError" in str(results[0])
            assert "secret" not in str(results[0])
            assert torch.equal(results[1].hidden, alone(blocks, values(6)))
            mended = await engine.step(bad, 5, values(1, 4))
            assert torch.equal(mended.hidden, alone(blocks, values(5), values(1, 4)))

    run_async(work())


def test_typed_refusals(blocks: BlockSpan, run_async: Runner) -> None:
    async def work() -> None:
        async with Engine(blocks, kv_tokens=288) as engine:
            with pytest.raises(BlocksNotHeld):
                engine.open(Span(3, 7), 10)
            session, other = engine.open(ALL, 256), engine.open(ALL, 256)
            with pytest.raises(PositionOutOfRange):
                await engine.step(session, 1, values(1))
            with pytest.raises(PositionOutOfRange):
                await engine.step(session, 0, values(257))
            await engine.step(session, 0, values(200))
            with pytest.raises(Busy):
                await engine.step(other, 0, values(100))
            assert engine.kv_free == 64
            engine.close(session)
            await engine.step(other, 0, values(100))

    run_async(work())


def test_a_deadline_is_kept_in_the_queue(
    blocks: BlockSpan, run_async: Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def work() -> None:
        async with Engine(blocks, kv_tokens=1024) as engine:
            one, two = engine.open(ALL, 100), engine.open(ALL, 100)
            with pytest.raises(DeadlineExceeded):
                await engine.step(one, 0, values(3), deadline=time.monotonic() - 1)
            with monkeypatch.context() as patch:
                valve = Valve(blocks, patch)
                running = asyncio.ensure_future(
                    engine.step(one, 0, values(3), deadline=time.monotonic() + 600)
                )
                await until(valve.entered.is_set)
                passes = time.monotonic() + 0.01
                waiting = asyncio.ensure_future(engine.step(two, 0, values(3), deadline=passes))
                await until(lambda: time.monotonic() > passes)
                valve.release()
                await running
                with pytest.raises(DeadlineExceeded):
                    await waiting
                assert valve.pieces == 1
            assert two.position == 0
            await engine.step(two, 0, values(3))

    run_async(work())


def test_call_runs_on_the_engines_thread(blocks: BlockSpan, run_either: Runner) -> None:
    def fail() -> None:
        raise KeyError("mine")

    async def work() -> None:
        async with Engine(blocks, kv_tokens=100) as engine:
            assert await engine.call(lambda: threading.current_thread().name) == "swarmd-engine"
            with pytest.raises(KeyError):
                await engine.call(fail)
            cancelled = asyncio.ensure_future(engine.call(lambda: time.sleep(0.01)))
            await asyncio.sleep(0)
            cancelled.cancel()
            assert await engine.call(lambda: 7) == 7, "the thread outlives a cancelled call"

    run_either(work())


def test_a_sub_span_gives_what_its_blocks_give(blocks: BlockSpan, run_async: Runner) -> None:
    async def work() -> None:
        async with Engine(blocks, kv_tokens=2000) as engine:
            hidden, parts = values(9), [Span(0, 2), Span(2, 3), Span(3, 6)]
            for part in parts:
                result = await engine.step(engine.open(part, 100), 0, hidden)
                hidden = result.hidden
            assert torch.equal(hidden, alone(blocks, values(9)))

    run_async(work())
