"""The state folder, and the identities in it."""

from __future__ import annotations

import stat
import subprocess
import sys
from pathlib import Path

import pytest

from swarmd.errors import (
    StateError,
)
from swarmd.state import StateFolder


def test_an_identity_is_kept_and_handles_get_different_ones(tmp_path: Path) -> None:
    folder = tmp_path / "state"
    with StateFolder(folder).identity() as first, StateFolder(folder).identity() as second:
        assert first.peer_id != second.peer_id
    with StateFolder(folder).identity() as again:
        assert again.peer_id == first.peer_id, "the first that is free"
    with StateFolder(folder).identity() as one, StateFolder(folder).identity() as two:
        assert (one.peer_id, two.peer_id) == (first.peer_id, second.peer_id)


def test_processes_get_different_identities(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from swarmd.state import StateFolder\n"
        "with StateFolder(Path(sys.argv[1])).identity() as identity:\n"
        "    print(identity.peer_id, flush=True); sys.stdin.read()\n"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]

    def start() -> subprocess.Popen[str]:
        return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    with start() as one, start() as two:
        assert one.stdout is not None
        assert two.stdout is not None
        found = {one.stdout.readline().strip(), two.stdout.readline().strip()}
        with StateFolder(tmp_path).identity() as ours:
            found.add(str(ours.peer_id))
        one.communicate()
        two.communicate()
    assert len(found) == 3
    assert "" not in found
    with StateFolder(tmp_path).identity() as again:
        assert str(again.peer_id) in found, "a process that ended left its identity to the next"


def test_modes(tmp_path: Path) -> None:
    folder = tmp_path / "state"
    with StateFolder(folder).identity():
        pass
    assert stat.S_IMODE((folder / "identity" / "0.key").stat().st_mode) == 0o600
    assert stat.S_IMODE((folder / "identity").stat().st_mode) == 0o700
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert len((folder / "identity" / "0.key").read_bytes()) == 32


@pytest.mark.parametrize("content", [b"x", b"k" * 31, b"k" * 33, b"-----BEGIN PRIVATE KEY-----"])
def test_a_garbage_key_file_is_refused_and_kept(tmp_path: Path, content: bytes) -> None:
    key = tmp_path / "identity" / "0.key"
    key.parent.mkdir()
    key.write_bytes(content)
    with pytest.raises(StateError, match="is not an identity"), StateFolder(tmp_path).identity():
        pass
    assert key.read_bytes() == content


def test_a_garbage_key_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "identity").mkdir()
    (tmp_path / "identity" / "0.key").write_bytes(b"garbage")
    with pytest.raises(StateError, match=r"0\.key"), StateFolder(tmp_path).identity():
        pass


def test_an_error_of_the_body_is_not_taken_for_one_of_the_folder(tmp_path: Path) -> None:
    with pytest.raises(ConnectionResetError), StateFolder(tmp_path).identity():
        raise ConnectionResetError("of the daemon, not of the folder")


def test_a_folder_that_cannot_be(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StateError, match="--state-dir"):
        StateFolder(tmp_path / "file" / "state")
    (tmp_path / "state").mkdir()
    (tmp_path / "state" / "identity").write_text("")
    with pytest.raises(StateError), StateFolder(tmp_path / "state").identity():
        pass
