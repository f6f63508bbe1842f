"""The chains that the best one was chosen over, for `swarmd route --explain`."""

from __future__ import annotations

from collections.abc import Callable, Set
from dataclasses import dataclass, replace

from swarmd.errors import NoRoute
from swarmd.identity import PeerId
from swarmd.routing.chain import Chain
from swarmd.routing.cost import Costs
from swarmd.routing.price import Price, chain_price
from swarmd.routing.query import RouteQuery

__all__ = ["Candidate", "Choose", "candidates"]

Choose = Callable[[RouteQuery], Chain]
"""The search, for a query; raises NoRoute."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """A chain, the price of each hop, and why it is listed: the peer without which it is best, or
    None for the winner."""

    chain: Chain
    prices: tuple[Price, ...]
    without: PeerId | None = None

    @property
    def price(self) -> Price:
        """That of the whole chain."""
        return sum(self.prices, Price())


def candidates(choose: Choose, costs: Costs, query: RouteQuery) -> list[Candidate]:
    """The winner, then for each of its peers the best chain without that peer, cheapest first.

    So each of the others says what the swarm would do if a peer of the winner were gone, and how
    many milliseconds that peer is worth. Jitter is left out. Raises NoRoute where there is no
    chain at all; a peer without which there is none has no entry.
    """
    query = replace(query, rng=None)

    def price(chain: Chain, without: PeerId | None) -> Candidate:
        prices = chain_price(
            chain.hops,
            costs,
            avoid=query.avoid,
            tokens=query.tokens,
            kv_needed=query.kv_needed,
            mode=query.mode,
        )
        return Candidate(chain, prices, without)

    winner = price(choose(query), None)
    others: dict[tuple[object, ...], Candidate] = {}
    for peer_id in dict.fromkeys(winner.chain.peer_ids):
        banned: Set[PeerId] = query.banned | {peer_id}
        try:
            other = price(choose(replace(query, banned=banned)), peer_id)
        except NoRoute:
            continue
        key = tuple((hop.peer.peer_id, hop.span) for hop in other.chain.hops)
        others.setdefault(key, other)
    return [winner, *sorted(others.values(), key=lambda one: one.price.total)]
