"""The documents say what the code does: options, links, messages, states, errors, records."""

from __future__ import annotations

import dataclasses
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from swarmd import errors
from swarmd.api.limits import ApiLimits
from swarmd.cli import cli
from swarmd.config import DaemonConfig
from swarmd.dht import records
from swarmd.errors import REMOTE_ERRORS, PeerFailure, SwarmdError, error_classes
from swarmd.node.limits import SessionLimits
from swarmd.wire.messages import MESSAGES
from swarmd.wire.protocol import TRANSITIONS
from tests.families import FAMILIES

ROOT = Path(__file__).resolve().parent.parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
README = (ROOT / "README.md").read_text(encoding="utf-8")
PROTOCOL = (ROOT / "docs" / "protocol.md").read_text(encoding="utf-8")
RULE = re.compile(r"\|[-:| ]+\|$")
YES = {"yes": True, "no": False}


def section(text: str, heading: str) -> str:
    """What stands under a heading, up to the next one of its level or above."""
    level = heading.split(" ")[0]
    _, _, rest = text.partition(f"\n{heading}\n")
    assert rest, f"no heading {heading!r}"
    return re.split(rf"\n#{{1,{len(level)}}} ", rest)[0]


def rows(text: str) -> Iterator[list[str]]:
    """The cells of all table rows, without heads and rules."""
    lines = text.splitlines()
    for line, following in zip(lines, [*lines[1:], ""], strict=True):
        is_head = RULE.match(following)
        if line.startswith("|") and not RULE.match(line) and not is_head:
            yield [cell.strip() for cell in line.strip("|").split("|")]


def without_code(text: str) -> str:
    return re.sub(r"`[^`\n]*`", "", re.sub(r"```.*?```", "", text, flags=re.DOTALL))


def code_of(text: str) -> str:
    """What stands in fenced blocks and between backticks, a line each."""
    fenced = re.findall(r"```\w*\n(.*?)```", text, flags=re.DOTALL)
    inline = re.findall(r"`([^`\n]+)`", re.sub(r"```.*?```", "", text, flags=re.DOTALL))
    return "\n".join([*fenced, *inline])


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    found = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in found}


def options(name: str | None = None) -> set[str]:
    """The long options of one command, or of all."""
    context = click.Context(cli, info_name="swarmd", help_option_names=["-h", "--help"])
    names = cli.list_commands(context) if name is None else [name]
    found = {"--help", "--version"}
    for one in names:
        command = cli.get_command(context, one)
        assert command is not None, f"no command {one}"
        for parameter in command.params:
            names = (*parameter.opts, *parameter.secondary_opts)
            found |= {option for option in names if option.startswith("--")}
    return found


