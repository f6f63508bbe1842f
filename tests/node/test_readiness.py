"""When a node says that it is ready, and when a probe is due."""

from __future__ import annotations

import pytest

from swarmd.errors import Busy, InternalError
from swarmd.node.prober import probe
from swarmd.node.readiness import Readiness, Verdict
from tests.conftest import Runner
from tests.local_swarm import LocalSwarm
from tests.node.hostile_client import ALL

READY = Verdict(True, "")


def test_a_node_is_ready_from_its_first_good_probe_on() -> None:
    readiness = Readiness(every=10)
    assert not readiness.due(0.0), "nothing can be probed while it loads"
    readiness.passed()
    assert "loading" in readiness.verdict.reason
    readiness.loaded()
    assert "under way" in readiness.verdict.reason
    assert readiness.due(1.0)
    assert not readiness.due(1.5)
    readiness.passed()
    assert readiness.verdict == READY
    readiness.loaded()
    assert readiness.verdict == READY, "it was loaded already"


def test_probes_are_few_however_they_end() -> None:
    readiness = Readiness(every=10)
    readiness.loaded()
    assert readiness.due(1.0)
    readiness.failed("not finite")
    assert readiness.verdict == Verdict(False, "the probe failed: not finite")
    assert [readiness.due(now) for now in (1.0, 10.9, 11.0, 12.0, 21.0)] == [
        False, False, True, False, True,
    ]  # fmt: skip
    readiness.passed()
    assert readiness.verdict == READY
    readiness.failed("no output")
    assert not readiness.verdict.ready


def test_a_full_cache_is_no_fault() -> None:
    readiness = Readiness(every=10)
    readiness.loaded()
    readiness.postponed("full")
    assert readiness.verdict == Verdict(False, "no probe yet: full")
    readiness.passed()
    readiness.postponed("full")
    assert readiness.verdict == READY


@pytest.mark.parametrize("probed", [False, True])
def test_who_leaves_stays_unready(probed: bool) -> None:
    readiness = Readiness(every=10)
    readiness.loaded()
    if probed:
        readiness.passed()
    readiness.leaving()
    readiness.loaded()
    readiness.passed()
    assert not readiness.due(100.0)
    assert "leaving" in readiness.verdict.reason
    readiness.failed("late")
    assert "leaving" in readiness.verdict.reason


def test_a_probe_runs_through_the_blocks_and_leaves_nothing(
    swarm: LocalSwarm, run_async: Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def work() -> None:
        async with swarm.running([ALL], kv_tokens=64):
            engine, hidden = swarm.peers[0].engine, swarm.folder.hidden_size
            await probe(engine, hidden)
            await engine.call(lambda: None)
            assert engine.kv_free == engine.kv_tokens
            async with await swarm.session(max_length=64) as session:
                await session.open_links()
                await session.step(0, bytes(64 * 4 * hidden), 64)
                with pytest.raises(Busy):
                    await probe(engine, hidden)
            run = engine.blocks.run
            with monkeypatch.context() as patch:
                patch.setattr(engine.blocks, "run", lambda *a: [o[..., :-1] for o in run(*a)])
                with pytest.raises(InternalError, match="shape"):
                    await until_free(engine, hidden)

    async def until_free(engine: object, hidden: int) -> None:
        while True:
            try:
                return await probe(engine, hidden)  # type: ignore[arg-type]
            except Busy:
                continue

    run_async(work())
