"""The result of routing: hops that cover a range of blocks in order, or the reason why not."""

from __future__ import annotations

from collections.abc import Iterable, Set
from dataclasses import dataclass

from swarmd.blocks import Span
from swarmd.errors import NoRoute
from swarmd.identity import PeerId
from swarmd.peers import PeerInfo
from swarmd.routing.view import View

__all__ = ["Chain", "Hop", "no_route"]

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
    :meth:`Costs.admit` and the jitter of that search; :func:`swarmd.routing.price.chain_price`
    gives it item by item, without jitter.
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
