"""The schedule of faults: repeatable, and never fatal to a block."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bench.chaos.faults import Kind, covered, schedule
from swarmd.blocks import Span

FRONT, BACK = Span(0, 3), Span(3, 6)
SWARMS = st.lists(st.sampled_from([FRONT, BACK, Span(0, 6)]), max_size=4).map(
    lambda more: [FRONT, BACK, FRONT, BACK, *more]
)


@settings(deadline=None, max_examples=50)
@given(seed=st.integers(), spans=SWARMS, pause=st.floats(0.2, 10))
def test_each_block_is_always_held_by_a_node_that_is_not_harmed(
    seed: int, spans: list[Span], pause: float
) -> None:
    faults = schedule(seed, 120, spans, 6, pause=pause)
    held, busy = list(spans), [0.0] * len(spans)
    for fault in faults:
        assert busy[fault.victim] <= fault.at, "harmed while it was harmed"
        held[fault.victim], busy[fault.victim] = fault.span, fault.over
        whole = [span for span, until in zip(held, busy, strict=True) if until <= fault.at]
        others = [
            span
            for node, span in enumerate(held)
            if node != fault.victim and busy[node] <= fault.at
        ]
        assert covered(others, 6) and covered([*whole, *others], 6)


@settings(deadline=None, max_examples=50)
@given(seed=st.integers(), spans=SWARMS)
def test_the_same_seed_gives_the_same_faults_in_order(seed: int, spans: list[Span]) -> None:
    faults = schedule(seed, 60, spans, 6)
    assert faults == schedule(seed, 60, spans, 6)
    assert [fault.at for fault in faults] == sorted(fault.at for fault in faults)
    assert all(0 < fault.at < 60 for fault in faults)


def test_every_kind_comes_before_one_comes_again() -> None:
    faults = schedule(1, 60, [FRONT, BACK, FRONT, BACK, FRONT], 6, pause=1.0)
    assert {fault.kind for fault in faults[: len(Kind)]} == set(Kind)


def test_a_move_changes_the_blocks_and_nothing_else_does() -> None:
    held = [FRONT, BACK, FRONT, BACK, FRONT]
    for fault in schedule(5, 300, held, 6):
        assert (fault.span != held[fault.victim]) == (fault.kind is Kind.MOVE)
        held[fault.victim] = fault.span


def test_a_swarm_without_spares_is_refused() -> None:
    with pytest.raises(ValueError, match="no node can be harmed"):
        schedule(1, 60, [FRONT, BACK], 6)
