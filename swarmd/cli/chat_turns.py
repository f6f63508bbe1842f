"""The turns of `swarmd chat`: lines in, answers out, commands between them."""

from __future__ import annotations

import contextlib
import json
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from swarmd.atomic_file import write_file
from swarmd.cli.loop_thread import LoopThread
from swarmd.cli.runtime import stderr
from swarmd.errors import SwarmdError, UsageError

__all__ = ["ChatTurns"]

PROMPT = "> "
GRACE = 1.0
"""Seconds that an answer has to end after a token before its step is cut."""
HISTORY_LINES = 1000
HELP = """\
/reset         forget the dialogue; the system message stays
/undo          take the last question and its answer back
/system TEXT   set the system message; without TEXT, remove it
/save FILE     write the dialogue to a new file; as JSON if it ends in .json
/help          this
/quit          end, as Ctrl-D does
A line that is to begin with / is written with two: //."""


class ChatTurns:
    """Reads lines until the end of input, and has each answered."""

    def __init__(self, loop: LoopThread[Any], history: Path | None) -> None:
        """`history`: the file of the lines typed before, on a terminal; None: lines of a pipe."""
        self._loop = loop
        self._chat = loop.value
        self._history = history
        self._interrupts = 0

    def run(self) -> int:
        """The exit code. From a pipe, the first error ends it: raises SwarmdError."""
        with contextlib.ExitStack() as stack:
            if self._history is not None:
                stack.enter_context(_line_editing(self._history))
                _note(f"{self._chat.name}; /help shows the commands, Ctrl-D ends")
            while True:
                try:
                    line = input(PROMPT if self._history is not None else "")
                    self._interrupts = 0
                    if self._turn(line.strip()):
                        return 0
                except EOFError:
                    if self._history is not None:
                        click.echo()
                    return 0
                except KeyboardInterrupt:
                    self._interrupts += 1
                    if self._interrupts > 1 or self._history is None:
                        click.echo(err=True)
                        return 130
                    _note("once more, or Ctrl-D, to end")
                except SwarmdError as error:
                    if self._history is None:
                        raise
                    stderr.print(f"swarmd: {error}", markup=False, style="red", soft_wrap=True)

    def _turn(self, line: str) -> bool:
        """Whether this line ends the program."""
        if not line:
            return False
        if not line.startswith("/"):
            self._answer(line)
        elif line.startswith("//"):
            self._answer(line[1:])
        else:
            return self._command(line)
        return False

    def _command(self, line: str) -> bool:
        """Raises UsageError for what is no command."""
        name, _, argument = line[1:].partition(" ")
        dialogue, argument = self._chat.dialogue, argument.strip()
        if name in ("reset", "undo", "help", "quit") and argument:
            raise UsageError(f"/{name} takes nothing after it")
        match name:
            case "reset":
                dialogue.reset()
                _note("the dialogue begins anew")
            case "undo":
                said = dialogue.undo()
                _note("there is nothing to take back" if said is None else f"taken back: {said}")
            case "system":
                dialogue.system = argument or None
                _note("the system message is set" if argument else "no system message")
            case "save":
                save(self._chat.dialogue.messages, argument)
                _note(f"saved as {argument}")
            case "help":
                click.echo(HELP, err=True)
            case "quit":
                return True
            case _:
                raise UsageError(f"/{name} is no command; /help shows them")
        return False

    def _answer(self, said: str) -> None:
        """Have a line answered. Raises what that raises, and KeyboardInterrupt when interrupted:
        then the answer has ended."""
        stop = threading.Event()
        future = self._loop.start(self._chat.answer(said, on_text=_write, stopped=stop.is_set))
        interrupted = False
        try:
            try:
                answered = self._loop.wait(future)
            except KeyboardInterrupt:
                interrupted = True
                stop.set()
                try:
                    answered = self._loop.wait(future, GRACE)
                except TimeoutError:
                    self._loop.cancel()
                    answered = self._loop.wait(future)
        except KeyboardInterrupt:  # the second one ends the program
            self._interrupts += 1
            self._loop.cancel()
            self._loop.wait(future)
            raise
        finally:
            click.echo()
        if answered is not None:
            _note(summary(answered))
        if interrupted:
            raise KeyboardInterrupt


def summary(answered: Any) -> str:
    """A line about an answer (:class:`~swarmd.client.chat.Answered`)."""
    line = f"{answered.tokens} tokens, {answered.times.tokens_per_second:.1f} tokens/s"
    line += f"; {answered.sent_tokens} of {answered.prompt_tokens} tokens before it were sent"
    if answered.full:
        line += "; the context is full: /undo, /reset, or start with a larger --context"
    return line


def save(messages: list[dict[str, str]], name: str) -> None:
    """Write a dialogue to the new file `name`, which only its owner may read.

    Raises UsageError if it is there already or cannot be written."""
    if not name:
        raise UsageError("/save takes the name of a new file")
    path = Path(name).expanduser()
    if path.exists():
        raise UsageError(f"{path} is there already; choose another name")
    if path.suffix == ".json":
        text = json.dumps({"messages": messages}, ensure_ascii=False, indent=1) + "\n"
    else:
        text = "\n\n".join(f"{one['role']}: {one['content']}" for one in messages) + "\n"
    try:
        write_file(path, text)
    except OSError as error:
        raise UsageError(f"cannot write {path}: {error.strerror}") from error


@contextlib.contextmanager
def _line_editing(history: Path) -> Iterator[None]:
    """Line editing, and the history of earlier chats, where the platform has readline."""
    try:
        import readline
    except ImportError:  # Windows: its console edits lines itself
        yield
        return
    with contextlib.suppress(OSError):  # the first chat
        readline.read_history_file(history)
    try:
        yield
    finally:
        readline.set_history_length(HISTORY_LINES)
        with contextlib.suppress(OSError):  # the history is a convenience
            history.touch(0o600)
            readline.write_history_file(history)


def _write(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()


def _note(line: str) -> None:
    stderr.print(f"[{line}]", markup=False, style="dim", soft_wrap=True)
