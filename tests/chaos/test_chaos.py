"""A short run of the real thing: daemons, proxies, faults of each kind, clients."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from bench.chaos.clients import SETTINGS, Model
from bench.chaos.faults import Fault, Kind
from bench.chaos.runner import Result, Swarmlet, run
from swarmd.blocks import Span
from swarmd.compute.ends import ModelEnds
from swarmd.compute.model_folder import open_folder
from tests.families import save_tiny

pytestmark = pytest.mark.no_leak_check

FRONT, BACK, WHOLE = Span(0, 3), Span(3, 6), Span(0, 6)
FAULTS = [
    Fault(0.2, Kind.CUT, 2, 0.0, WHOLE),
    Fault(0.6, Kind.CORRUPT, 2, 0.0, WHOLE),
    Fault(0.9, Kind.CUT, 0, 0.0, FRONT),
    Fault(1.1, Kind.CORRUPT, 1, 0.0, BACK),
    Fault(1.2, Kind.SLOW, 0, 0.8, FRONT),
    Fault(1.3, Kind.STOP, 2, 2.5, WHOLE),
    Fault(3.9, Kind.MUTE, 1, 0.5, BACK),
    Fault(4.5, Kind.KILL, 2, 0.0, WHOLE),
]


def test_answers_are_the_same_under_faults(tmp_path: Path) -> None:
    folder = open_folder(save_tiny("llama", tmp_path / "llama"))

    async def work() -> Result:
        options = ("--model", str(folder.path), "--dtype", "float32")
        async with Swarmlet.of([FRONT, BACK, WHOLE], *options) as swarmlet:
            model = Model(folder, ModelEnds(folder, dtype="float32"))
            return await run(
                swarmlet, model, FAULTS, seconds=6, tokens=24, settings=(SETTINGS[0], SETTINGS[2])
            )

    result = asyncio.run(work())
    assert result.good, result.as_json()
    assert not result.tally.refused, result.tally.refused
    assert len(result.done) == len(FAULTS)
    assert result.tally.touches, "no fault met an answer: nothing was tried"