def test_cli_page_is_fresh() -> None:
    done = subprocess.run(
        [sys.executable, "scripts/make_cli_docs.py", "--check"],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", without_code(page.read_text(encoding="utf-8"))):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        linked = (page.parent / path).resolve() if path else page
        assert linked.exists(), f"{page.name}: {target}"
        assert linked.is_relative_to(ROOT), f"{page.name}: {target} leaves the repository"
        if anchor:
            assert anchor in anchors(linked), f"{page.name}: {target}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_named_files_and_tests_exist(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for name in re.findall(r"`((?:[\w.]+/)*[\w.]+\.(?:py|md|toml))`", text):
        if "/" in name:  # a bare name is read in the sentence's context
            assert any((root / name).exists() for root in (ROOT, ROOT / "swarmd")), name
    sources = "\n".join(path.read_text() for path in (ROOT / "tests").rglob("test_*.py"))
    for test in re.findall(r"`(test_\w+)`", text):
        assert f"def {test}(" in sources, f"{page.name}: {test}"


def test_every_message_and_field_is_described() -> None:
    described = {
        heading: [cells[0].strip("`") for cells in rows(section(PROTOCOL, f"### {heading}"))]
        for heading in re.findall(r"^### (\w+)$", section(PROTOCOL, "## Messages"), re.MULTILINE)
    }
    assert described == {name: list(cls.FIELDS) for name, cls in MESSAGES.items()}


def test_the_state_table_is_the_codes_table() -> None:
    written = [tuple(cells) for cells in rows(section(PROTOCOL, "## States"))]
    coded = {
        (state.value, sender.value, message.TYPE, target.value)
        for (state, sender, message), target in TRANSITIONS.items()
    }
    assert set(written) == coded
    assert len(written) == len(coded)


def test_every_error_that_travels_is_described() -> None:
    described = {}
    for cells in rows(section(PROTOCOL, "## Errors")):
        if len(cells) == 6:
            code, name, retryable, blames, transient, _ = cells
            properties = (YES[retryable], YES[blames], YES[transient])
            described[code.strip("`")] = (name.strip("`"), *properties)
    assert described == {
        code: (cls.__name__, cls.retryable, cls.blames_peer, cls.transient)
        for code, cls in REMOTE_ERRORS.items()
    }


def test_every_failure_of_a_peer_is_described() -> None:
    described = {}
    for cells in rows(section(PROTOCOL, "## Errors")):
        if len(cells) == 4:
            name, retryable, blames, _ = cells
            described[name.strip("`")] = (YES[retryable], YES[blames])
    kinds = error_classes(PeerFailure)[1:]
    assert described == {cls.__name__: (cls.retryable, cls.blames_peer) for cls in kinds}


def test_the_error_tree_is_drawn_completely() -> None:
    drawn = re.findall(r"(?:├── |└── |^)(\w+)", section_of_tree(), re.MULTILINE)
    names = [cls.__name__ for cls in error_classes() if cls.__module__ == errors.__name__]
    assert sorted(drawn) == sorted(names)
    assert SwarmdError.__name__ in drawn


def section_of_tree() -> str:
    """The tree in the docstring of `swarmd.errors`."""
    _, _, rest = (errors.__doc__ or "").partition("::\n\n")
    tree, _, _ = rest.partition("\n\n")
    return "\n".join(line.strip() for line in tree.splitlines())


def test_every_limit_of_a_node_is_described() -> None:
    text = section((ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8"), "## Limits")
    described = {cells[0].strip("`"): cells[1:] for cells in rows(text) if cells[0][0] == "`"}
    for field in dataclasses.fields(SessionLimits):
        value, _, reason = described.pop(field.name)
        assert reason, f"no reason for {field.name}"
        number = field.default
        factor = 1e6 if "MB/s" in value else 2**20 if "MiB" in value else 1
        written = {"no": False}.get(value) if isinstance(number, bool) else value.replace(",", "")
        if isinstance(written, str):
            found = re.match(r"[\d.]+", written)
            assert found, f"no number for {field.name}"
            written = float(found[0]) * factor
        assert written == number, f"{field.name} is {number}"
    assert not described, f"no such limits: {sorted(described)}"
    config, limits = DaemonConfig(), SessionLimits()
    for name in ("connections", "kv_share", "bandwidth_out", "limit_loopback"):
        assert getattr(config, name) == getattr(limits, name), name


def test_every_limit_of_the_api_is_described() -> None:
    text = section((ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8"), "## Limits of the API")
    described = {cells[0].strip("`"): cells[1] for cells in rows(text)}
    limits = dataclasses.asdict(ApiLimits())
    assert set(described) == set(limits)
    for name, value in described.items():
        found = re.match(r"[\d.]+", value.replace(",", ""))
        assert found, f"no number for {name}"
        assert float(found[0]) * (2**20 if "MiB" in value else 1) == limits[name], name


def test_every_field_of_a_record_is_described() -> None:
    described = [
        (int(cells[0]), cells[1].strip("`")) for cells in rows(section(PROTOCOL, "## Records"))
    ]
    assert described == list(enumerate(records._FIELDS))


def test_readme_names_only_options_that_exist() -> None:
    assert set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", README)) <= options()
    for command, rest in re.findall(r"(?:^|`|: )swarmd (\w+)([^\n`#]*)", code_of(README), re.M):
        assert set(re.findall(r"--[a-z][a-z-]+", rest)) <= options(command), command


def test_readme_counts_the_families_that_are_tested() -> None:
    assert section(README, "## Families that work").strip().startswith(f"{len(FAMILIES)} families ")


def test_readme_names_only_verbs_of_the_makefile() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for page in PAGES:
        for verb in re.findall(r"(?:^|`)make ([a-z]+)", page.read_text(encoding="utf-8"), re.M):
            assert re.search(rf"^{verb}:", makefile, re.MULTILINE), f"{page.name}: make {verb}"
