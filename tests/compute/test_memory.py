"""How many blocks fit, and how sizes are read."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from swarmd.compute.memory import WORKSPACE_BYTES, MemoryPlan
from swarmd.errors import UsageError
from swarmd.sizes import parse_size

MB = 10**6


@given(
    st.integers(0, 1 << 40), st.integers(1, 1 << 32), st.integers(1, 1 << 20),
    st.integers(1, 1 << 16), st.integers(1, 200),
)  # fmt: skip
def test_as_many_blocks_as_fit_and_not_one_more(
    limit: int, block: int, kv: int, tokens: int, n_blocks: int
) -> None:
    plan = MemoryPlan(limit, block, kv, tokens, n_blocks)

    def needed(count: int) -> int:
        return count * (block + kv * tokens) + WORKSPACE_BYTES

    assert 0 <= plan.blocks <= n_blocks
    if plan.blocks:
        assert needed(plan.blocks) <= limit
    if plan.blocks < n_blocks:
        assert needed(plan.blocks + 1) > limit


def test_explain_shows_the_sum() -> None:
    plan = MemoryPlan(350 * MB, 14 * MB, 1536, 4096, 30, workspace=32 * MB)
    text = "\n".join(plan.explain())
    for part in ("350.0 MB", "32.0 MB", "14.0 MB", "6.3 MB", "4096 tokens", "15 of 30"):
        assert part in text
    assert (350 - 32) * MB // (14 * MB + 1536 * 4096) == plan.blocks == 15


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("0", 0),
        ("500000000", 500_000_000),
        ("350MB", 350 << 20),
        ("350 mb", 350 << 20),
        ("1.5G", 3 << 29),
        ("2GiB", 2 << 30),
        (" 8gib ", 8 << 30),
        ("1K", 1024),
        ("1T", 1 << 40),
        ("7B", 7),
    ],
)
def test_sizes(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize(
    "text", ["", "MB", "-1G", "1e9", "1,5G", "1.G", ".5G", "1 G B", "1PB", "nan", "inf", "1GG"]
)
def test_what_is_no_size(text: str) -> None:
    with pytest.raises(UsageError, match="350MB"):
        parse_size(text)


def test_an_endless_size_is_no_size() -> None:
    with pytest.raises(UsageError):
        parse_size("9" * 400)
