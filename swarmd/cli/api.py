"""`swarmd api`."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click

from swarmd.cli.api_keys import api_key_options, checked_keys
from swarmd.cli.membership import Membership, membership
from swarmd.cli.options import (
    codec_option,
    log_options,
    model_option,
    peer_option,
    replan_option,
    route_option,
    standby_option,
    state_option,
    swarm_options,
)
from swarmd.cli.runtime import ProgressBars, prepare_libraries, run, set_up_logging, stderr
from swarmd.invite import Invite
from swarmd.peers import Address
from swarmd.routing.edges import Route
from swarmd.routing.query import CHAIN_QUANTIZATIONS
from swarmd.wire.codecs import CodecChoice

if TYPE_CHECKING:
    from swarmd.api.keys import ApiKeys
    from swarmd.api.limits import ApiLimits

__all__ = ["command"]


@dataclass(frozen=True, slots=True)
class _Request:
    host: str
    port: int
    model: str | None
    member: Membership
    lan: bool
    quantization: str
    route: Route
    replan: bool | None
    codec: CodecChoice
    standby: bool
    known: bool
    threads: int | None
    state_dir: Path | None


@click.command("api")
@click.option(
    "--host",
    default="127.0.0.1",
    show_default=True,
    help="Address to listen on; others than this machine's own need API keys. There is no TLS: "
    "put a proxy before it.",
)
@click.option(
    "--port", type=click.IntRange(0, 65535), default=8000, show_default=True, help="0: a free one."
)
@model_option
@peer_option
@swarm_options
@api_key_options
@click.option(
    "--concurrent",
    type=click.IntRange(1, 4096),
    default=16,
    show_default=True,
    help="Answers under way; more are refused with 429. A node on another machine gives one "
    "client 16 sessions.",
)
@click.option(
    "--requests-a-minute",
    type=click.FloatRange(0.1, 1e6),
    default=600.0,
    show_default=True,
    help="Of one key, or of one address where there are no keys.",
)
@click.option(
    "--max-body",
    type=click.IntRange(1024, 64 << 20),
    default=1 << 20,
    show_default=True,
    metavar="BYTES",
    help="Longest body of a request.",
)
@click.option(
    "--chat-tokens",
    type=click.IntRange(1, 1 << 20),
    default=1024,
    show_default=True,
    help="New tokens of a chat answer whose request names no max_tokens.",
)
@click.option(
    "--quantization",
    type=click.Choice(CHAIN_QUANTIZATIONS),
    default="auto",
    show_default=True,
    help="Peers to use, by their weights; as in swarmd generate.",
)
@route_option
@replan_option
@codec_option
@standby_option
@click.option(
    "--known",
    is_flag=True,
    help="Use an identity of the state folder, for nodes that serve a list (--allow) only.",
)
@click.option(
    "--threads",
    type=click.IntRange(1, 1024),
    help="CPU threads for embeddings and head. [default: all cores]",
)
@state_option
@log_options
def command(
    host: str,
    port: int,
    model: str | None,
    peers: tuple[Address | Invite, ...],
    invites: tuple[Invite, ...],
    swarm_key: Path | None,
    no_lan: bool,
    api_keys: tuple[str, ...],
    api_key_file: Path | None,
    concurrent: int,
    requests_a_minute: float,
    max_body: int,
    chat_tokens: int,
    quantization: str,
    route: Route,
    replan: bool | None,
    codec: CodecChoice,
    standby: bool,
    known: bool,
    threads: int | None,
    state_dir: Path | None,
    verbose: bool,
    log_format: str,
) -> None:
    """Offer a model of the swarm to OpenAI clients: an HTTP API on this machine.

    \b
    /                                                   a page: the swarm, and a chat
    /swarm, /swarm/events                               what the page shows, as JSON
    /v1/chat/completions, /v1/completions, /v1/models   as OpenAI's
    /metrics                                            for Prometheus
    /healthz                                            whether the server runs

    \b
    Examples:
      swarmd api
      swarmd api --port 9000 --peer 192.0.2.7:31330
      swarmd api --host 0.0.0.0 --api-key-file keys.txt
    """
    set_up_logging(log_format, verbose=verbose)
    prepare_libraries(threads)
    from swarmd.api.limits import ApiLimits

    keys = checked_keys("--host", host, api_keys, api_key_file)
    limits = ApiLimits(
        body=max_body,
        concurrent=concurrent,
        requests_a_minute=requests_a_minute,
        chat_tokens=chat_tokens,
    )
    request = _Request(
        host, port, model, membership(peers, invites, swarm_key), not no_lan, quantization, route,
        replan, codec, standby, known, threads, state_dir,
    )  # fmt: skip
    run(_until_signal(request, keys, limits))


async def _until_signal(request: _Request, keys: ApiKeys, limits: ApiLimits) -> None:
    """Serve until SIGINT or SIGTERM, which end the server in good order."""
    task = asyncio.current_task()
    assert task is not None
    for number in (signal.SIGINT, signal.SIGTERM):
        with contextlib.suppress(NotImplementedError):  # Windows: KeyboardInterrupt does it
            asyncio.get_running_loop().add_signal_handler(number, task.cancel)
    with contextlib.suppress(asyncio.CancelledError):
        await _serve(request, keys, limits)


async def _serve(request: _Request, keys: ApiKeys, limits: ApiLimits) -> None:
    from swarmd.api.dht_metrics import DhtCollector
    from swarmd.api.gateway import Gateway
    from swarmd.api.server import serve_api
    from swarmd.client.loading import resolve_client_folder
    from swarmd.client.swarm import SwarmClient
    from swarmd.compute.source import DEFAULT_MODEL

    with ProgressBars() as bars:
        folder = await resolve_client_folder(request.model, bars.update)
    member = request.member
    async with SwarmClient(
        member.addresses,
        state_dir=request.state_dir,
        keys=member.keys,
        expected=member.expected,
        lan=request.lan,
        known=request.known,
    ) as swarm:
        pool = await swarm.pool(folder.model_id)
        router = swarm.router(
            pool,
            model_id=folder.model_id,
            model_name=folder.name,
            n_blocks=folder.n_blocks,
            bytes_per_token=folder.hidden_size * 4,
            quantization=request.quantization,
            route=request.route,
        )
        gateway = Gateway(
            folder, pool, router,
            limits=limits, threads=request.threads, replan=request.replan,
            codec=request.codec, standby=request.standby, alias=request.model or DEFAULT_MODEL,
        )  # fmt: skip
        collectors = [DhtCollector(lambda: swarm.directory)]
        async with (
            gateway,
            serve_api(gateway, request.host, request.port, keys, collectors=collectors) as port,
        ):
            host = f"[{request.host}]" if ":" in request.host else request.host
            note = f"{folder.name} at http://{host}:{port}/v1"
            stderr.print(note, markup=False, soft_wrap=True)
            await asyncio.get_running_loop().create_future()
