"""The unit, the image and the compose file say what swarmd understands, and agree with the rest."""

from __future__ import annotations

import ipaddress
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import click
import pytest
import yaml

from swarmd.cli import cli
from swarmd.config import DaemonConfig
from tests.deploy.files import (
    COMPOSE,
    DOCKERFILE,
    ROOT,
    UNIT,
    composed,
    image_command,
    unit_command,
)

README = (ROOT / "deploy" / "README.md").read_text(encoding="utf-8")
needs_analyze = pytest.mark.skipif(
    shutil.which("systemd-analyze") is None, reason="no systemd-analyze here"
)


def parse(arguments: list[str]) -> click.Context:
    """As `swarmd ARGUMENTS` reads them. Raises click's and swarmd's errors of usage."""
    name, *rest = arguments
    command = cli.get_command(click.Context(cli), name)
    assert command is not None, f"no command {name}"
    return command.make_context(name, rest)


def documented_options() -> str:
    found = re.search(r"^SWARMD_OPTIONS=(.*)$", README, re.MULTILINE)
    assert found, "the README shows no options"
    return found[1]


def test_the_parser_refuses_what_does_not_exist() -> None:
    with pytest.raises(click.UsageError):
        parse(["serve", "--no-such-option"])


@pytest.mark.parametrize("options", ["", documented_options()])
def test_the_unit_starts_a_node(options: str) -> None:
    assert parse(unit_command(options)).info_name == "serve"


def test_the_image_starts_a_node_that_its_health_check_finds() -> None:
    given = parse(image_command()).params
    text = DOCKERFILE.read_text()
    host, port = given["http"]
    assert f"http://{host}:{port}/readyz" in text
    assert f"EXPOSE {given['port']}/tcp {given['port']}/udp" in text
    assert given["host"] == "0.0.0.0"


def test_the_image_is_not_roots() -> None:
    assert re.findall(r"^USER (\w+)$", DOCKERFILE.read_text(), re.MULTILINE) == ["swarmd"]


def test_the_composed_nodes_join_one_another_and_hold_all_blocks_twice() -> None:
    addresses, copies = set(), [0] * 30
    (network,) = yaml.safe_load(COMPOSE.read_text())["networks"]["swarm"]["ipam"]["config"]
    for name, service in composed().items():
        context = parse(shlex.split(service["command"]))
        own = service["networks"]["swarm"]["ipv4_address"]
        assert ipaddress.ip_address(own) in ipaddress.ip_network(network["subnet"])
        peers = {str(address) for address in context.params["peers"]}
        if context.info_name == "serve":
            assert context.params["advertise"] == own, name
            assert peers <= addresses, f"{name} asks a node that does not run before it"
            addresses.add(f"{own}:{context.params['port']}")
            start, end = map(int, str(context.params["blocks"].span).split(":"))
            copies[start:end] = [count + 1 for count in copies[start:end]]
        else:
            assert peers == addresses
            assert service["ports"] == [f"127.0.0.1:{context.params['port']}:8000"]
    assert len(addresses) == 3
    assert min(copies) == 2


def test_time_to_drain() -> None:
    """10 s for sessions, 5 for the router, 5 to withdraw; the rest is for a turn under way."""
    least = DaemonConfig().drain_timeout + 10
    found = re.search(r"^TimeoutStopSec=(\d+)$", UNIT.read_text(), re.MULTILINE)
    assert found and int(found[1]) > least
    for service in composed().values():
        assert int(service["stop_grace_period"].removesuffix("s")) > least


def test_the_model_is_the_makefiles() -> None:
    makefile = (ROOT / "Makefile").read_text()
    found = re.search(r"^DEMO_MODEL := (.+)$", makefile, re.MULTILINE)
    assert found
    for text in (DOCKERFILE.read_text(), README):
        assert found[1] in text


def test_what_the_image_copies_is_let_in() -> None:
    let_in = set((ROOT / ".dockerignore").read_text().split())
    for line in re.findall(r"^COPY (?!--from)(.+)$", DOCKERFILE.read_text(), re.MULTILINE):
        for source in line.split()[:-1]:
            assert (ROOT / source).exists()
            assert f"!{source}" in let_in


@needs_analyze
def test_the_unit_is_valid(tmp_path: Path) -> None:
    unit = tmp_path / UNIT.name  # verify wants the program to exist
    unit.write_text(UNIT.read_text().replace("/opt/swarmd/bin/swarmd", sys.executable))
    done = subprocess.run(
        ["systemd-analyze", "verify", str(unit)], capture_output=True, text=True, check=False
    )
    complaints = [line for line in done.stderr.splitlines() if line.startswith((UNIT.name, "/"))]
    assert (done.returncode, complaints) == (0, [])


@needs_analyze
def test_the_unit_is_as_confined_as_the_readme_says() -> None:
    done = subprocess.run(
        ["systemd-analyze", "security", "--offline=true", str(UNIT)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    found = re.search(r"exposure level for \S+: ([\d.]+)", done.stdout)
    if found is None:
        pytest.skip(f"this systemd-analyze does not rate files: {done.stderr.strip()}")
    written = re.search(r"exposure ([\d.]+) of 10", README)
    assert written
    assert float(found[1]) <= float(written[1])
