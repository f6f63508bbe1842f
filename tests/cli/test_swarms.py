"""`swarmd key`, `swarmd invite`, and how `--peer`, `--invite` and `--swarm-key` go together."""

from __future__ import annotations

from pathlib import Path

import pytest

from swarmd.cli import main
from swarmd.cli.membership import membership
from swarmd.cli.options import _nodes
from swarmd.errors import UsageError
from swarmd.identity import PeerId
from swarmd.invite import Contact, Invite
from swarmd.key_file import read_key_file, write_key_file
from swarmd.peers import Address
from swarmd.running import RunningNode, noted, running_nodes
from swarmd.state import StateFolder
from swarmd.swarm_key import PUBLIC_KEYS, KeyRing, SwarmKey

HERE = Address("192.0.2.7", 31330)
PEER, OTHER = PeerId(b"p" * 20), PeerId(b"q" * 20)
KEY = SwarmKey(b"k" * 32)


def swarmd(*arguments: object) -> int:
    with pytest.raises(SystemExit) as ended:
        main([str(argument) for argument in arguments])
    return int(ended.value.code or 0)


def test_key_commands(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "home.key"
    assert swarmd("key", "new", path) == 0
    first = read_key_file(path).current
    assert swarmd("key", "new", path) == 2
    assert read_key_file(path).current == first
    assert swarmd("key", "rotate", path) == 0
    ring = read_key_file(path)
    assert ring.previous == first
    capsys.readouterr()
    assert swarmd("key", "show", path) == 0
    shown = capsys.readouterr().out
    assert first.swarm_id.hex() in shown
    assert first.text not in shown
    assert swarmd("key", "show", "--secret", path) == 0
    assert capsys.readouterr().out == ring.text
    assert swarmd("key", "new", "--force", path) == 0
    assert read_key_file(path).previous is None


def test_an_option_takes_an_invite_as_well() -> None:
    invite = Invite((Contact(PEER, HERE),))
    found = _nodes(None, None, [invite.text, "192.0.2.8:1"])  # type: ignore[arg-type]
    assert found == (invite, Address("192.0.2.8", 1))
    with pytest.raises(UsageError, match="whole invite"):
        _nodes(None, None, [invite.text[:-2]])  # type: ignore[arg-type]


def test_an_invite_brings_addresses_ids_and_key() -> None:
    invite = Invite((Contact(PEER, HERE), Contact(OTHER, Address("192.0.2.8", 1))), KEY)
    found = membership([Address("192.0.2.9", 2), invite], [], None)
    assert found.keys == KeyRing(KEY)
    assert found.addresses == (Address("192.0.2.9", 2), HERE, Address("192.0.2.8", 1))
    assert found.expected == {HERE: PEER, Address("192.0.2.8", 1): OTHER}
    assert membership([], [], None).keys == PUBLIC_KEYS


def test_invites_of_another_swarm_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "home.key"
    write_key_file(path, KeyRing(SwarmKey(b"n" * 32), KEY))
    private, public = (Invite((Contact(PEER, HERE),), key) for key in (KEY, None))
    assert membership([], [private], path).keys == read_key_file(path)  # the key before is ours
    for invites in ([public], [Invite((Contact(PEER, HERE),), SwarmKey(b"x" * 32))]):
        with pytest.raises(UsageError, match="another swarm"):
            membership([], invites, path)
    with pytest.raises(UsageError, match="another swarm"):
        membership([], [private, public], None)


def test_invite_of_a_running_node(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    node = RunningNode(PEER, HERE, PUBLIC_KEYS.current.swarm_id)
    assert swarmd("invite", "--state-dir", tmp_path) == 1
    with noted(tmp_path, node):
        capsys.readouterr()
        assert swarmd("invite", "--state-dir", tmp_path) == 0
        assert Invite.parse(capsys.readouterr().out) == Invite((Contact(PEER, HERE),))
        elsewhere = Address("home.example", 4000)
        assert swarmd("invite", "--state-dir", tmp_path, "--address", elsewhere) == 0
        assert Invite.parse(capsys.readouterr().out).contacts == (Contact(PEER, elsewhere),)
    assert swarmd("invite", "--state-dir", tmp_path) == 1


def test_invite_of_a_private_swarm_has_its_key(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "home.key"
    write_key_file(path, KeyRing(KEY))
    local = Address("127.0.0.1", 31330)
    with noted(tmp_path, RunningNode(PEER, local, KEY.swarm_id, path)):
        assert swarmd("invite", "--state-dir", tmp_path) == 0
        said = capsys.readouterr()
        assert Invite.parse(said.out).key == KEY
        assert "lets in anybody" in said.err
        assert "Only this machine" in said.err
        with noted(tmp_path, RunningNode(OTHER, HERE, PUBLIC_KEYS.current.swarm_id)):
            assert swarmd("invite", "--state-dir", tmp_path) == 2  # which of the two?
            assert "--swarm-key" in capsys.readouterr().err
            assert swarmd("invite", "--state-dir", tmp_path, "--swarm-key", path) == 0
            assert Invite.parse(capsys.readouterr().out).contacts == (Contact(PEER, local),)
    with noted(tmp_path, RunningNode(PEER, local, KEY.swarm_id)):  # it joined by an invite
        assert swarmd("invite", "--state-dir", tmp_path) == 2


def test_notes_that_were_left_behind_count_for_nothing(tmp_path: Path) -> None:
    with noted(tmp_path, RunningNode(PEER, HERE, KEY.swarm_id)):
        folder = tmp_path / "running"
        (copied,) = folder.iterdir()
        left = folder / f"{OTHER}.json"
        left.write_bytes(copied.read_bytes())
        (folder / "garbage.json").write_bytes(b"\xff{")
        assert [node.peer_id for node in running_nodes(tmp_path)] == [PEER]
    assert running_nodes(tmp_path) == []
    assert running_nodes(tmp_path / "nowhere") == []


def test_each_swarm_has_its_peers_file_and_a_rotation_takes_it_along(tmp_path: Path) -> None:
    state = StateFolder(tmp_path)
    assert state.peers_file(PUBLIC_KEYS).name == "peers.json"
    old = state.peers_file(KeyRing(KEY))
    assert old.name != "peers.json"
    rotated = KeyRing(SwarmKey(b"n" * 32), KEY)
    assert not state.peers_file(rotated).exists()
    old.write_text("known")
    new = state.peers_file(rotated)
    assert new != old
    assert new.read_text() == "known"
    new.write_text("more")
    assert state.peers_file(rotated).read_text() == "more"
