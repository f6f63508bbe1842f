"""`swarmd peers`."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
from rich import box
from rich.console import Console
from rich.table import Table

from swarmd.blocks import coverage, holes
from swarmd.cli.options import log_options, peer_option, state_option
from swarmd.cli.runtime import run, set_up_logging
from swarmd.identity import PeerId
from swarmd.peers import Address, ModelId, PeerInfo, PeerState
from swarmd.routing.probe import probe_rtts

__all__ = ["command"]


@click.command("peers")
@peer_option
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@state_option
@log_options
def command(
    peers: tuple[Address, ...],
    as_json: bool,
    state_dir: Path | None,
    verbose: bool,
    log_format: str,
) -> None:
    """Show who holds which blocks, for every model that the swarm serves."""
    set_up_logging(log_format, verbose=verbose, quiet=True)
    models = run(_collect(peers, state_dir))
    if as_json:
        click.echo(json.dumps({"models": [_as_json(model) for model in models]}, indent=1))
        return
    if not models:
        click.echo("The swarm answers, but nobody serves a model.")
    for model in models:
        _print(model)


class _Model:
    """A model's announcements, the RTT to each peer that answered, and the coverage."""

    def __init__(
        self, model_id: ModelId, peers: Sequence[PeerInfo], rtts: dict[PeerId, float | None]
    ) -> None:
        self.model_id = model_id
        self.name = peers[0].model_name
        self.n_blocks = max(peer.n_blocks for peer in peers)
        self.peers = sorted(peers, key=lambda peer: (peer.span, peer.peer_id))
        self.rtts = rtts
        online = [peer for peer in peers if peer.state is PeerState.ONLINE]
        answering = [peer for peer in online if rtts.get(peer.peer_id) is not None]
        self.coverage = coverage((peer.span for peer in answering), self.n_blocks)
        self.holes = holes(self.coverage)


async def _collect(contacts: Sequence[Address], state_dir: Path | None) -> list[_Model]:
    from swarmd.client.swarm import SwarmClient
    from swarmd.wire.ping import ping

    models = []
    async with SwarmClient(contacts, state_dir=state_dir) as swarm:
        pool = await swarm.pool()
        for model_id in sorted(await swarm.directory.models()):
            peers = await swarm.directory.fetch(model_id)
            reachable = [peer for peer in peers if peer.state is not PeerState.JOINING]
            rtts = await probe_rtts(reachable, lambda peer: ping(peer, pool))
            if peers:
                models.append(_Model(model_id, peers, rtts))
    return models


def _as_json(model: _Model) -> dict[str, Any]:
    now = time.time()
    return {
        "id": str(model.model_id),
        "name": model.name,
        "n_blocks": model.n_blocks,
        "peers": [
            {
                "id": str(peer.peer_id),
                "address": str(peer.address),
                "model": peer.model_name,
                "blocks": [peer.span.start, peer.span.end],
                "state": _state(model, peer),
                "tokens_per_second": round(peer.tokens_per_second, 2),
                "rtt_ms": None
                if (rtt := model.rtts.get(peer.peer_id)) is None
                else round(1000 * rtt, 3),
                "kv_free": peer.kv_free,
                "dtype": peer.dtype,
                "version": peer.version,
                "age_seconds": round(max(0.0, now - peer.announced_at), 1),
            }
            for peer in model.peers
        ],
        "coverage": model.coverage,
        "holes": [[span.start, span.end] for span in model.holes],
    }


def _state(model: _Model, peer: PeerInfo) -> str:
    silent = peer.state is PeerState.ONLINE and model.rtts.get(peer.peer_id) is None
    return "unreachable" if silent else peer.state.name.lower()


def _print(model: _Model) -> None:
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 120)
    title = f"{model.name} ({model.n_blocks} blocks, id {model.model_id.short})"
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    for heading in ("peer", "address", "blocks", "state"):
        table.add_column(heading, no_wrap=True)
    for heading in ("tokens/s", "RTT", "KV free", "version", "age"):
        table.add_column(heading, justify="right", no_wrap=True)
    now = time.time()
    for peer in model.peers:
        rtt = model.rtts.get(peer.peer_id)
        table.add_row(
            peer.peer_id.short,
            str(peer.address),
            str(peer.span),
            _state(model, peer),
            f"{peer.tokens_per_second:.1f}",
            "-" if rtt is None else f"{1000 * rtt:.2f} ms",
            str(peer.kv_free),
            peer.version,
            f"{max(0.0, now - peer.announced_at):.0f} s",
        )
    console.print(table)
    bar = "".join("·" if count == 0 else str(min(count, 9)) for count in model.coverage)
    console.print(f"coverage  0 {bar} {model.n_blocks}   (live peers a block)")
    if model.holes:
        missing = ", ".join(map(str, model.holes))
        console.print(
            f"missing   blocks {missing}; start one: swarmd serve --blocks {model.holes[0]}",
            style="red",
        )
