"""Which patience is kept, and how much is spent on trying others."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from swarmd.compute.patience import BETTER, CANDIDATES, PatienceSearch


def watched(search: PatienceSearch, rates: dict[float, float], turns: int) -> Counter[float]:
    """How many of so many turns had which patience, where each gives so many rows a second."""
    now, found = 0.0, Counter[float]()
    for _ in range(turns):
        value = search.value
        found[value] += 1
        now += 0.02
        search.ran(now, round(1e6 * 0.02 * rates[value]))
    return found


@pytest.mark.parametrize("best", CANDIDATES)
def test_what_gives_most_is_kept(best: float) -> None:
    rates = {0.0: 50.0, **dict.fromkeys(CANDIDATES, 100.0), best: 130.0}
    search = PatienceSearch()
    watched(search, rates, 500)
    found = watched(search, rates, 20_000)
    assert found.most_common(1)[0][0] == best
    assert found[best] > 0.9 * found.total()


def test_no_reason_is_no_change() -> None:
    rates = dict.fromkeys((0.0, *CANDIDATES), 100.0)
    rates[CANDIDATES[2]] *= BETTER - 0.01
    search = PatienceSearch()
    watched(search, rates, 500)
    assert watched(search, rates, 20_000).most_common(1)[0][0] == CANDIDATES[0]


def test_what_was_best_may_change() -> None:
    search, worse, better = PatienceSearch(), *CANDIDATES[1:]
    watched(search, {0.0: 50.0, **dict.fromkeys(CANDIDATES, 90.0), worse: 100.0}, 500)
    rates = {0.0: 50.0, **dict.fromkeys(CANDIDATES, 90.0), better: 120.0}
    watched(search, rates, 20_000)
    assert watched(search, rates, 20_000).most_common(1)[0][0] == better


def test_who_comes_or_goes_has_it_begin_anew() -> None:
    search = PatienceSearch()
    watched(search, {0.0: 50.0, **dict.fromkeys(CANDIDATES, 90.0), CANDIDATES[2]: 200.0}, 500)
    search.disturbed()
    assert search.value == CANDIDATES[0]


@given(st.lists(st.tuples(st.floats(0, 1), st.integers(1, 64), st.booleans()), max_size=300))
def test_it_is_always_one_of_them_or_none(turns: list[tuple[float, int, bool]]) -> None:
    search, now = PatienceSearch(), 0.0
    for seconds, rows, disturbed in turns:
        now += seconds
        search.ran(now, rows)
        if disturbed:
            search.disturbed()
        assert search.value in (0.0, *CANDIDATES)
