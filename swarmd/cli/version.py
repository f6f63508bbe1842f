"""`swarmd version`."""

from __future__ import annotations

import platform

import click

from swarmd import __version__

__all__ = ["command"]


@click.command("version")
def command() -> None:
    """Print the version of swarmd and of Python.

    \b
    Examples:
      swarmd version
    """
    click.echo(f"swarmd {__version__} (Python {platform.python_version()})")
