"""Sixty nodes over an emulated WAN that loses 1 %: all is found, within budgets of traffic."""

from __future__ import annotations

from bench.dht import measure
from bench.late_datagrams import Wan
from tests.conftest import run_on


def test_all_is_found_before_and_after_a_third_died() -> None:
    """With 24 places a key, 80 publishers need the cascade."""
    work = measure(60, 80, 4, wan=Wan(), seed=5, cap=24, announces=3)
    figures = run_on("asyncio", work, timeout=400)  # half a minute; more on a busy machine
    for name, of in figures.items():
        assert of["complete"] == of["runs"] > 0, name
    for name, datagrams, size in (
        ("announce, cold", 400, 80_000),
        ("announce, steady", 120, 25_000),
        ("fetch, all alive", 1200, 300_000),
        ("fetch, 30 % just killed", 1500, 400_000),
    ):
        assert figures[name]["datagrams"] < datagrams, name
        assert figures[name]["bytes"] < size, name
