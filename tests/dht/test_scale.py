"""A small run of `bench/dht_scale.py`."""

from __future__ import annotations

import pytest

from bench.dht_scale import simulate_cascade, simulate_lookups
from tests.conftest import Runner


@pytest.mark.parametrize(("dead", "most"), [(0.0, 12), (0.3, 16)])
def test_lookups_find_the_nearest_in_few_requests(
    run_async: Runner, dead: float, most: float
) -> None:
    figures = run_async(simulate_lookups(1000, 100, dead, seed=2))
    assert figures["recall"] > 0.995  # 0.96 when 5 failed referrals were enough to be blamed
    assert figures["requests"] < most


def test_the_cascade_finds_all_also_while_half_die() -> None:
    figures = simulate_cascade(1500, seed=2)
    assert figures["found"] == 1
    assert figures["worst_found_after_half_died"] == 1
    assert figures["depth"] == 2
    assert figures["renewal_puts"] < 2
    assert figures["sampled"] >= 1000
