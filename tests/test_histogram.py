"""Counts by size."""

from __future__ import annotations

import pytest

from swarmd.histogram import Histogram


def test_values_fall_into_their_buckets() -> None:
    found = Histogram((0.1, 1.0))
    for value in (0.05, 0.1, 0.5, 1.0, 7.0):
        found.observe(value)
    assert found.buckets() == [(0.1, 2), (1.0, 4), (float("inf"), 5)]
    assert (found.count, found.sum) == (5, pytest.approx(8.65))


def test_bounds_that_do_not_ascend_are_refused() -> None:
    for bounds in ((1.0, 0.5), (1.0, 1.0)):
        with pytest.raises(ValueError, match="ascend"):
            Histogram(bounds)
