"""`swarmd chat` with a real node: lines of a pipe, and a terminal with Ctrl-C; `peers --watch`."""

from __future__ import annotations

import contextlib
import io
import json
import os
import pty
import signal
import subprocess
import sys
import tempfile
import time
import types
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

from bench.nodes import SWARMD, Swarm
from swarmd.cli import main
from swarmd.cli.chat_turns import ChatTurns, save
from swarmd.cli.loop_thread import LoopThread
from swarmd.client.dialogue import Dialogue
from swarmd.errors import UsageError
from tests.chat.conftest import save_chat_model

pytestmark = pytest.mark.no_leak_check


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_chat_model(tmp_path_factory.mktemp("chat") / "tiny")


@pytest.fixture(scope="module")
def swarm(model: Path) -> Iterator[Swarm]:
    with tempfile.TemporaryDirectory() as folder:
        swarm = Swarm(Path(folder), ["--model", str(model), "--dtype", "float32"])
        try:
            swarm.start("0:6")
            yield swarm
        finally:
            swarm.stop()


def chat(model: Path, *options: str) -> list[str]:
    return [*SWARMD, "chat", "--model", str(model), "-n", "8", "--context", "256", *options]


def test_lines_of_a_pipe_are_turns(
    swarm: Swarm,
    model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    saved = tmp_path / "talk.json"
    lines = f"hello\n/undo\nhello\n\nwhy\n/save {saved}\n"
    monkeypatch.setenv("SWARMD_STATE", str(swarm.folder))
    monkeypatch.setattr("sys.stdin", io.StringIO(lines))
    with pytest.raises(SystemExit) as ended:
        main(chat(model)[len(SWARMD) :])
    written = capsys.readouterr()
    assert not ended.value.code, written.err
    said = [one["content"] for one in json.loads(saved.read_text())["messages"]]
    assert [said[0], said[2], len(said)] == ["hello", "why", 4]
    assert written.out == f"{said[1]}\n{said[1]}\n{said[3]}\n"
    assert "[8 tokens" in written.err
    assert "; 1 of 23 tokens before it were sent" in written.err  # `user: hello\nassistant: `
    assert oct(saved.stat().st_mode & 0o777) == "0o600"


def test_peers_are_shown_again_until_ctrl_c(swarm: Swarm) -> None:
    process = subprocess.Popen(
        [*SWARMD, "peers", "--watch", "0.5", "--json"], stdout=subprocess.PIPE,
        env=swarm.environment, start_new_session=True,
    )  # fmt: skip
    try:
        assert process.stdout is not None
        for _ in range(2):
            (model,) = json.loads(process.stdout.readline())["models"]
            assert (model["n_blocks"], model["holes"]) == (6, [])
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 130
    finally:
        process.kill()
        process.communicate()


def test_in_a_pipe_the_first_error_ends_it() -> None:
    @contextlib.asynccontextmanager
    async def opened() -> AsyncIterator[Any]:
        yield types.SimpleNamespace(dialogue=Dialogue(None))  # type: ignore[arg-type]

    with LoopThread(opened) as loop, pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.stdin", io.StringIO("/help\n/frobnicate\n/quit\n"))
        with pytest.raises(UsageError, match="/help"):
            ChatTurns(loop, None).run()
        assert ChatTurns(loop, None).run() == 0


@pytest.mark.skipif(sys.platform != "linux", reason="needs a pseudo-terminal")
def test_ctrl_c_stops_the_answer_then_the_program(swarm: Swarm, model: Path) -> None:
    terminal, theirs = pty.openpty()
    process = subprocess.Popen(
        chat(model, "-n", "200"), stdin=theirs, stdout=theirs, stderr=subprocess.PIPE,
        env={**swarm.environment, "TERM": "dumb"}, start_new_session=True,
    )  # fmt: skip
    os.close(theirs)
    assert process.stderr is not None
    os.set_blocking(process.stderr.fileno(), False)
    seen = b""
    notes = b""

    def until(wanted: bytes) -> None:
        nonlocal seen, notes
        deadline = time.monotonic() + 60
        while wanted not in seen + notes:
            assert process.poll() is None, (seen, notes)
            assert time.monotonic() < deadline, (wanted, seen, notes)
            os.set_blocking(terminal, False)
            try:
                seen += os.read(terminal, 65536)
            except BlockingIOError:
                time.sleep(0.01)
            notes += process.stderr.read() or b""  # type: ignore[union-attr]

    try:
        until(b"> ")
        node = swarm.nodes[0]
        seen = notes = b""
        os.write(terminal, b"hello\n")
        until(b"Route found")
        node.kill(signal.SIGSTOP)  # the answer stalls: the step under way has to be cut
        process.send_signal(signal.SIGINT)
        until(b"once more")
        node.kill(signal.SIGCONT)
        os.write(terminal, b"/reset\n")  # a line in between: the next Ctrl-C is a first one
        until(b"begins anew")
        seen = notes = b""
        os.write(terminal, b"hello\n")
        until(b" tokens/s")
        seen = notes = b""
        process.send_signal(signal.SIGINT)
        until(b"once more")
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 130
        assert "hello" in (swarm.folder / "chat_history").read_text()
    finally:
        swarm.nodes[0].kill(signal.SIGCONT)
        process.kill()
        process.wait()
        process.stderr.close()
        os.close(terminal)


def test_save_refuses_what_it_cannot_write(tmp_path: Path) -> None:
    messages = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    save(messages, str(tmp_path / "talk.txt"))
    assert (tmp_path / "talk.txt").read_text() == "user: a\n\nassistant: b\n"
    for name in ("", str(tmp_path / "talk.txt"), str(tmp_path / "no" / "folder")):
        with pytest.raises(UsageError):
            save(messages, name)
