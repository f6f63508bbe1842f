"""The bound that leads the search against the true rest, found by going back over all hops."""

from __future__ import annotations

import math
import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from swarmd.routing.bounds import Links, Prices, rest_of


def random_prices(rng: random.Random, peers: int, length: int) -> Prices:
    def some(most: float) -> np.ndarray:
        return np.array([rng.choice((0.0, rng.uniform(0, most))) for _ in range(peers)])

    low = np.array([rng.randrange(length) for _ in range(peers)])
    high = np.array([rng.randint(one + 1, length) for one in low.tolist()])
    return Prices(low, high, some(1.0), some(0.5), some(0.5), some(0.5))


def random_links(rng: random.Random, prices: Prices, count: int) -> Links:
    peers = len(prices.step)
    pairs = sorted({(rng.randrange(peers), rng.randrange(peers)) for _ in range(count)})
    pairs = [(p, q) for p, q in pairs if p != q]
    source, target = (np.array([pair[i] for pair in pairs], int) for i in (0, 1))
    half = np.array([rng.uniform(0, 0.5) for _ in pairs])
    factor = np.array([rng.uniform(1.0, 1.1) for _ in range(peers)])
    into = factor * np.array([rng.uniform(0, 0.1) for _ in range(peers)])
    return Links(source, target, half, into, factor, prices.low, prices.high)


def true_rest(prices: Prices, length: int, links: Links | None) -> list[list[float]]:
    """[b][p], by every hop that there is."""
    peers = range(len(prices.step))
    hops = {} if links is None else {
        (p, q): price
        for p, q, price in zip(
            links.source.tolist(), links.target.tolist(), links.price.tolist(), strict=True
        )
    }  # fmt: skip
    found = [[math.inf] * len(peers) for _ in range(length)] + [prices.last.tolist()]
    for b in range(length - 1, -1, -1):
        ahead = {
            q: prices.step[q] + found[b + 1][q]
            for q in peers
            if prices.low[q] <= b < prices.high[q]
        }
        for p in peers:
            ways = [ahead.get(p, math.inf)]
            for q, rest in ahead.items():
                ways.append(prices.leave[p] + prices.enter[q] + rest)
                ways.append(hops.get((p, q), math.inf) + rest)
            found[b][p] = min(ways)
    return found


@settings(max_examples=150, deadline=None)
@given(st.integers(0, 2**32), st.integers(1, 8), st.integers(1, 6), st.integers(0, 30))
def test_the_bound_never_exceeds_what_is_left(
    seed: int, peers: int, length: int, count: int
) -> None:
    rng = random.Random(seed)
    prices = random_prices(rng, peers, length)
    links = random_links(rng, prices, count)
    exact = np.array(true_rest(prices, length, links))
    bound = rest_of(prices, length, links.useful(prices)).of_peers
    boundaries = np.arange(length + 1)[:, None]
    reached = (prices.low < boundaries) & (boundaries <= prices.high)
    assert (bound[reached] <= exact[reached] * (1 + 1e-12)).all()


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 2**32), st.integers(1, 8), st.integers(1, 6))
def test_without_links_it_is_what_is_left(seed: int, peers: int, length: int) -> None:
    prices = random_prices(random.Random(seed), peers, length)
    found = rest_of(prices, length)
    assert found.of_peers == pytest.approx(np.array(true_rest(prices, length, None)))
    assert found.of_hub[:-1] == pytest.approx((prices.enter + found.ahead).min(axis=1))
