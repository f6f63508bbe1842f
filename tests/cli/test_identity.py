"""`swarmd identity`: shows who the nodes are, and makes another without losing the old one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from click.testing import CliRunner

from swarmd.cli import cli
from swarmd.cli.options import allow_option
from swarmd.errors import StateError, UsageError
from swarmd.identity import Identity
from swarmd.state import StateFolder


def shown(state: Path) -> list[dict[str, Any]]:
    done = CliRunner().invoke(cli, ["identity", "show", "--json", "--state-dir", str(state)])
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout)["identities"]


def new(state: Path) -> Any:
    return CliRunner().invoke(cli, ["identity", "new", "--state-dir", str(state)])


def test_show_makes_the_first_and_says_which_is_in_use(tmp_path: Path) -> None:
    (first,) = shown(tmp_path)
    state = StateFolder(tmp_path)
    with state.identity() as one, state.identity() as two:
        assert first["peer_id"] == str(one.peer_id)
        found = shown(tmp_path)
        assert [entry["peer_id"] for entry in found] == [str(one.peer_id), str(two.peer_id)]
        assert [entry["public_key"] for entry in found] == [
            one.public_key.hex(), two.public_key.hex(),
        ]  # fmt: skip
        assert [entry["in_use"] for entry in found] == [True, True]
    assert [entry["in_use"] for entry in shown(tmp_path)] == [False, False]
    text = CliRunner().invoke(cli, ["identity", "show", "--state-dir", str(tmp_path)]).stdout
    assert first["peer_id"] in text
    assert "free" in text


def test_new_keeps_the_old_one_aside(tmp_path: Path) -> None:
    (before,) = shown(tmp_path)
    secret = (tmp_path / "identity" / "0.key").read_bytes()
    done = new(tmp_path)
    assert done.exit_code == 0, done.output
    (after,) = shown(tmp_path)
    assert after["peer_id"] != before["peer_id"]
    kept = tmp_path / "identity" / f"{before['peer_id']}.old"
    assert kept.read_bytes() == secret
    for file in (tmp_path / "identity").iterdir():
        assert file.stat().st_mode & 0o777 == 0o600
    with StateFolder(tmp_path).identity() as identity:
        assert str(identity.peer_id) == after["peer_id"]


def test_new_in_an_empty_folder_and_while_a_node_runs(tmp_path: Path) -> None:
    assert new(tmp_path).exit_code == 0
    (only,) = shown(tmp_path)
    assert [file.name for file in (tmp_path / "identity").iterdir()] == ["0.key"]
    with StateFolder(tmp_path).identity():
        done = new(tmp_path)
        assert isinstance(done.exception, StateError)
        assert "stop it" in str(done.exception)
    assert shown(tmp_path) == [only]


def test_a_broken_key_is_one_clear_line(tmp_path: Path) -> None:
    shown(tmp_path)
    (tmp_path / "identity" / "0.key").write_bytes(b"short")
    done = CliRunner().invoke(cli, ["identity", "show", "--state-dir", str(tmp_path)])
    assert isinstance(done.exception, StateError)
    assert "is not an identity" in str(done.exception)


def test_allow_takes_peer_ids_only() -> None:
    import click

    found: list[object] = []
    command = click.command()(allow_option(lambda allow: found.append(allow)))
    peer = Identity.generate().peer_id
    CliRunner().invoke(command, ["--allow", str(peer)])
    CliRunner().invoke(command, [])
    assert found == [frozenset([peer]), None]
    for wrong in ("nobody", "12", str(peer) + "00"):
        done = CliRunner().invoke(command, ["--allow", wrong])
        assert isinstance(done.exception, UsageError)
        assert "swarmd identity show" in str(done.exception)
