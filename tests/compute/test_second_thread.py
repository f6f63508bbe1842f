"""Two things beside one another: both are done, both may fail, and sharing never waits."""

from __future__ import annotations

import threading

import pytest
import torch
from torch import nn

from swarmd.compute.row_linear import NEVER, RowLinear
from swarmd.compute.second_thread import SecondThread


def test_both_are_done_on_two_threads() -> None:
    second, names = SecondThread(), []
    both = threading.Barrier(2, timeout=10)  # neither passes alone

    def note() -> None:
        both.wait()
        names.append(threading.current_thread().name)

    for _ in range(50):
        second.run(note, note)
    assert len(names) == 100
    assert len(set(names)) == 2


@pytest.mark.parametrize("which", [0, 1])
def test_what_either_raises_is_raised_and_the_thread_stays(which: int) -> None:
    second, done = SecondThread(), []

    def fails() -> None:
        raise ValueError("on purpose")

    def works() -> None:
        done.append(threading.current_thread().name)

    with pytest.raises(ValueError, match="on purpose"):
        second.run(*((fails, works) if which == 0 else (works, fails)))
    second.run(works, works)
    assert len(done) == 3
    assert len(set(done)) == 2


def test_who_finds_it_taken_does_both_alone() -> None:
    second, names = SecondThread(), []

    def inner() -> None:
        names.append(threading.current_thread().name)

    second.run(lambda: second.run(inner, inner), lambda: None)
    assert names == [threading.current_thread().name] * 2


@pytest.mark.parametrize("rows", [1, 3, 4, 32])
@pytest.mark.parametrize("by_columns", [False, True])
def test_a_split_product_is_the_same(rows: int, by_columns: bool) -> None:
    torch.manual_seed(1)
    plain = nn.Linear(24, 41)
    split = nn.Linear(24, 41)
    split.load_state_dict(plain.state_dict())
    if by_columns:
        split.weight.data = split.weight.data.t().contiguous().t()
    split.__class__ = RowLinear
    split.split_from = 3  # type: ignore[assignment]
    assert RowLinear.split_from == NEVER
    with torch.inference_mode():
        hidden = torch.randn(1, rows, 24)
        torch.testing.assert_close(split(hidden), plain(hidden), rtol=1e-6, atol=1e-6)
