"""The pages for users: quoted errors exist, named options exist, figures are the recorded ones."""

from __future__ import annotations

import ast
import json
import re
from functools import cache
from pathlib import Path

import pytest

from tests.docs.test_docs import README, ROOT, code_of, options, rows, section

TROUBLES = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
QUOTES = [
    line for block in re.findall(r"```text\n(.*?)```", TROUBLES, re.DOTALL)
    for line in block.splitlines()
]  # fmt: skip
PAGES = [
    *sorted((ROOT / "docs" / "quickstart").glob("*.md")),
    ROOT / "docs" / "troubleshooting.md",
    ROOT / "docs" / "privacy.md",
    ROOT / "deploy" / "README.md",
]


def spoken(node: ast.AST) -> str | None:
    """A text of the source, with … where it puts in a value; None for what is no text."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return re.sub(r"%[-\d.]*[sdfg]", "…", node.value)
    if isinstance(node, ast.JoinedStr):
        return "".join(spoken(part) or "…" for part in node.values)
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        return f"{spoken(node.left) or '…'}{spoken(node.right) or '…'}"
    return None


@cache
def sentences() -> tuple[str, ...]:
    found = []
    for path in sorted((ROOT / "swarmd").rglob("*.py")):
        found += [spoken(node) for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))]
    return tuple(one for one in found if one)


def is_said(line: str) -> bool:
    """Whether the source says it; names that stand for values may be written as … only."""
    return any(line.strip(" …") in one for one in sentences())


def test_texts_of_the_source_are_found() -> None:
    tree = ast.parse("raise E(f'no {x!r} ' 'here: ' + f(y))\nlog('%d of %s', 1, 2)")
    found = {spoken(node) for node in ast.walk(tree)}
    assert {"no … here: …", "… of …"} <= found
    assert not is_said("a line that swarmd never prints")


@pytest.mark.parametrize("line", QUOTES)
def test_quoted_errors_exist(line: str) -> None:
    assert len(line.strip(" …")) > 20, "too short to be found for certain"
    assert is_said(line)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_pages_name_only_options_that_exist(page: Path) -> None:
    code = code_of(page.read_text(encoding="utf-8"))
    commands = re.findall(r"(?:^|(?<!from)[` ])swarmd (\w+)((?: (?!\|)[^\n`#]*)?)", code, re.M)
    assert commands or page.name == "python.md"
    for command, rest in commands:
        assert set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", rest)) <= options(command), command
    foreign = {"--silent", "--fail", "--header", "--data"}  # curl's
    foreign |= {"--constraint", "--no-deps", "--now", "--unit", "--follow", "--offline"}
    foreign |= {"--file", "--tag", "--build", "--detach", "--publish", "--system"}
    named = set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", code))
    assert named - foreign <= options()


def test_the_time_to_the_first_token_is_the_recorded_one() -> None:
    record = json.loads((ROOT / "bench/results/first_token.json").read_text())["figures"]
    text = section(README, "## Figures").partition("bench.first_token`")[2]
    written = {}
    for cells in rows(text.partition("\n\n")[2].partition("\n\n")[0]):
        written[cells[0].strip("`")] = float(cells[1])
    assert written == {step: round(seconds, 1) for step, seconds in record.items()}
