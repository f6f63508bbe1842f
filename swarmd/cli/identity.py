"""`swarmd identity`."""

from __future__ import annotations

import json
from pathlib import Path

import click

from swarmd.cli.options import state_option
from swarmd.state import Slot, StateFolder

__all__ = ["command"]


@click.group("identity")
def command() -> None:
    """Show the identities of the state folder, or make another.

    An identity is an Ed25519 key. Its peer id, a hash of the public half, is what others know a
    node by, and what --allow of their nodes takes.

    \b
    Examples:
      swarmd identity show
      swarmd identity new
    """


@command.command("show")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@state_option
def show(as_json: bool, state_dir: Path | None) -> None:
    """Show each identity: peer id, public key, and whether a process uses it.

    A node takes the first slot that is free. The first identity is made if there is none yet.

    \b
    Examples:
      swarmd identity show
      swarmd identity show --json --state-dir ./state
    """
    state = StateFolder(state_dir)
    if not (slots := state.slots()):
        with state.identity():
            pass
        slots = state.slots()
    if as_json:
        entries = [
            {
                "slot": slot.number,
                "peer_id": str(slot.peer_id),
                "public_key": slot.public_key.hex(),
                "in_use": slot.in_use,
            }
            for slot in slots
        ]
        click.echo(json.dumps({"state_folder": str(state.path), "identities": entries}, indent=1))
        return
    click.echo(f"state folder  {state.path}")
    for slot in slots:
        _tell(slot)


@command.command("new")
@state_option
def new(state_dir: Path | None) -> None:
    """Make another identity for the first slot, and keep the old one aside.

    The old key stays in the state folder as a file that ends in .old. Refused while a process uses
    the identity: stop the node first.

    \b
    Examples:
      swarmd identity new
    """
    state = StateFolder(state_dir)
    kept = state.renew_identity()
    if kept is not None:
        click.echo(f"the old identity is kept as {kept}", err=True)
    _tell(state.slots()[0])


def _tell(slot: Slot) -> None:
    use = "in use" if slot.in_use else "free"
    click.echo(
        f"slot {slot.number}        {use}\n"
        f"  peer id     {slot.peer_id}\n"
        f"  public key  {slot.public_key.hex()}"
    )
