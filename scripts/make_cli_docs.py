"""Write docs/cli.md from the commands' own `--help`.

python scripts/make_cli_docs.py            write the page
python scripts/make_cli_docs.py --check    exit with 1 if the page is not what would be written
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import click

from swarmd.cli import cli
from swarmd.cli.settings import SHARED

PAGE = Path(__file__).resolve().parent.parent / "docs" / "cli.md"
WIDTH = 80
"""Columns of the help texts, whatever the terminal."""
HEAD = """\
# The command line

Made by `scripts/make_cli_docs.py` from `--help`; do not edit it by hand.

Results go to stdout, notes and logs to stderr. Exit codes: 0 done, 1 failed, 2 misused,
130 interrupted.

## Where options are set

Of each option the first that says something counts:

1. the command line;
2. the environment: `--max-upload` of `swarmd serve` is `SWARMD_SERVE_MAX_UPLOAD`, and `--force` of
   `swarmd key new` is `SWARMD_KEY_NEW_FORCE`. A flag takes `1` or `0`; an option that may be given
   several times takes its values with spaces between them;
3. the file, TOML: `$SWARMD_CONFIG`, else `config.toml` in the platform's folder for a user's
   configuration (`~/.config/swarmd` on Linux);
4. the default.

SHARED may be set for all commands at once: `SWARMD_MODEL` and so on, or in the section `[all]` of
the file; what is set for one command goes before that. Some options have other variables besides,
which their help names. In the file, a relative path is one from the file's folder, and what it
does not know is an error that names the file and the key. `swarmd config` shows each value and
where it comes from.

```toml
[all]
model = "~/models/llama"
peer = ["192.0.2.7:31330"]

[serve]
memory = "6G"
max-upload = 5.0

[key.new]
force = false
```
"""


def help_pages(
    command: click.Command, name: str, parent: click.Context | None = None
) -> Iterator[tuple[str, str]]:
    """The name and the help text of a command and of all commands below it."""
    context = click.Context(
        command,
        parent,
        info_name=name,
        terminal_width=WIDTH,
        max_content_width=WIDTH,
        help_option_names=["-h", "--help"],
    )
    yield context.command_path, command.get_help(context)
    if isinstance(command, click.Group):
        for child in command.list_commands(context):
            found = command.get_command(context, child)
            assert found is not None
            yield from help_pages(found, child, context)


def make_page() -> str:
    """The whole page."""
    shared = ", ".join(f"`--{key}`" for key in sorted(SHARED))
    parts = [HEAD.replace("SHARED", shared)]
    for name, text in help_pages(cli, "swarmd"):
        lines = "\n".join(line.rstrip() for line in text.splitlines())
        parts.append(f"## `{name}`\n\n```text\n{lines}\n```\n")
    return "\n".join(parts)


def main(arguments: list[str]) -> int:
    page = make_page()
    if arguments == ["--check"]:
        if PAGE.exists() and PAGE.read_text(encoding="utf-8") == page:
            return 0
        print(f"docs/{PAGE.name} is stale; run: python scripts/make_cli_docs.py", file=sys.stderr)
        return 1
    if arguments:
        print(__doc__, file=sys.stderr)
        return 2
    PAGE.write_text(page, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
