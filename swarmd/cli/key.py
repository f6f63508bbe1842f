"""`swarmd key`."""

from __future__ import annotations

from pathlib import Path

import click

from swarmd.key_file import read_key_file, write_key_file
from swarmd.swarm_key import KeyRing, SwarmKey

__all__ = ["command"]

_FILE = click.Path(dir_okay=False, path_type=Path)


@click.group("key")
def command() -> None:
    """Make, show and change the key of a private swarm.

    \b
    Examples:
      swarmd key new home.key                a new private swarm
      swarmd serve --swarm-key home.key      a node of it
      swarmd key rotate home.key             a new key; the old one is still accepted
    """


@command.command("new")
@click.argument("file", type=_FILE)
@click.option("--force", is_flag=True, help="Replace a file that is there already.")
def new(file: Path, force: bool) -> None:
    """Write a new random swarm key to FILE, which only you may read.

    \b
    Examples:
      swarmd key new home.key
    """
    keys = KeyRing(SwarmKey.generate())
    write_key_file(file, keys, replace=force)
    click.echo(f"{file}: the key of a new swarm, {keys.current.swarm_id.hex()}")


@command.command("show")
@click.argument("file", type=_FILE)
@click.option("--secret", is_flag=True, help="Print the keys themselves.")
def show(file: Path, secret: bool) -> None:
    """Say of which swarm FILE holds the key. The key itself is a secret: see --secret.

    \b
    Examples:
      swarmd key show home.key
      swarmd key show --secret home.key
    """
    keys = read_key_file(file)
    if secret:
        click.echo(keys.text, nl=False)
        return
    for key, use in zip(keys.accepted, ("in use", "still accepted"), strict=False):
        click.echo(f"{key.swarm_id.hex()}  {use}")


@command.command("rotate")
@click.argument("file", type=_FILE)
def rotate(file: Path) -> None:
    """Put a new key first in FILE. The one that was in use stays as the second and is accepted.

    Copy FILE to all nodes and start them again with it; a later rotation drops the old key.

    \b
    Examples:
      swarmd key rotate home.key
    """
    old = read_key_file(file)
    keys = KeyRing(SwarmKey.generate(), old.current)
    write_key_file(file, keys, replace=True)
    click.echo(f"{file}: swarm {keys.current.swarm_id.hex()}, the key before is still accepted")
    if old.previous is not None:
        click.echo(
            "the key before that one is gone: nodes that still use it are shut out", err=True
        )
