"""`swarmd doctor`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from swarmd.cli.membership import Membership, membership
from swarmd.cli.options import log_options, peer_option, state_option, swarm_options
from swarmd.cli.runtime import prepare_libraries, run, set_up_logging, stdout
from swarmd.config import DaemonConfig
from swarmd.errors import BootstrapFailed, ModelError, PortInUse, Unreachable
from swarmd.invite import Invite
from swarmd.peers import Address
from swarmd.sizes import parse_size
from swarmd.state import StateFolder

__all__ = ["command"]

_defaults = DaemonConfig()
STYLES = {"ok": "green", "warn": "yellow", "fail": "red"}


@click.command("doctor")
@click.option(
    "--model", metavar="FOLDER", help="A model folder on this disk; how much of it fits is said."
)
@peer_option
@swarm_options
@click.option(
    "--host",
    default=_defaults.host,
    show_default=True,
    help="The address that serve is to listen on. On loopback nothing is sent off this machine.",
)
@click.option(
    "--port",
    type=click.IntRange(1, 65535),
    help="The port that serve is to take. [default: the first free one from 31330 on]",
)
@click.option(
    "--memory",
    callback=lambda _ctx, _param, value: None if value is None else parse_size(value),
    metavar="SIZE",
    help="As with serve.",
)
@click.option("--device", default=_defaults.device, show_default=True, help="cpu, cuda, cuda:1, …")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@state_option
@log_options
def command(
    model: str | None,
    peers: tuple[Address | Invite, ...],
    invites: tuple[Invite, ...],
    swarm_key: Path | None,
    no_lan: bool,
    host: str,
    port: int | None,
    memory: int | None,
    device: str,
    as_json: bool,
    state_dir: Path | None,
    verbose: bool,
    log_format: str,
) -> int:
    """Check what serve needs: Python, torch, memory, ports, folders, disk, clock, reachability.

    Each check is ok, warn or fail, with what to do about it. The exit code is 1 if one fails.
    Whether others can dial this machine is found out by nodes of the swarm that are asked to do
    it, with --host of another address than loopback only.

    \b
    Examples:
      swarmd doctor
      swarmd doctor --model ./llama --memory 6G
      swarmd doctor --host 0.0.0.0 --peer 192.0.2.7:31330 --json
    """
    set_up_logging(log_format, verbose=verbose, quiet=True)
    prepare_libraries()
    from swarmd.node.device import check_device

    member = membership(peers, invites, swarm_key)
    config = DaemonConfig(host=host, port=port, memory=memory, device=device)
    if device != "cpu":
        check_device(device)
    findings = _machine(config, model, state_dir)
    failed_state = next(one for one in findings if one.name == "state").level.value == "fail"
    if not failed_state:
        findings += _network(config, member, not no_lan, state_dir)
    if as_json:
        click.echo(json.dumps({"checks": [_as_json(one) for one in findings]}, indent=1))
    else:
        for one in findings:
            _show(one)
    return int(any(one.level.value == "fail" for one in findings))


def _machine(config: DaemonConfig, model: str | None, state_dir: Path | None) -> list[Any]:
    """What can be checked without a swarm."""
    from swarmd.compute.model_folder import open_folder
    from swarmd.node import checkup

    findings = [checkup.python(), checkup.torch_build(config.device)]
    folder = None
    if model is not None and not Path(model).expanduser().is_dir():
        found = f"{model} is no folder on this disk: its memory is not checked"
        remedy = "name its folder, as shown by: swarmd model list"
        findings.append(checkup.Finding("model", checkup.Level.WARN, found, remedy))
    elif model is not None:
        try:
            folder = open_folder(Path(model).expanduser())
        except ModelError as error:
            remedy = "give a model folder on this disk; see: swarmd model list"
            findings.append(checkup.Finding("model", checkup.Level.FAIL, str(error), remedy))
    findings.append(checkup.memory(config, folder))
    findings.append(checkup.state(state_dir))
    findings.append(checkup.disk())
    return findings


def _network(
    config: DaemonConfig, member: Membership, lan: bool, state_dir: Path | None
) -> list[Any]:
    from swarmd.node import checkup

    found, number = checkup.port(config, StateFolder(state_dir))
    return [found, *run(_swarm(config, member, lan, state_dir, number))]


async def _swarm(
    config: DaemonConfig, member: Membership, lan: bool, state_dir: Path | None, port: int | None
) -> list[Any]:
    """What the swarm tells; on loopback only nodes of this machine are asked."""
    from swarmd.client.swarm import SwarmClient
    from swarmd.dht.config import DhtConfig
    from swarmd.dht.peers_file import PeersFile
    from swarmd.node import checkup_swarm
    from swarmd.node.checkup import Finding, Level

    local = config.host == "localhost" or Address(config.host, 1).is_loopback
    addresses = member.addresses
    if local:
        file = PeersFile(StateFolder(state_dir).peers_file(member.keys))
        remembered = [address for _, address, _ in await file.async_load()]
        addresses = tuple(one for one in addresses or remembered if one.is_loopback)
        if not addresses:
            why = "no node of this machine is known; not asked elsewhere, as --host is loopback"
            return [Finding("swarm", Level.OK, why)]
    client = SwarmClient(
        addresses, state_dir=state_dir, keys=member.keys, expected=member.expected,
        lan=lan and not local,
    )  # fmt: skip
    try:
        async with client as swarm:
            peers = [
                peer
                for model_id in sorted(await swarm.directory.models())
                for peer in await swarm.directory.fetch(model_id)
            ]
            findings = [
                Finding("swarm", Level.OK, f"it answers; {len(peers)} peers serve models"),
                checkup_swarm.clock(swarm.directory.statistics().clock_offset, DhtConfig()),
            ]
    except BootstrapFailed as error:
        remedy = "start a node: swarmd serve; or name one that runs by --peer HOST:PORT"
        return [Finding("swarm", Level.WARN, str(error), remedy)]
    if local:
        why = f"not asked: {config.host} is for this machine only; see --host"
        return [*findings, Finding("reachable", Level.OK, why)]
    if port is None:
        why = "not asked: the port is in use (a node logs what it finds itself)"
        return [*findings, Finding("reachable", Level.OK, why)]
    try:
        findings.append(await checkup_swarm.reachability(config.host, port, peers, member.keys))
    except (PortInUse, Unreachable) as error:
        findings.append(Finding("reachable", Level.FAIL, str(error), "choose another --port"))
    return findings


def _show(one: Any) -> None:
    style = STYLES[one.level.value]
    stdout.print(f"{one.level.value:5}", style=style, end="", markup=False)
    stdout.print(f"{one.name:10} {one.found}", markup=False, soft_wrap=True)
    if one.remedy:
        stdout.print(f"{'':15} {one.remedy}", markup=False, soft_wrap=True)


def _as_json(one: Any) -> dict[str, Any]:
    return {
        "name": one.name, "level": one.level.value, "found": one.found,
        "remedy": one.remedy or None,
    }  # fmt: skip
