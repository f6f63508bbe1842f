"""`swarmd serve`."""

from __future__ import annotations

import asyncio
import math
import os
import signal
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from swarmd.blocks import BlockRequest
from swarmd.cli.api_keys import api_key_options, checked_keys
from swarmd.cli.membership import membership
from swarmd.cli.options import (
    allow_option,
    blocks_value,
    log_options,
    model_option,
    peer_option,
    state_option,
    swarm_options,
)
from swarmd.cli.runtime import ProgressBars, prepare_libraries, run, set_up_logging, stderr
from swarmd.config import DaemonConfig
from swarmd.errors import UsageError
from swarmd.identity import PeerId
from swarmd.invite import Invite
from swarmd.peers import QUANTIZATIONS, Address
from swarmd.service_notify import READY, STOPPING, ServiceNotifier
from swarmd.sizes import parse_size

if TYPE_CHECKING:
    from swarmd.api.keys import ApiKeys
    from swarmd.node.daemon import Daemon

__all__ = ["command"]

_defaults = DaemonConfig()


def _size(_ctx: click.Context, _param: click.Parameter, value: str | None) -> int | None:
    return None if value is None else parse_size(value)


def _number(_ctx: click.Context, _param: click.Parameter, value: float) -> float:
    if math.isnan(value):  # in no range, and below none: click lets it pass
        raise click.BadParameter("nan is no number")
    return value


@dataclass(frozen=True, slots=True)
class _Http:
    """Where HTTP is served, and to whom."""

    host: str
    port: int
    keys: ApiKeys


def _http_address(
    _ctx: click.Context, _param: click.Parameter, value: str | None
) -> tuple[str, int] | None:
    """`[HOST:]PORT`, of which the host is this machine itself unless it is named."""
    if value is None:
        return None
    host, colon, port = value.rpartition(":")
    bare = host[1:-1] if host.startswith("[") and host.endswith("]") else host
    is_port = port.isascii() and port.isdecimal() and len(port) < 6 and int(port) <= 65535
    if not is_port or (colon and not bare) or (":" in host and bare == host):
        raise UsageError(f"--http {value}: give PORT or HOST:PORT, such as 8000 (0: a free one)")
    return bare or "127.0.0.1", int(port)


