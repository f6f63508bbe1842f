"""`swarmd peers`."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from swarmd.cli.membership import Membership, membership
from swarmd.cli.options import log_options, peer_option, state_option, swarm_options
from swarmd.cli.peers_table import ModelPeers, show
from swarmd.cli.runtime import run, set_up_logging, stdout
from swarmd.invite import Invite
from swarmd.peers import Address, Capability, PeerState
from swarmd.routing.probe import probe_rtts

if TYPE_CHECKING:
    from swarmd.client.swarm import SwarmClient
    from swarmd.wire.pool import Pool

__all__ = ["command"]


@click.command("peers")
@peer_option
@swarm_options
@click.option(
    "--watch",
    type=click.FloatRange(0.5, 86400),
    metavar="SECONDS",
    help="Show it again every so many seconds, until Ctrl-C; with --json, an object a line.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@state_option
@log_options
def command(
    peers: tuple[Address | Invite, ...],
    invites: tuple[Invite, ...],
    swarm_key: Path | None,
    no_lan: bool,
    watch: float | None,
    as_json: bool,
    state_dir: Path | None,
    verbose: bool,
    log_format: str,
) -> None:
    """Show who holds which blocks, for every model that the swarm serves.

    \b
    Examples:
      swarmd peers
      swarmd peers --watch 5
      swarmd peers --peer 192.0.2.7:31330 --json
    """
    set_up_logging(log_format, verbose=verbose, quiet=True)
    member = membership(peers, invites, swarm_key)

    def tell(models: list[ModelPeers]) -> None:
        if as_json:
            # json escapes what a terminal might obey: no `ensure_ascii=False` here
            found = {"models": [_as_json(model) for model in models]}
            click.echo(json.dumps(found, indent=None if watch else 1))
            return
        if watch:
            stdout.clear()  # on a terminal only
        if not models:
            click.echo("The swarm answers, but nobody serves a model.")
        for model in models:
            show(model, now=time.time())

    run(_watch(member, not no_lan, state_dir, watch, tell))


async def _watch(
    member: Membership,
    lan: bool,
    state_dir: Path | None,
    every: float | None,
    tell: Callable[[list[ModelPeers]], None],
) -> None:
    """Ask the swarm once, or `every` so many seconds without an end."""
    from swarmd.client.swarm import SwarmClient

    async with SwarmClient(
        member.addresses,
        state_dir=state_dir,
        keys=member.keys,
        expected=member.expected,
        lan=lan,
    ) as swarm:
        pool = await swarm.pool()
        while True:
            tell(await _collect(swarm, pool))
            if every is None:
                return
            await asyncio.sleep(every)


async def _collect(swarm: SwarmClient, pool: Pool) -> list[ModelPeers]:
    from swarmd.wire.ping import ping

    models = []
    for model_id in sorted(await swarm.directory.models()):
        peers = await swarm.directory.fetch(model_id)
        reachable = [peer for peer in peers if peer.state is not PeerState.JOINING]
        probed = await probe_rtts(reachable, lambda peer: ping(peer, pool))
        rtts = {peer: result for peer, result in probed.items() if isinstance(result, float)}
        if peers:
            models.append(ModelPeers(model_id, peers, rtts))
    return models


def _as_json(model: ModelPeers) -> dict[str, Any]:
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
                "n_blocks": peer.n_blocks,
                "state": model.state(peer),
                "tokens_per_second": round(peer.tokens_per_second, 2),
                "rtt_ms": None
                if (rtt := model.rtts.get(peer.peer_id)) is None
                else round(1000 * rtt, 3),
                "kv_free": peer.kv_free,
                "dtype": peer.dtype,
                "quantization": peer.quantization,
                "shares_prefixes": Capability.SHARED_PREFIXES in peer.capabilities,
                "version": peer.version,
                "age_seconds": round(max(0.0, now - peer.announced_at), 1),
            }
            for peer in model.peers
        ],
        "coverage": model.coverage,
        "holes": [[span.start, span.end] for span in model.holes],
    }
