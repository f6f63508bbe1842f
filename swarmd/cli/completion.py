"""`swarmd completion`."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class

from swarmd.cli.app import cli

__all__ = ["command"]


@click.command("completion")
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def command(shell: str) -> None:
    """Print a script that completes commands and options in SHELL.

    \b
    Examples:
      swarmd completion bash >> ~/.bashrc
      swarmd completion zsh >> ~/.zshrc
      swarmd completion fish > ~/.config/fish/completions/swarmd.fish
    """
    found = get_completion_class(shell)
    assert found is not None, "click has these three"
    click.echo(found(cli, {}, "swarmd", "_SWARMD_COMPLETE").source())
