"""`swarmd route`."""

from __future__ import annotations

import asyncio
import json
import time
from pathlib import Path
from typing import Any

import click

from swarmd.cli.membership import Membership, membership
from swarmd.cli.options import (
    log_options,
    model_option,
    peer_option,
    quantization_option,
    route_option,
    state_option,
    swarm_options,
)
from swarmd.cli.route_table import as_json, show
from swarmd.cli.runtime import ProgressBars, prepare_libraries, run, set_up_logging
from swarmd.invite import Invite
from swarmd.peers import Address
from swarmd.routing.edges import Route

__all__ = ["command"]


@click.command("route")
@model_option
@peer_option
@swarm_options
@quantization_option
@route_option
@click.option(
    "--tokens",
    type=click.IntRange(1, 1 << 20),
    default=1,
    show_default=True,
    help="Positions that travel at a time: 1 is decoding, more is a piece of a prompt.",
)
@click.option(
    "--explain",
    is_flag=True,
    help="Show what else could be taken, and what each part of it costs in milliseconds.",
)
@click.option("--json", "json_wanted", is_flag=True, help="Print one JSON object with all of it.")
@state_option
@log_options
def command(
    model: str | None,
    peers: tuple[Address | Invite, ...],
    invites: tuple[Invite, ...],
    swarm_key: Path | None,
    no_lan: bool,
    quantization: str,
    route: Route,
    tokens: int,
    explain: bool,
    json_wanted: bool,
    state_dir: Path | None,
    verbose: bool,
    log_format: str,
) -> None:
    """Show the chain of peers that an answer would take now, and with --explain why.

    Nothing is computed: peers are pinged, and their announced speeds are believed. A client that
    generates knows more with every token.

    \b
    Examples:
      swarmd route
      swarmd route --explain --tokens 512
      swarmd route --peer 192.0.2.7:31330 --json
    """
    set_up_logging(log_format, verbose=verbose, quiet=True)
    prepare_libraries()
    member = membership(peers, invites, swarm_key)
    name, router, found = run(
        _choose(model, member, not no_lan, quantization, route, tokens, state_dir)
    )
    if json_wanted:
        click.echo(json.dumps(as_json(name, router, found, tokens), indent=1))
    else:
        show(name, router, found, tokens, explain=explain)


async def _choose(
    model: str | None,
    member: Membership,
    lan: bool,
    quantization: str,
    route: Route,
    tokens: int,
    state_dir: Path | None,
) -> tuple[str, Any, Any]:
    """The model's name, the router with what it knows, and the candidates."""
    from swarmd.client.evidence import EvidenceFile
    from swarmd.client.loading import resolve_client_folder
    from swarmd.client.swarm import SwarmClient
    from swarmd.state import StateFolder

    with ProgressBars() as bars:
        folder = await resolve_client_folder(model, bars.update)
    evidence = EvidenceFile(StateFolder(state_dir).evidence_file)
    liars = await asyncio.to_thread(evidence.liars, time.time())
    async with SwarmClient(
        member.addresses, state_dir=state_dir, keys=member.keys, expected=member.expected, lan=lan
    ) as swarm:
        pool = await swarm.pool(folder.model_id)
        router = swarm.router(
            pool,
            model_id=folder.model_id,
            model_name=folder.name,
            n_blocks=folder.n_blocks,
            bytes_per_token=folder.hidden_size * 4,
            quantization=quantization,
            route=route,
        )
        for liar in liars:
            router.convict(liar)
        chain = await router.choose_fresh()
        mixed = len(chain.quantizations) > 1
        return folder.name, router, router.candidates(tokens=tokens, mixed=mixed or None)
