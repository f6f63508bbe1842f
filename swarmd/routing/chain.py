"""The result of routing: hops that cover a range of blocks in order, or the reason why not."""

from __future__ import annotations

from collections.abc import Iterable, Sequence, Set
from dataclasses import dataclass
from itertools import pairwise

from swarmd.blocks import Span
from swarmd.errors import NoRoute
from swarmd.identity import PeerId
from swarmd.peers import PeerInfo
from swarmd.routing.cost import Costs, Mode
from swarmd.routing.view import View

__all__ = ["Chain", "Hop", "chain_cost", "no_route"]

_MOST_NAMED = 4  # ranges that a message lists before it ends in "..."


@dataclass(frozen=True, slots=True)
class Hop:
    """A peer and the blocks that it runs in a chain, a sub-span of those that it holds."""

    peer: PeerInfo
    span: Span

    def __str__(self) -> str:
        quantization = self.peer.quantization
        kind = "" if quantization == "none" else f" {quantization}"
        return f"{self.span}{kind} via {self.peer.peer_id.short}"


@dataclass(frozen=True, slots=True)
class Chain:
    """Hops that join without gap or overlap, never two neighbours on one peer.

    `cost` is in seconds and is what the search minimised: with the penalties of
    :meth:`Costs.admit` and the jitter of that search. :func:`chain_cost` gives it without jitter.
    """

    hops: tuple[Hop, ...]
    cost: float

    @property
    def span(self) -> Span:
        """The blocks that the whole chain runs."""
        return Span(self.hops[0].span.start, self.hops[-1].span.end)

    @property
    def peer_ids(self) -> tuple[PeerId, ...]:
        """The peer of each hop, in order."""
        return tuple(hop.peer.peer_id for hop in self.hops)

    @property
    def quantizations(self) -> tuple[str, ...]:
        """Those of its hops, sorted, each once."""
        return tuple(sorted({hop.peer.quantization for hop in self.hops}))

    def describe(self) -> str:
        """For people: `0:15 via 7f3a12cd 15:30 via c19e04b7`."""
        return " ".join(map(str, self.hops))


def chain_cost(
    hops: Sequence[Hop],
    costs: Costs,
    *,
    avoid: Set[PeerId] = frozenset(),
    previous: PeerInfo | None = None,
    next: PeerInfo | None = None,
    tokens: int = 1,
    kv_needed: int = 0,
    mode: Mode = "hub",
) -> float:
    """The price in seconds of given hops, without jitter, as the search reckons it.

    In a ring `previous` and `next` are the hops around a replacement; None is the client.
    """
    first, last = hops[0].peer, hops[-1].peer
    ring = mode == "ring"
    total = (
        costs.ring_hop(previous, first.peer_id, tokens)
        if ring and previous is not None
        else costs.enter(first.peer_id, tokens)
    )
    for source, target in pairwise(hops):
        total += costs.hop(source.peer, target.peer, tokens=tokens, mode=mode)
    for hop in hops:
        total += costs.admit(hop.peer, kv_needed, avoided=hop.peer.peer_id in avoid)
        total += costs.run(hop.peer, len(hop.span), tokens)
    return total + (
        costs.ring_hop(last, next.peer_id, tokens)
        if ring and next is not None
        else costs.leave(last.peer_id, tokens)
    )


def no_route(
    view: View,
    missing: Iterable[Span],
    *,
    banned: Set[PeerId] = frozenset(),
    wall: float | None = None,
    arithmetic: str | None = None,
) -> NoRoute:
    """The error for blocks that no peer can run now; `missing` must not be empty.

    `wall` is now in seconds since the epoch (announcements carry epoch times); without it the
    age of the newest announcement is left out. `arithmetic` is named where only one was tried.
    """
    missing = tuple(missing)
    named = [str(span) for span in missing[:_MOST_NAMED]]
    dots = ["..."] if len(missing) > _MOST_NAMED else []
    seen = [f"{len(view.peers)} peer{'' if len(view.peers) == 1 else 's'} seen"]
    n_banned = sum(
        peer.peer_id in banned
        and any(peer.span.start < gap.end and gap.start < peer.span.end for gap in missing)
        for peer in view.routable
    )
    if n_banned:
        seen.append(f"{n_banned} banned for now")
    if view.peers and wall is not None:
        age = max(0.0, wall - max(peer.announced_at for peer in view.peers))
        seen.append(f"newest {age:.0f} s ago")
    return NoRoute(
        f"no live peer holds blocks {', '.join(named + dots)} of {view.model_name}"
        f"{'' if arithmetic is None else f' in {arithmetic}'} ({', '.join(seen)}); start one: "
        + ", ".join(f"swarmd serve --blocks {span}" for span in named),
        missing=missing,
    )
