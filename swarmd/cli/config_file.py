"""The configuration file: TOML, a section for each command, checked before a command runs."""

from __future__ import annotations

import difflib
import os
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import click
import platformdirs

from swarmd.cli.settings import SHARED, is_secret, key_of, options_of
from swarmd.errors import UsageError

__all__ = ["ConfigFile", "config_path"]

MAX_BYTES = 1 << 20
"""A longer file is not a configuration."""


def config_path() -> Path:
    """`$SWARMD_CONFIG`, or `config.toml` in the platform's folder for a user's configuration."""
    chosen = os.environ.get("SWARMD_CONFIG")
    if chosen:
        return Path(chosen).expanduser()
    return Path(platformdirs.user_config_dir("swarmd", appauthor=False)) / "config.toml"


class ConfigFile:
    """What the file says, by section. A file that is not there says nothing, unless
    `$SWARMD_CONFIG` names it."""

    def __init__(self, path: Path | None = None, *, commands: Iterable[str]) -> None:
        """`commands`: those that may have a section. Raises UsageError, which names the file, for
        one that cannot be read, is no TOML, or has other sections."""
        self.path = path or config_path()
        self._open_to_others = False
        self._sections = self._read()
        allowed = ["all", *commands]
        for name, section in self._sections.items():
            if name not in allowed:
                raise self._unknown(name, allowed, "section" if _is_table(section) else "key")
            if not _is_table(section):
                raise UsageError(f"{self.path}: {name} must be a section: [{name}]")
        for key in self._sections.get("all", {}):
            if key not in SHARED:
                raise self._unknown(f"all.{key}", [f"all.{one}" for one in sorted(SHARED)], "key")

    def _read(self) -> dict[str, Any]:
        try:
            with self.path.open("rb") as file:
                self._open_to_others = bool(os.fstat(file.fileno()).st_mode & 0o077)
                data = file.read(MAX_BYTES + 1)
        except FileNotFoundError:
            if os.environ.get("SWARMD_CONFIG"):
                raise UsageError(
                    f"$SWARMD_CONFIG: {self.path} does not exist; make it, or unset the variable"
                ) from None
            return {}
        except OSError as error:
            raise UsageError(f"cannot read {self.path}: {error.strerror}") from error
        if len(data) > MAX_BYTES:
            raise UsageError(f"{self.path} is longer than {MAX_BYTES} bytes: no configuration")
        try:
            return tomllib.loads(data.decode())
        except (ValueError, RecursionError) as error:  # also of UTF-8
            raise UsageError(f"{self.path} is not valid TOML: {error}") from error

    def _unknown(self, name: str, allowed: Iterable[str], what: str) -> UsageError:
        near = difflib.get_close_matches(name.replace("_", "-"), list(allowed), n=1, cutoff=0.5)
        hint = f"; did you mean {near[0]}?" if near else "; see: swarmd config"
        return UsageError(f"{self.path}: unknown {what} {name}{hint}")

    def defaults(self, command: click.Command, path: tuple[str, ...]) -> dict[str, Any]:
        """Values by parameter name, as click's `default_map` takes them (nested for a group).

        Raises UsageError, which names file and key, for an unknown key and a value of a wrong type
        or outside its range.
        """
        section: Any = self._sections
        for name in path:
            section = section.get(name, {})
            if not _is_table(section):
                raise UsageError(f"{self.path}: {'.'.join(path)} must be a section")
        if isinstance(command, click.Group):
            context = click.Context(command)
            names = command.list_commands(context)
            for name in section:
                if name not in names:
                    allowed = [".".join((*path, one)) for one in names]
                    raise self._unknown(".".join((*path, name)), allowed, "section")
            children = {name: command.get_command(context, name) for name in names}
            return {
                name: self.defaults(child, (*path, name))
                for name, child in children.items()
                if child is not None
            }
        options = {key_of(option): option for option in options_of(command)}
        for key in section:
            if key not in options:
                allowed = [".".join((*path, one)) for one in options]
                raise self._unknown(".".join((*path, key)), allowed, "key")
        shared = {key: value for key, value in self._all().items() if key in options}
        found = {}
        for source, values in (("all", shared), (".".join(path), section)):
            for key, value in values.items():
                option = options[key]
                assert option.name is not None
                found[option.name] = self._checked(f"{source}.{key}", option, value)
        return found

    def _all(self) -> Mapping[str, Any]:
        section: Mapping[str, Any] = self._sections.get("all", {})
        return section

    def _checked(self, name: str, option: click.Option, value: Any) -> Any:
        """The value as click takes it: paths from the file's folder on, a list for an option that
        may be given several times. Raises UsageError."""
        if is_secret(key_of(option), value) and self._open_to_others and os.name == "posix":
            raise UsageError(
                f"{self.path}: {name} is a secret and others may read this file: "
                f"chmod 600 {self.path}"
            )
        if not option.multiple:
            return self._one(name, option, value)
        values = value if isinstance(value, list) else [value]
        return [self._one(name, option, one) for one in values]

    def _one(self, name: str, option: click.Option, value: Any) -> Any:
        wanted, fits = _type(option)
        if not fits(value):
            raise UsageError(f"{self.path}: {name} must be {wanted}, not {_shown(value)}")
        if isinstance(option.type, click.Path):
            value = str(self.path.parent / Path(value).expanduser())
        try:
            option.type.convert(value, option, None)
        except click.BadParameter as error:
            raise UsageError(f"{self.path}: {name}: {error.message}") from error
        return value


def _is_table(value: object) -> bool:
    return isinstance(value, dict)


def _type(option: click.Option) -> tuple[str, Any]:
    """What a TOML value of an option has to be: in words, and as a test."""
    if option.is_flag:
        return "true or false", lambda value: isinstance(value, bool)
    kind = option.type
    if isinstance(kind, click.types.IntParamType):
        return "a whole number", lambda value: type(value) is int
    if isinstance(kind, click.types.FloatParamType):
        return "a number", lambda value: type(value) in (int, float)
    return "a text in quotes", lambda value: isinstance(value, str)


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 40 else text[:40] + "…"
