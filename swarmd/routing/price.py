"""What a given chain costs, item by item: the figures behind a choice, for people to read."""

from __future__ import annotations

from collections.abc import Sequence, Set
from dataclasses import dataclass, fields
from itertools import pairwise

from swarmd.identity import PeerId
from swarmd.peers import PeerInfo
from swarmd.routing.chain import Hop
from swarmd.routing.cost import Costs, Mode

__all__ = ["Price", "chain_price"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Price:
    """Seconds by what they are spent on; the sum is what the search for a chain minimises."""

    trips: float = 0.0
    """Halves of round trips, without bytes."""
    bytes: float = 0.0
    """The activations over the bandwidth of each link."""
    compute: float = 0.0
    """Blocks times the time of a step through one."""
    queue: float = 0.0
    """Steps of others that wait there."""
    penalty: float = 0.0
    """No time, but dislike: short room in the cache, or a peer that asked for a pause."""

    def __add__(self, other: Price) -> Price:
        return Price(
            **{one.name: getattr(self, one.name) + getattr(other, one.name) for one in fields(self)}
        )

    @property
    def seconds(self) -> float:
        """Predicted seconds of one trip of `tokens` positions; without the penalty."""
        return self.trips + self.bytes + self.compute + self.queue

    @property
    def total(self) -> float:
        """What the search compares, jitter apart."""
        return self.seconds + self.penalty


def chain_price(
    hops: Sequence[Hop],
    costs: Costs,
    *,
    avoid: Set[PeerId] = frozenset(),
    previous: PeerInfo | None = None,
    next: PeerInfo | None = None,
    tokens: int = 1,
    kv_needed: int = 0,
    mode: Mode = "hub",
) -> tuple[Price, ...]:
    """The price of each hop, in order, without jitter; their sum is the chain's.

    A link is counted at the hop into which it leads, the last one at the last hop. In a ring
    `previous` and `next` are the hops around a replacement; None is the client.
    """
    ring = mode == "ring"
    prices = [_on_peer(hop, costs, avoid, tokens, kv_needed) for hop in hops]

    def add(at: int, trip: float, links: Sequence[PeerId]) -> None:
        bytes_ = sum(costs.transfer(peer_id, tokens) for peer_id in links)
        prices[at] += Price(trips=trip, bytes=bytes_)

    first, last = hops[0].peer.peer_id, hops[-1].peer.peer_id
    if ring and previous is not None:
        add(0, costs.server_rtt(previous, first) / 2, [first])
    else:
        add(0, costs.client_rtt(first) / 2, [first])
    for at, (source, target) in enumerate(pairwise(hops), start=1):
        a, b = source.peer.peer_id, target.peer.peer_id
        if ring:
            add(at, costs.server_rtt(source.peer, b) / 2, [b])
        else:
            add(at, (costs.client_rtt(a) + costs.client_rtt(b)) / 2, [a, b])
    if ring and next is not None:
        add(-1, costs.server_rtt(hops[-1].peer, next.peer_id) / 2, [next.peer_id])
    else:
        add(-1, costs.client_rtt(last) / 2, [last])
    return tuple(prices)


def _on_peer(hop: Hop, costs: Costs, avoid: Set[PeerId], tokens: int, kv_needed: int) -> Price:
    compute = len(hop.span) * costs.step(hop.peer, tokens)
    avoided = hop.peer.peer_id in avoid
    return Price(
        compute=compute,
        queue=costs.run(hop.peer, len(hop.span), tokens) - compute,
        penalty=costs.admit(hop.peer, kv_needed, avoided=avoided),
    )
