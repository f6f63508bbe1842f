"""`swarmd invite`."""

from __future__ import annotations

from pathlib import Path

import click

from swarmd.cli.options import state_option, swarm_key_option
from swarmd.errors import StateError, UsageError
from swarmd.invite import MAX_CONTACTS, Contact, Invite
from swarmd.key_file import read_key_file
from swarmd.peers import Address, parse_address
from swarmd.running import RunningNode, running_nodes
from swarmd.state import StateFolder
from swarmd.swarm_key import PUBLIC_KEYS, SwarmKey

__all__ = ["command"]


@click.command("invite")
@click.option(
    "--address",
    "addresses",
    multiple=True,
    metavar="HOST:PORT",
    callback=lambda _ctx, _param, values: tuple(parse_address(value) for value in values),
    help="Where the node is dialled, if not where it says; up to 4 times.",
)
@swarm_key_option
@state_option
def command(addresses: tuple[Address, ...], swarm_key: Path | None, state_dir: Path | None) -> None:
    """Print an invite to the swarm of the nodes that run on this machine.

    An invite of a private swarm holds its key. Send it as you would send a password.

    \b
    Examples:
      swarmd invite                              on a machine that serves
      swarmd invite --address 192.0.2.7:31330    if a router forwards that port
      swarmd serve --invite swarmd-invite-1-…    on the other one
    """
    nodes = running_nodes(StateFolder(state_dir).path)
    nodes, key = _of_one_swarm(nodes, swarm_key)
    invite = Invite(_contacts(nodes, addresses), key)
    click.echo(invite.text)
    if all(contact.address.is_loopback for contact in invite.contacts):
        click.echo(
            "Only this machine can use it: the node listens on loopback. Start the node with "
            "--host, or name an address that others can dial by --address.",
            err=True,
        )
    if key is not None:
        click.echo(
            "This is a private swarm and its key is in the invite: it lets in anybody who has it.",
            err=True,
        )


def _of_one_swarm(
    nodes: list[RunningNode], key_file: Path | None
) -> tuple[list[RunningNode], SwarmKey | None]:
    """The nodes of the swarm that is meant, and its key if it is private."""
    if not nodes:
        raise StateError("no node runs on this machine; start one with: swarmd serve")
    swarms = {node.swarm_id for node in nodes}
    if key_file is None:
        if len(swarms) > 1:
            raise UsageError(
                f"the nodes of this machine belong to {len(swarms)} swarms; say by --swarm-key "
                "which one you mean"
            )
        if swarms == {PUBLIC_KEYS.current.swarm_id}:
            return nodes, None
        key_file = next((node.key_file for node in nodes if node.key_file is not None), None)
        if key_file is None:
            raise UsageError(
                "the swarm is private and its nodes joined by an invite; pass that invite on, or "
                "give the key by --swarm-key"
            )
    keys = read_key_file(key_file)
    ids = {key.swarm_id for key in keys.accepted}
    mine = [node for node in nodes if node.swarm_id in ids]
    if not mine:
        raise UsageError(f"no node of this machine belongs to the swarm of {key_file}")
    return mine, None if keys.is_public else keys.current


def _contacts(nodes: list[RunningNode], addresses: tuple[Address, ...]) -> tuple[Contact, ...]:
    """Given addresses stand for the node of the same port, else for the only node there is."""
    if not addresses:
        return tuple(Contact(node.peer_id, node.address) for node in nodes[:MAX_CONTACTS])
    contacts = []
    for address in addresses:
        meant = [node for node in nodes if node.address.port == address.port] or nodes
        if len(meant) > 1:
            ports = ", ".join(str(node.address.port) for node in nodes)
            raise UsageError(
                f"--address {address}: several nodes run here; give the port of one ({ports})"
            )
        contacts.append(Contact(meant[0].peer_id, address))
    return tuple(contacts)
