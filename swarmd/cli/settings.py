"""Where the value of an option may come from, and its names there.

Of each option the first that says something counts: the command line, the environment, the file,
the default. `--max-upload` of `swarmd serve` is `SWARMD_SERVE_MAX_UPLOAD` in the environment and
`max-upload` in the section `[serve]` of the file (`[key.new]` for `swarmd key new`). An option
that most commands have (`SHARED`) may be set for all of them: `SWARMD_MODEL`, or `model` in
`[all]`; what is set for one command goes before that.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import click

__all__ = [
    "SHARED",
    "Setting",
    "arm",
    "env_names",
    "is_secret",
    "key_of",
    "leaves",
    "options_of",
    "settings",
]

SHARED = frozenset(
    {
        "invite", "log-format", "model", "no-lan", "peer", "state-dir", "swarm-key", "threads",
        "verbose",
    }
)  # fmt: skip
"""Options that can be set for all commands at once."""
SECRET = frozenset({"api-key", "invite"})
"""Options whose values are not shown, and not read from a file that others may read."""

Path = tuple[str, ...]
"""A command's names below `swarmd`: `("key", "new")`."""


def is_secret(key: str, value: object) -> bool:
    """Whether the value of an option is one to hide; `peer` takes an invite as well."""
    from swarmd.invite import PREFIX  # and with it a library for keys, which help does not need

    return key in SECRET or PREFIX in str(value)


def key_of(option: click.Option) -> str:
    """The option's name in the file: its long form without the dashes."""
    return max(option.opts, key=len).lstrip("-")


def options_of(command: click.Command) -> list[click.Option]:
    return [one for one in command.params if isinstance(one, click.Option) and one.name != "help"]


def leaves(command: click.Command, path: Path) -> Iterator[tuple[Path, click.Command]]:
    """The commands below a group, or the command itself, with their paths."""
    if not isinstance(command, click.Group):
        yield path, command
        return
    context = click.Context(command, info_name=path[-1] if path else "swarmd")
    for name in command.list_commands(context):
        child = command.get_command(context, name)
        assert child is not None
        yield from leaves(child, (*path, name))


def env_names(path: Path, option: click.Option) -> list[str]:
    """Environment variables of an option by the rule above, those that go first, first."""
    key = key_of(option)
    names = ["_".join(("SWARMD", *path, key)).upper().replace("-", "_")]
    return names + ([f"SWARMD_{key.upper().replace('-', '_')}"] if key in SHARED else [])


def arm(command: click.Command, path: Path) -> None:
    """Let the options of a command, and of those below it, be set by the environment. Names that
    an option has already stay as well. Doing it twice does nothing."""
    for leaf_path, leaf in leaves(command, path):
        for option in options_of(leaf):
            own = [option.envvar] if isinstance(option.envvar, str) else list(option.envvar or ())
            option.envvar = list(dict.fromkeys([*env_names(leaf_path, option), *own]))


@dataclass(frozen=True, slots=True)
class Setting:
    """An option's effective value where the command line says nothing, and where it is from."""

    key: str
    value: Any
    source: str


def settings(command: click.Command, defaults: Mapping[str, Any], file: str) -> Iterator[Setting]:
    """Of each option of an armed command; `defaults` by parameter name are what `file` says."""
    context = click.Context(command)
    for option in options_of(command):
        key = key_of(option)
        names = [option.envvar] if isinstance(option.envvar, str) else option.envvar or ()
        name = next((name for name in names if os.environ.get(name)), None)
        if name is not None:
            yield Setting(key, os.environ[name], f"${name}")
        elif option.name in defaults:
            yield Setting(key, defaults[option.name], file)
        else:
            default = option.get_default(context, call=False)
            plain = isinstance(default, str | int | float)
            yield Setting(key, default if plain else None, "default")
