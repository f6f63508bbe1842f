"""The command line. One module a command; nothing heavy is imported before a command runs."""

from __future__ import annotations

from swarmd.cli.app import cli, main

__all__ = ["cli", "main"]
