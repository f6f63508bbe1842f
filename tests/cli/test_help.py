"""Help with examples that are true, completion, bars, and no colour where none is wanted."""

from __future__ import annotations

import io
import os
import re
import shlex
import subprocess
import sys

import click
import pytest
from click.shell_completion import ShellComplete
from rich.console import Console

from swarmd.cli import cli, main
from swarmd.cli import runtime as runtime_module
from swarmd.cli.runtime import ProgressBars
from swarmd.cli.settings import leaves
from swarmd.identity import PeerId
from swarmd.invite import Contact, Invite
from swarmd.peers import Address

INVITE = Invite((Contact(PeerId(b"p" * 20), Address("192.0.2.7", 31330)),)).text


def groups(command: click.Command, path: tuple[str, ...]) -> list[tuple[str, ...]]:
    if not isinstance(command, click.Group):
        return [path]
    context = click.Context(command)
    below = [
        groups(child, (*path, name))
        for name in command.list_commands(context)
        if (child := command.get_command(context, name)) is not None
    ]
    return [path, *(one for each in below for one in each)]


def found(path: tuple[str, ...]) -> click.Command:
    command: click.Command = cli
    for name in path:
        assert isinstance(command, click.Group)
        child = command.get_command(click.Context(command), name)
        assert child is not None
        command = child
    return command


@pytest.mark.parametrize("path", groups(cli, ()), ids=" ".join)
def test_each_help_has_examples_that_parse(path: tuple[str, ...]) -> None:
    text = found(path).get_help(click.Context(found(path), info_name="swarmd"))
    _, _, rest = text.partition("Examples:\n")
    examples = re.findall(r"^ +(.*\bswarmd .*)$", rest.split("\n\n")[0], re.MULTILINE)
    assert examples, text
    own = " ".join(("swarmd", *path))
    assert any(own in example for example in examples), f"none of {own}"
    for example in examples:
        line = re.split(r" {3,}", example)[0].split("| ")[-1].split(" >")[0]
        words = [
            INVITE if word.startswith("swarmd-invite-1-") else word for word in shlex.split(line)
        ]
        assert words[0] == "swarmd"
        command, at = cli, 1
        context = click.Context(cli, info_name="swarmd")
        while isinstance(command, click.Group) and at < len(words):
            child = command.get_command(context, words[at])
            assert child is not None, example
            command, at = child, at + 1  # type: ignore[assignment]
        command.make_context(words[at - 1], words[at:], parent=context)  # raises for what is wrong


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_scripts(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["completion", shell])
    assert not ended.value.code
    assert f"_SWARMD_COMPLETE={shell}_complete" in capsys.readouterr().out


def test_completion_completes_commands_and_options() -> None:
    complete = ShellComplete(cli, {}, "swarmd", "_SWARMD_COMPLETE")
    assert {one.value for one in complete.get_completions([], "c")} >= {"chat", "config", "convert"}
    assert [one.value for one in complete.get_completions(["chat"], "--sys")] == ["--system"]
    assert [one.value for one in complete.get_completions(["completion"], "z")] == ["zsh"]


def test_a_completion_reads_no_configuration() -> None:
    """A file that is wrong must not break the shell."""
    done = subprocess.run(
        [sys.executable, "-m", "swarmd"],
        env={
            **os.environ, "SWARMD_CONFIG": os.path.join(os.sep, "no", "such"),
            "_SWARMD_COMPLETE": "bash_complete", "COMP_WORDS": "swarmd key ", "COMP_CWORD": "2",
        },
        capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    assert "plain,rotate" in done.stdout.splitlines(), done


def bars(monkeypatch: pytest.MonkeyPatch, *, terminal: bool, no_color: bool) -> str:
    seen = io.StringIO()
    environment = {"TERM": "xterm"} | ({"NO_COLOR": "1"} if no_color else {})
    console = Console(
        file=seen, force_terminal=terminal, width=120, _environ=environment, highlight=False
    )
    monkeypatch.setattr(runtime_module, "stderr", console)
    with ProgressBars() as progress:
        progress.update("download x[b].safetensors", 0, 4_000_000)
        progress.update("download x[b].safetensors", 3_000_000, 4_000_000)
        progress.update("loading blocks", 3, 30)
    return seen.getvalue()


def test_bars_say_bytes_rate_and_time_left(monkeypatch: pytest.MonkeyPatch) -> None:
    text = bars(monkeypatch, terminal=True, no_color=True)
    assert re.search(r"download x\[b\]\.safetensors .*of 4\.0 MB", text)
    assert re.search(r"\d+:\d\d:\d\d", text)
    assert re.search(r"loading blocks .*/30", text)
    assert not re.search(r"\x1b\[[0-9;]*3[0-9]m", text)  # no colour
    assert re.search(r"\x1b\[[0-9;]*3[0-9]", bars(monkeypatch, terminal=True, no_color=False))


def test_no_bars_where_nobody_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    text = bars(monkeypatch, terminal=False, no_color=False)
    assert text.splitlines() == ["download x[b].safetensors …", "loading blocks …"]


def test_every_command_is_reached() -> None:
    assert {path[0] for path, _ in leaves(cli, ())} == set(cli.list_commands(click.Context(cli)))
