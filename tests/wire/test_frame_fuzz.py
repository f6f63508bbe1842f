"""A small run of `bench/fuzz_frames.py`: only typed refusals come of mutated frames."""

from __future__ import annotations

from bench.fuzz_frames import fuzz_frames


def test_mutated_frames_are_refused_by_type_and_leave_nothing() -> None:
    report = fuzz_frames(8_000, seed=7)
    assert report.bugs == 0
    assert report.heap_growth < 100_000
    assert report.outcomes["accepted"] > 100
    assert report.outcomes["bad_request"] > 1000
    assert {"bad_tensor", "unknown_message", "frame_too_large"} <= set(report.outcomes)
