"""Who may ask over HTTP: the options of keys, shared by the commands that serve it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from swarmd.errors import UsageError

if TYPE_CHECKING:
    from swarmd.api.keys import ApiKeys

__all__ = ["api_key_options", "checked_keys"]

F = TypeVar("F", bound=Any)


def api_key_options(command: F) -> F:
    """`--api-key` and `--api-key-file`."""
    command = click.option(
        "--api-key-file",
        type=click.Path(dir_okay=False, path_type=Path),
        envvar="SWARMD_API_KEYS_FILE",
        help="A file of API keys, one a line, that nobody else may read. "
        "[default: $SWARMD_API_KEYS_FILE]",
    )(command)
    return click.option(
        "--api-key",
        "api_keys",
        multiple=True,
        metavar="KEY",
        envvar="SWARMD_API_KEYS",
        help="Answer only requests with such a key; may be given several times. Other users of "
        "this machine can read it here: better use a file. [default: $SWARMD_API_KEYS, split at "
        "spaces]",
    )(command)


def checked_keys(
    option: str, host: str, api_keys: tuple[str, ...], api_key_file: Path | None
) -> ApiKeys:
    """The keys that were given. Raises UsageError where there are none though `option` lets other
    machines in."""
    from swarmd.api.guard import is_loopback
    from swarmd.api.keys import ApiKeys, read_keys

    keys = ApiKeys([*api_keys, *(read_keys(api_key_file) if api_key_file else ())])
    if not keys and not is_loopback(host):
        raise UsageError(
            f"{option} {host} lets other machines in: give --api-key-file, or {option} 127.0.0.1"
        )
    return keys
