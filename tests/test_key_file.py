"""Key files: who may read them, what is kept, and that nothing is lost by writing one."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from swarmd.errors import UsageError
from swarmd.key_file import read_key_file, write_key_file
from swarmd.swarm_key import KeyRing, SwarmKey

RING = KeyRing(SwarmKey(b"a" * 32), SwarmKey(b"b" * 32))


def test_what_is_written_is_read_back_by_the_owner_alone(tmp_path: Path) -> None:
    path = tmp_path / "home.key"
    old = os.umask(0)
    try:
        write_key_file(path, RING)
    finally:
        os.umask(old)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert read_key_file(path) == RING
    assert list(tmp_path.iterdir()) == [path]


def test_a_file_is_not_replaced_by_accident(tmp_path: Path) -> None:
    path = tmp_path / "home.key"
    write_key_file(path, RING)
    other = KeyRing(SwarmKey(b"c" * 32))
    with pytest.raises(UsageError, match="--force"):
        write_key_file(path, other)
    assert read_key_file(path) == RING
    assert list(tmp_path.iterdir()) == [path]
    write_key_file(path, other, replace=True)
    assert read_key_file(path) == other


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o610, 0o602])
def test_a_file_of_others_is_refused_with_the_remedy(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "home.key"
    write_key_file(path, RING)
    path.chmod(mode)
    with pytest.raises(UsageError, match=f"chmod 600 {path}"):
        read_key_file(path)


@pytest.mark.parametrize("content", [b"", b"\xff\xfe", b"hello", b"#" * 5000, b"swarmd-key-1-aaaa"])
def test_a_file_that_holds_something_else(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "home.key"
    path.write_bytes(content)
    path.chmod(0o600)
    with pytest.raises(UsageError, match=r"home\.key"):
        read_key_file(path)


def test_what_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="swarmd key new"):
        read_key_file(tmp_path / "missing")
    with pytest.raises(UsageError, match="cannot read the swarm key"):
        read_key_file(tmp_path)
    os.mkfifo(tmp_path / "pipe", 0o600)
    with pytest.raises(UsageError, match="not a plain file"):
        read_key_file(tmp_path / "pipe")
    with pytest.raises(UsageError, match="cannot write"):
        write_key_file(tmp_path / "nowhere" / "home.key", RING)
