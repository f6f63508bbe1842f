"""The command group, and how errors become one line and an exit code."""

from __future__ import annotations

import importlib
import sys
import time
from typing import Any

import click

from swarmd import __version__
from swarmd.cli.settings import arm
from swarmd.errors import SwarmdError

__all__ = ["STARTED", "cli", "main"]

STARTED = time.perf_counter()
"""When the program began, as nearly as it can know; heavy imports come later."""

COMMANDS = {
    "serve": ("swarmd.cli.serve", "Hold blocks of a model and serve them to the swarm."),
    "generate": ("swarmd.cli.generate", "Generate text with a model that the swarm serves."),
    "chat": ("swarmd.cli.chat", "Talk with a model that the swarm serves."),
    "api": ("swarmd.cli.api", "Offer a model of the swarm to OpenAI clients, over HTTP."),
    "peers": ("swarmd.cli.peers", "Show who holds which blocks."),
    "route": ("swarmd.cli.route", "Show the chain that an answer would take, and why."),
    "invite": ("swarmd.cli.invite", "Print an invite by which another machine joins."),
    "key": ("swarmd.cli.key", "Make, show and change the key of a private swarm."),
    "model": ("swarmd.cli.model", "Show the models on this disk, or fetch one."),
    "convert": ("swarmd.cli.convert", "Make a swarmd model folder, one file a block."),
    "identity": ("swarmd.cli.identity", "Show who this machine's nodes are, or make another."),
    "doctor": ("swarmd.cli.doctor", "Find out what is wrong on this machine, and what to do."),
    "bench": ("swarmd.cli.bench", "Measure how fast this machine runs a model's blocks."),
    "config": ("swarmd.cli.config", "Show the value of each option and where it comes from."),
    "completion": ("swarmd.cli.completion", "Print the completion script of a shell."),
    "version": ("swarmd.cli.version", "Print the version."),
}
"""Name to module and short help; a module is imported only when its command runs."""


class LazyGroup(click.Group):
    """A group whose commands are imported when they are needed: `--help` stays fast."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        command: click.Command = importlib.import_module(COMMANDS[cmd_name][0]).command
        arm(command, (cmd_name,))
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """As click does; then what the configuration file says becomes the command's defaults."""
        name, command, rest = super().resolve_command(ctx, args)
        if name and command and not ctx.resilient_parsing and not _asks_for_help(rest):
            from swarmd.cli.config_file import ConfigFile

            file = ConfigFile(commands=COMMANDS)
            ctx.default_map = {name: file.defaults(command, (name,))}
        return name, command, rest

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in COMMANDS.items()])


def _asks_for_help(args: list[str]) -> bool:
    """Help is given whatever the file says."""
    return any(argument in ("-h", "--help") for argument in args)


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="swarmd", message="%(prog)s %(version)s")
def cli() -> None:
    """Run a language model that is too large for one machine on a swarm of ordinary ones.

    \b
    Examples:
      swarmd serve --blocks auto            give blocks to the swarm
      swarmd generate "Once upon a time"    use the swarm
      swarmd peers                          see the swarm

    Options can be set in a file and in the environment as well: swarmd config says how.
    """


def main(argv: list[str] | None = None) -> None:
    """Run the command line. Exit codes: 0 done, 1 failed, 2 misused, 130 interrupted."""
    try:
        code: Any = cli.main(args=argv, prog_name="swarmd", standalone_mode=False)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except (click.Abort, KeyboardInterrupt):
        sys.exit(130)
    except SwarmdError as error:
        click.echo(f"swarmd: {error}", err=True)
        sys.exit(error.exit_code)
    sys.exit(code if isinstance(code, int) else 0)
