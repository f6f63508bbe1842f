"""What the README and the quickstarts tell their readers to type works, as it stands there."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.walk.__main__ import main
from tests.walk.page import Command, commands_of
from tests.walk.plan import EXCUSED, INVITE, REPLACED, SCENES, excuse, is_background, prepared
from tests.walk.stage import ROOT, WalkFailed, staged, why_not

_obstacle = why_not()


def all_commands() -> list[Command]:
    pages = [page for scene in SCENES for machine in scene.machines for page in machine.pages]
    return [
        command
        for page in pages
        for command in commands_of(page, (ROOT / page).read_text(encoding="utf-8"))
    ]


@pytest.mark.skipif(_obstacle is not None, reason=f"no network of its own: {_obstacle}")
def test_every_command_works(capfd: pytest.CaptureFixture[str]) -> None:
    code = main()
    assert code == 0, capfd.readouterr().out


def test_every_quickstart_is_walked() -> None:
    walked = {page for scene in SCENES for machine in scene.machines for page in machine.pages}
    there = {str(path.relative_to(ROOT)) for path in (ROOT / "docs/quickstart").glob("*.md")}
    assert walked == there | {"README.md"}


def test_every_excuse_is_needed() -> None:
    assert {excuse(command) for command in all_commands()} - {None} == set(EXCUSED)


def test_every_replacement_is_needed() -> None:
    texts = [command.text for command in all_commands()]
    assert all(any(known in text for text in texts) for known in REPLACED)


def test_blocks_become_commands() -> None:
    text = (
        "a\n```bash\none   # why\n# a comment\ntwo \\\n  more  # x\n\n```\n"
        "```text\nnot this\n```\n```python\na = 1\n\nprint(a)  # kept\n```\n"
    )
    found = [(one.line, one.language, one.text) for one in commands_of("p", text)]
    assert found == [
        (3, "bash", "one"),
        (5, "bash", "two more"),
        (13, "python", "a = 1\n\nprint(a)  # kept"),
    ]


@pytest.mark.parametrize("text", ["```bash\none", "```bash\none \\\n```", "```bash\na <<E\nE\n```"])
def test_blocks_that_are_not_understood_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="p:"):
        commands_of("p", text)


def test_placeholders() -> None:
    def command(text: str) -> Command:
        return Command("p", 1, "bash", text)

    given = command(f"swarmd generate --invite {INVITE} Hello")
    assert prepared(given, "swarmd-invite-1-abc") == (
        "swarmd generate --invite swarmd-invite-1-abc Hello -n 8"
    )
    assert prepared(command("swarmd generate -n 3 Hello"), None) == "swarmd generate -n 3 Hello"
    with pytest.raises(ValueError, match="no invite"):
        prepared(given, None)
    with pytest.raises(ValueError, match="in place of"):
        prepared(command("swarmd peers --peer …"), None)
    assert is_background(command("swarmd serve --blocks 0:15"))
    assert not is_background(command("swarmd serverless"))


@pytest.mark.parametrize(
    "language, text, why",
    [
        ("bash", "false", "code 1"),
        ("bash", "no-such-command", "code 127"),
        ("bash", "swarmd key show ...", "code 2"),
        ("bash", "swarmd serve --no-such-option", "code 2"),
        ("bash", "swarmd peers --peer …", "in place of"),
        ("python", "1 / 0", "ZeroDivisionError"),
        ("python", "pass", "printed nothing"),
    ],
)
def test_a_command_that_fails_ends_the_walk(
    tmp_path: Path, language: str, text: str, why: str
) -> None:
    with pytest.raises(WalkFailed, match=why), staged(tmp_path) as stage:
        stage.perform("laptop", Command("p", 1, language, text))


def test_what_does_not_end_well_in_the_background_is_said(tmp_path: Path) -> None:
    command = Command("p", 1, "bash", "swarmd serve")
    with pytest.raises(WalkFailed, match="code 3 at the end"), staged(tmp_path) as stage:
        trap = "bash -c 'trap \"exit 3\" TERM; echo ready; while :; do sleep 0.05; done'"
        stage.start("laptop", command, trap, "ready")
