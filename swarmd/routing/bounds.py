"""What the rest of a chain costs at least, from each peer at each boundary. Pure; on numpy.

The bound is the exact cost of a simpler problem, as a heuristic of A* ought to be: a link between
peers is as cheap as the cheaper of two wishes. Out of p it may lead to anybody, at the price of p's
shortest known trip; into q it may come from anybody, at the price of q's cheapest link. Hops by the
client cost what they cost. Going back from the goal, boundary by boundary, all peers at once::

    rest(p, length) = last(p)
    rest(p, b)      = min(step(p) + rest(p, b + 1)                     where p holds block b,
                          leave(p) + min over q of (enter(q) + ahead(q, b)),
                          max(trip(p) + min over q of (into(q) + ahead(q, b)),
                              min over q of (link(q) + ahead(q, b))))
    ahead(q, b)     = step(q) + rest(q, b + 1)                         where q holds block b

Without links the bound is the rest itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from swarmd.identity import PeerId
from swarmd.peers import PeerInfo
from swarmd.routing.cost import Costs

__all__ = ["Links", "Prices", "Rest", "rest_of"]

Floats: TypeAlias = npt.NDArray[np.float64]
Ints: TypeAlias = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Prices:
    """Of each peer, in seconds: `step` for a block, `enter` and `leave` from and to the client,
    `last` out of the range; its blocks `[low, high)`, counted from the start of the range."""

    low: Ints
    high: Ints
    step: Floats
    enter: Floats
    leave: Floats
    last: Floats


@dataclass(frozen=True, slots=True)
class Links:
    """Known links between peers, by index, sorted by `source`. A hop over one costs `into` of its
    target, and half a round trip (`half`) times the target's `factor`."""

    source: Ints
    target: Ints
    half: Floats
    into: Floats
    factor: Floats
    low: Ints
    high: Ints

    @classmethod
    def between(
        cls,
        peers: Sequence[PeerInfo],
        costs: Costs,
        factors: Sequence[float],
        admits: Sequence[float],
        tokens: int,
    ) -> Links:
        """Those that peers announce, and those that the client saw made, as `Costs.edge` has it.
        `factors`: what all that a peer costs is multiplied with, at least 1."""
        measured: dict[PeerId, dict[PeerId, float]] = {}
        for (one, other), rtt in costs.measured.edge_rtt.items():
            measured.setdefault(one, {})[other] = rtt
        index = {peer.peer_id: i for i, peer in enumerate(peers)}
        every = [
            {**peer.rtts, **measured[peer.peer_id]} if peer.peer_id in measured else peer.rtts
            for peer in peers
        ]
        source = np.repeat(np.arange(len(peers)), [len(known) for known in every])
        target = np.array([index.get(other, -1) for known in every for other in known], int)
        trips = np.array([rtt for known in every for rtt in known.values()], float)
        known = (target >= 0) & (target != source) & np.isfinite(trips) & (trips >= 0)
        factor = np.array(factors)
        fixed = [
            admit + costs.transfer(peer.peer_id, tokens)
            for peer, admit in zip(peers, admits, strict=True)
        ]
        half = np.clip(trips[known], costs.model.min_rtt, costs.model.max_rtt) / 2
        nobody = np.zeros(0, int)
        return cls(
            source[known], target[known], half, factor * np.array(fixed), factor,
            nobody, nobody,
        )  # fmt: skip

    @property
    def price(self) -> Floats:
        """What a hop over each link costs."""
        return self.into[self.target] + self.factor[self.target] * self.half

    def useful(self, prices: Prices) -> Links:
        """Those whose target may follow their source, and not as cheaply by the client."""
        p, q = self.source, self.target
        kept = (prices.low[q] <= prices.high[p]) & (prices.low[p] < prices.high[q])
        kept &= self.price < prices.leave[p] + prices.enter[q]
        return replace(
            self, source=p[kept], target=q[kept], half=self.half[kept],
            low=prices.low, high=prices.high,
        )  # fmt: skip

    def out_of(self, peer: int) -> list[tuple[int, int, int, float]]:
        """Of each link out of a peer: the target, its blocks from and to, and the price."""
        first, last = np.searchsorted(self.source, (peer, peer + 1))
        q = self.target[first:last]
        price = self.into[q] + self.factor[q] * self.half[first:last]
        columns = (q, self.low[q], self.high[q], price)
        return list(zip(*(column.tolist() for column in columns), strict=True))

    def wishes(self, peers: int) -> tuple[Floats, Floats, Floats]:
        """Of each peer: the shortest trip out of it, what a link into it costs apart from the trip,
        and what the cheapest one costs; infinite where there is none."""
        trip, cheapest = np.full(peers, np.inf), np.full(peers, np.inf)
        np.minimum.at(trip, self.source, self.half)
        np.minimum.at(cheapest, self.target, self.price)
        return trip, np.where(np.isfinite(cheapest), self.into, np.inf), cheapest


@dataclass(frozen=True, slots=True)
class Rest:
    """`of_peers`: (length + 1, peers), what is left from (p, b) at [b, p]; `ahead`: (length,
    peers), what is left for who enters p there, which runs the block behind; `of_hub`: (length +
    1,), what is left from the client. Infinite for what cannot be reached."""

    of_peers: Floats
    ahead: Floats
    of_hub: Floats


def rest_of(prices: Prices, length: int, links: Links | None = None) -> Rest:
    """The bound for a range of `length` blocks."""
    peers = len(prices.step)
    found = np.full((length + 1, peers), np.inf)
    ahead = np.full((length, peers), np.inf)
    hub = np.full(length + 1, np.inf)
    found[length] = prices.last
    if links is not None:
        trip, into, cheapest = links.wishes(peers)
    for b in range(length - 1, -1, -1):
        holds = (prices.low <= b) & (b < prices.high)
        ahead[b] = np.where(holds, prices.step + found[b + 1], np.inf)
        hub[b] = (prices.enter + ahead[b]).min(initial=np.inf)
        found[b] = np.minimum(ahead[b], prices.leave + hub[b])
        if links is not None:
            anywhere = (into + ahead[b]).min(initial=np.inf)
            anyone = (cheapest + ahead[b]).min(initial=np.inf)
            np.minimum(found[b], np.maximum(trip + anywhere, anyone), out=found[b])
    return Rest(found, ahead, hub)