@click.command("serve")
@click.option(
    "--blocks",
    default="auto",
    show_default=True,
    callback=blocks_value,
    help="auto, a count such as 12, or a range such as 10:20.",
)
@model_option
@peer_option
@swarm_options
@click.option("--host", default=_defaults.host, show_default=True, help="Address to listen on.")
@click.option(
    "--port",
    type=click.IntRange(1, 65535),
    help="TCP and UDP port. [default: the first free one from 31330 on]",
)
@click.option(
    "--advertise",
    metavar="HOST[:PORT]",
    help="Address that others dial, with the port if a router forwards another one. "
    "[default: --host and --port]",
)
@click.option(
    "--memory",
    callback=_size,
    metavar="SIZE",
    help="For weights, attention cache and workspace, such as 350MB or 6G; Python and torch "
    "need about 350 MB more. [default: 80 % of what is free]",
)
@click.option(
    "--kv-tokens",
    type=click.IntRange(256, 1 << 24),
    default=_defaults.kv_tokens,
    show_default=True,
    help="Tokens that all sessions together may hold in the attention cache.",
)
@click.option(
    "--max-connections",
    type=click.IntRange(1, 1 << 16),
    default=_defaults.connections,
    show_default=True,
    help="Connections to serve at a time.",
)
@click.option(
    "--kv-share",
    type=click.IntRange(1, 100),
    default=round(100 * _defaults.kv_share),
    show_default=True,
    metavar="PERCENT",
    help="How much of the attention cache one client of another machine may fill.",
)
@click.option(
    "--max-upload",
    type=click.FloatRange(0.01, 1e5),
    default=_defaults.bandwidth_out / 1e6,
    show_default=True,
    metavar="MB/S",
    callback=_number,
    help="Megabytes a second to send to one client of another machine.",
)
@click.option(
    "--dtype",
    type=click.Choice(["auto", "float32", "bfloat16", "float16"]),
    default=_defaults.dtype,
    show_default=True,
    help="Precision to compute in; auto takes that of the swarm's other peers, else the faster one "
    "of float32 and bfloat16 here.",
)
@click.option(
    "--quantize",
    "quantization",
    type=click.Choice(QUANTIZATIONS),
    default=_defaults.quantization,
    show_default=True,
    help="Hold the weights of linear layers in 8 or 4 bits: less memory, faster steps, and other "
    "answers.",
)
@click.option("--device", default=_defaults.device, show_default=True, help="cpu, cuda, cuda:1, …")
@click.option("--threads", type=click.IntRange(1, 1024), help="CPU threads. [default: all cores]")
@allow_option
@click.option(
    "--relayed",
    is_flag=True,
    help="This machine cannot be dialled: be reached through another node of the swarm.",
)
@click.option(
    "--no-shared-prefixes",
    is_flag=True,
    help="Compute every prompt anew. Otherwise what sessions begin with alike is computed once, so "
    "a client can tell by the time whether another one sent the same beginning.",
)
@click.option(
    "--no-upnp",
    is_flag=True,
    envvar="SWARMD_NO_UPNP",
    help="Do not ask the router to forward a port (UPnP) when others cannot dial this node; also "
    "$SWARMD_NO_UPNP=1.",
)
@click.option(
    "--no-relaying", is_flag=True, help="Pass no links on to nodes that cannot be dialled."
)
@click.option(
    "--http",
    metavar="[HOST:]PORT",
    callback=_http_address,
    help="Serve HTTP from within the node: a page at /, /metrics, /healthz, /readyz, and the API "
    "of swarmd api. Port 0 takes a free one; hosts other than this machine need API keys. "
    "[default: no HTTP]",
)
@api_key_options
@state_option
@log_options
def command(
    blocks: BlockRequest,
    model: str | None,
    peers: tuple[Address | Invite, ...],
    invites: tuple[Invite, ...],
    swarm_key: Path | None,
    no_lan: bool,
    host: str,
    port: int | None,
    advertise: str | None,
    memory: int | None,
    kv_tokens: int,
    max_connections: int,
    kv_share: int,
    max_upload: float,
    dtype: str,
    quantization: str,
    device: str,
    threads: int | None,
    allow: frozenset[PeerId] | None,
    relayed: bool,
    no_shared_prefixes: bool,
    no_upnp: bool,
    no_relaying: bool,
    http: tuple[str, int] | None,
    api_keys: tuple[str, ...],
    api_key_file: Path | None,
    state_dir: Path | None,
    verbose: bool,
    log_format: str,
) -> None:
    """Hold blocks of a model and serve them to the swarm.

    \b
    Examples:
      swarmd serve                                 starts a swarm, or joins one on this machine
      swarmd serve --peer 192.0.2.7:31330          joins another machine's swarm
      swarmd serve --invite swarmd-invite-1-…      the same, by the line of: swarmd invite
      swarmd serve --blocks 10:20 --model ./llama    ten given blocks of a model folder
    """
    wanted = None
    if http is None:
        _refuse_keys_without_http()
    else:
        wanted = _Http(*http, checked_keys("--http", http[0], api_keys, api_key_file))
    set_up_logging(log_format, verbose=verbose)
    swarm = membership(peers, invites, swarm_key)
    config = DaemonConfig(
        model=model,
        blocks=blocks,
        peers=swarm.addresses,
        expected=swarm.expected,
        keys=swarm.keys,
        key_file=swarm.key_file,
        lan=not no_lan,
        host=host,
        port=port,
        advertise=advertise,
        memory=memory,
        kv_tokens=kv_tokens,
        connections=max_connections,
        kv_share=kv_share / 100,
        bandwidth_out=1e6 * max_upload,
        dtype=dtype,
        quantization=quantization,
        device=device,
        threads=threads,
        allow=allow,
        upnp=not no_upnp,
        relayed=relayed,
        shared_prefixes=not no_shared_prefixes,
        relaying=not no_relaying,
        state_dir=state_dir,
    )
    prepare_libraries(threads)
    from swarmd.compute.quantize import check_quantization
    from swarmd.node.device import check_device

    check_device(device)
    check_quantization(quantization, device)
    run(_serve(config, wanted))


