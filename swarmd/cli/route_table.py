"""What `swarmd route` prints: the candidates with their prices, and the peers behind them."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import fields
from typing import TYPE_CHECKING, Any

from rich import box
from rich.console import Console
from rich.table import Table

from swarmd.peers import PeerInfo
from swarmd.printable import printable
from swarmd.routing.candidates import Candidate
from swarmd.routing.price import Price

if TYPE_CHECKING:
    from swarmd.client.router import Router

__all__ = ["as_json", "show"]

PARTS = tuple(one.name for one in fields(Price))
PEERS_SHOWN = 40
"""Peers in the lower table; the chains are of those that are nearest anyway."""


def show(
    name: str, router: Router, found: Sequence[Candidate], tokens: int, *, explain: bool
) -> None:
    """Print to stdout. The first candidate is the winner."""
    console = Console(
        highlight=False, markup=False, emoji=False, width=None if sys.stdout.isatty() else 120
    )
    winner = found[0]
    what = "a token" if tokens == 1 else f"{tokens} tokens"
    console.print(f"{printable(name, 64)}: {winner.chain.describe()}", soft_wrap=True)
    console.print(f"predicted: {_ms(winner.price.seconds)} ms for {what} through the chain")
    if not explain:
        return
    console.print(_chains(found))
    console.print(_why(winner, found[1:]), soft_wrap=True)
    console.print(_peers(router, winner, tokens))


def _chains(found: Sequence[Candidate]) -> Table:
    table = Table(
        title="Chains, each hop's cost in milliseconds",
        title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False,
    )  # fmt: skip
    table.add_column("chain", no_wrap=True)
    for part in (*PARTS, "in all", "more"):
        table.add_column(part, justify="right", no_wrap=True)
    best = found[0].price.total
    for number, one in enumerate(found):
        title = "taken" if number == 0 else f"without {one.without.short if one.without else ''}"
        extra = "" if number == 0 else f"+{_ms(one.price.total - best)}"
        table.add_row(title, *_cells(one.price), extra, style="bold" if number == 0 else None)
        for hop, price in zip(one.chain.hops, one.prices, strict=True):
            table.add_row(f"  {hop}", *_cells(price), "", style="dim")
    return table


def _cells(price: Price) -> list[str]:
    return [*(_ms(getattr(price, part)) for part in PARTS), _ms(price.total)]


def _why(winner: Candidate, others: Sequence[Candidate]) -> str:
    if not others:
        return "No other chain: without any one of these peers some block has no holder."
    second = others[0]
    gain = {p: getattr(second.price, p) - getattr(winner.price, p) for p in PARTS}
    part = max(PARTS, key=lambda one: gain[one])
    margin = second.price.total - winner.price.total
    if margin <= 0.05 * winner.price.total:
        return (
            f"The two cheapest differ by {_ms(margin)} ms. Clients add up to 5 % of chance to each "
            "price, so that not all take the same: an answer may take either."
        )
    return (
        f"It is {_ms(margin)} ms cheaper than the next, most of it by {part} ({_ms(gain[part])})."
    )


def _peers(router: Router, winner: Candidate, tokens: int) -> Table:
    now = router.clock.monotonic()
    banned, avoid = router.health.banned(now), router.health.avoid(now)
    taken = set(winner.chain.peer_ids)
    costs = router.costs
    table = Table(
        title="Peers that could be taken", title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False
    )
    for heading in ("peer", "blocks"):
        table.add_column(heading, no_wrap=True)
    for heading in ("RTT ms", "ms a block", "queue", "KV free", "Mbit/s"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("", no_wrap=True)

    def order(peer: PeerInfo) -> tuple[object, ...]:
        return (peer.peer_id not in taken, peer.span, peer.peer_id)

    peers = sorted(router.view.routable, key=order)
    for peer in peers[:PEERS_SHOWN]:
        rtt = costs.measured.client_rtt.get(peer.peer_id)
        known = costs.measured.bandwidth.get(peer.peer_id)
        state = "taken" if peer.peer_id in taken else ""
        state = "asked for a pause" if peer.peer_id in avoid else state
        state = "banned for now" if peer.peer_id in banned else state
        table.add_row(
            peer.peer_id.short,
            str(peer.span),
            f"{1e3 * costs.client_rtt(peer.peer_id):.2f}{'' if rtt is not None else ' ?'}",
            f"{1e3 * costs.step(peer, tokens):.2f}",
            str(peer.queue),
            str(peer.kv_free),
            f"{8e-6 * router.bandwidth(peer):.0f}{'' if known is not None else ' ?'}",
            state,
        )
    more = len(peers) - PEERS_SHOWN
    table.caption = "?: not measured, a default" + (f"; {more} more" if more > 0 else "")
    table.caption_justify = "left"
    return table


def _ms(seconds: float) -> str:
    return f"{1e3 * seconds:.2f}" if seconds < 1 else f"{1e3 * seconds:.0f}"


def as_json(name: str, router: Router, found: Sequence[Candidate], tokens: int) -> dict[str, Any]:
    """The same for programs; costs in milliseconds."""
    return {
        "model": name,
        "tokens": tokens,
        "candidates": [
            {
                "without": None if one.without is None else str(one.without),
                "milliseconds": _price(one.price),
                "hops": [
                    {
                        "peer": str(hop.peer.peer_id),
                        "blocks": [hop.span.start, hop.span.end],
                        "milliseconds": _price(price),
                    }
                    for hop, price in zip(one.chain.hops, one.prices, strict=True)
                ],
            }
            for one in found
        ],
        "banned": sorted(map(str, router.health.banned(router.clock.monotonic()))),
    }


def _price(price: Price) -> dict[str, float]:
    parts = {part: round(1e3 * getattr(price, part), 4) for part in PARTS}
    return parts | {"total": round(1e3 * price.total, 4)}
