"""`swarmd config`."""

from __future__ import annotations

import json
from typing import Any

import click

from swarmd.cli.app import COMMANDS, cli
from swarmd.cli.config_file import ConfigFile
from swarmd.cli.settings import Setting, is_secret, leaves, settings
from swarmd.errors import UsageError

__all__ = ["command"]


@click.command("config")
@click.argument("name", metavar="[COMMAND]", nargs=-1)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def command(name: tuple[str, ...], as_json: bool) -> None:
    """Show the value of each option and where it comes from: of COMMAND, or of all.

    Of an option the first that says something counts: the command line, the environment, the
    file, the default. The file is $SWARMD_CONFIG, else config.toml in the platform's folder for
    configurations, in TOML:

    \b
      [all]                          # options that most commands have
      peer = ["192.0.2.7:31330"]     # also: $SWARMD_PEER
      [serve]                        # the options of one command, without the dashes
      max-upload = 5                 # also: $SWARMD_SERVE_MAX_UPLOAD

    \b
    Examples:
      swarmd config
      swarmd config serve
      swarmd config key new --json
    """
    file = ConfigFile(commands=COMMANDS)
    found: dict[str, list[Setting]] = {}
    for path, leaf in leaves(cli, ()):
        defaults = file.defaults(leaf, path)
        if path[: len(name)] == name:
            found[" ".join(path)] = list(settings(leaf, defaults, str(file.path)))
    if not found:
        raise UsageError(f"{' '.join(name)} is no command; see: swarmd --help")
    if as_json:
        commands = {one: [_as_json(each) for each in found[one]] for one in found}
        there = file.path.exists()
        click.echo(
            json.dumps({"file": str(file.path), "exists": there, "commands": commands}, indent=1)
        )
        return
    click.echo(f"file {file.path}" + ("" if file.path.exists() else " (none)"))
    width = max((len(one.key) for each in found.values() for one in each), default=0)
    for path_name, each in found.items():
        click.echo(f"\nswarmd {path_name}")
        for one in each:
            value = _value(one)
            shown = "-" if value is None else json.dumps(value, ensure_ascii=True)
            click.echo(f"  {one.key:{width}}  {shown}  ({one.source})")


def _value(one: Setting) -> Any:
    if one.source == "default":
        return one.value
    return "(hidden)" if is_secret(one.key, one.value) else one.value


def _as_json(one: Setting) -> dict[str, Any]:
    return {"option": one.key, "value": _value(one), "source": one.source}