def _refuse_keys_without_http() -> None:
    """Raises UsageError. In the environment they may stand for other commands."""
    source = click.get_current_context().get_parameter_source
    for name, option in (("api_keys", "--api-key"), ("api_key_file", "--api-key-file")):
        if source(name) is click.core.ParameterSource.COMMANDLINE:
            raise UsageError(f"{option} is for HTTP: give --http [HOST:]PORT as well")


async def _serve(config: DaemonConfig, http: _Http | None) -> None:
    from swarmd.node.daemon import Daemon
    from swarmd.tasks import TaskOwner

    with ProgressBars() as bars, ServiceNotifier() as notifier:
        daemon = Daemon(config, progress=bars.update)
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            _on_signal(loop, number, daemon)
        async with TaskOwner("serve") as owner, AsyncExitStack() as stack:
            owner.spawn(_tell_when_ready(daemon, config), name="greeting")
            owner.spawn(_tell_ready(daemon, notifier), name="ready")
            owner.spawn(_tell_stopping(daemon, notifier), name="stopping")
            owner.spawn(notifier.watch(), name="watchdog")
            if http is not None:
                await _serve_http(daemon, http, stack)
            await daemon.run()


async def _serve_http(daemon: Daemon, http: _Http, stack: AsyncExitStack) -> None:
    """Serve HTTP until the stack is left. Raises PortInUse."""
    from swarmd.api.node_server import serve_node_http

    serving = serve_node_http(daemon, http.host, http.port, http.keys)
    port = await stack.enter_async_context(serving)
    host = f"[{http.host}]" if ":" in http.host else http.host
    stderr.print(f"HTTP at http://{host}:{port}", markup=False, soft_wrap=True)


async def _tell_ready(daemon: Daemon, notifier: ServiceNotifier) -> None:
    """Tell systemd when the node serves."""
    await daemon.ready.wait()
    announced = daemon.parts.announced
    assert announced is not None
    notifier.tell(READY, f"serving blocks {announced.span} of {announced.folder.name}")


async def _tell_stopping(daemon: Daemon, notifier: ServiceNotifier) -> None:
    """Tell systemd that the node begins to leave."""
    await daemon.stopping.wait()
    notifier.tell(STOPPING, "leaving the swarm")


def _on_signal(loop: asyncio.AbstractEventLoop, number: int, daemon: Any) -> None:
    """The first signal asks the node to leave in good order, the second ends it at once."""
    asked = False

    def stop() -> None:
        nonlocal asked
        if asked:
            os._exit(130)
        asked = True
        stderr.print("leaving the swarm; once more to stop at once", markup=False)
        daemon.stop()

    try:
        loop.add_signal_handler(number, stop)
    except NotImplementedError:  # Windows
        signal.signal(number, lambda *_: loop.call_soon_threadsafe(stop))


async def _tell_when_ready(daemon: Any, config: DaemonConfig) -> None:
    await daemon.ready.wait()
    model = f" --model {config.model}" if config.model else ""
    if not config.keys.is_public:
        model += f" --swarm-key {config.key_file or 'FILE'}"
    stderr.print(
        f"\nTo add a machine:   swarmd serve{model} --peer {daemon.address}\n"
        f'To use the swarm:   swarmd generate{model} --peer {daemon.address} "Hello"\n',
        markup=False,
        soft_wrap=True,
    )
