"""When packets arrive: by delay, rate, jitter and loss, in order."""

from __future__ import annotations

from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.wan.links import QUEUE_SECONDS, Link, Links


def test_delay_and_rate_add_up() -> None:
    links = Links(default=Link(delay=0.02, rate=8e6))
    assert links.arrival(1, 2, 1000, 5.0) == pytest.approx(5.021)
    assert links.arrival(1, 2, 1000, 5.0) == pytest.approx(5.022)  # behind the first
    assert links.arrival(2, 1, 1000, 5.0) == pytest.approx(5.021)  # the other way is free


def test_pairs_may_differ_and_change() -> None:
    links = Links(default=Link(delay=0.5))
    links.set({(1, 2): Link(delay=0.1)})
    assert links.arrival(1, 2, 100, 0.0) == pytest.approx(0.1)
    assert links.arrival(2, 1, 100, 0.0) == pytest.approx(0.5)
    links.set({None: Link(delay=0.7)})
    assert links.arrival(2, 1, 100, 1.0) == pytest.approx(1.7)


def test_a_full_queue_drops() -> None:
    links = Links(default=Link(rate=8e3))  # a kilobyte a second
    found = [links.arrival(1, 2, 100, 0.0) for _ in range(20)]
    arrived = [at for at in found if at is not None]
    assert len(arrived) < 20
    assert max(arrived) <= QUEUE_SECONDS + 0.2


def test_so_many_are_lost() -> None:
    links = Links(rng=Random(1), default=Link(loss=0.25))
    lost = sum(links.arrival(1, 2, 100, 0.0) is None for _ in range(2000))
    assert 400 < lost < 600


@given(
    st.lists(st.tuples(st.floats(0, 2), st.integers(20, 1500)), max_size=60),
    st.floats(0, 1),
    st.floats(0, 1),
    st.none() | st.floats(1e4, 1e9),
)
def test_packets_arrive_in_order_and_never_too_early(
    sent: list[tuple[float, int]], delay: float, jitter: float, rate: float | None
) -> None:
    links = Links(rng=Random(0), default=Link(delay=delay, jitter=jitter, rate=rate))
    now, last = 0.0, 0.0
    for wait, size in sent:
        now += wait
        arrives = links.arrival(1, 2, size, now)
        if arrives is not None:
            assert arrives >= max(last, now + delay)
            last = arrives


@pytest.mark.parametrize("wrong", [{"delay": -1}, {"loss": 1.5}, {"rate": 0.0}, {"jitter": -0.1}])
def test_links_that_cannot_be_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="no such link"):
        Link(**wrong)
