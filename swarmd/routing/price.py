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

    A link is counted at the hop into which it leads, the last one at the last hop. `previous` and
    `next` are the hops around a replacement; None is the client.
    """
    prices = [_on_peer(hop, costs, avoid, tokens, kv_needed) for hop in hops]

    def link(source: PeerInfo | None, target: PeerInfo | None) -> Price:
        """From the one to the other; None is the client."""
        if source is None or target is None:
            ends = [peer.peer_id for peer in (source, target) if peer is not None]
            trip = sum(costs.client_rtt(end) for end in ends) / 2
            return Price(trips=trip, bytes=sum(costs.transfer(end, tokens) for end in ends))
        rtt = costs.edge_rtt(source, target.peer_id)
        hub = link(source, None) + link(None, target)
        if mode == "hub" or rtt is None:
            return hub
        edge = Price(trips=rtt / 2, bytes=costs.transfer(target.peer_id, tokens))
        return min(hub, edge, key=lambda price: price.seconds)

    prices[0] += link(previous, hops[0].peer)
    for at, (source, target) in enumerate(pairwise(hops), start=1):
        prices[at] += link(source.peer, target.peer)
    prices[-1] += link(hops[-1].peer, next)
    return tuple(prices)


def _on_peer(hop: Hop, costs: Costs, avoid: Set[PeerId], tokens: int, kv_needed: int) -> Price:
    compute = len(hop.span) * costs.step(hop.peer, tokens)
    avoided = hop.peer.peer_id in avoid
    return Price(
        compute=compute,
        queue=costs.run(hop.peer, len(hop.span), tokens) - compute,
        penalty=costs.admit(hop.peer, kv_needed, avoided=avoided),
    )
