"""A small run of `bench/fuzz.py`: garbage of all kinds against a live node."""

from __future__ import annotations

import tracemalloc

from bench.fuzz import fuzz_datagrams
from swarmd.dht.envelope import Drop
from tests.conftest import Runner


def test_mutated_datagrams_meet_no_bug_no_log_and_no_leak(run_either: Runner) -> None:
    tracemalloc.start(1)
    try:
        report = run_either(fuzz_datagrams(20_000, seed=7))
    finally:
        tracemalloc.stop()
    assert (report.bugs, report.log_lines) == (0, 0)
    assert {Drop.SIZE, Drop.TAG, Drop.KIND, Drop.BODY, Drop.SHAPE} <= set(report.drops)
    assert report.answered > 1000
    for method in ("ping", "query", "put"):  # replies get as far as the parser, and beyond it
        assert report.replies[f"{method}, accepted"] > 100
        assert report.replies[f"{method}, refused"] > 500
    # what grows is the memory of checked records: 16 bytes and their entry for each of 2,000
    assert report.heap_growth < 2 * 2**20
    assert report.us_each < 1000  # about 70 without the tracing of memory
