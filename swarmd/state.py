"""The state folder: identities, known peers, measured speeds. One folder serves all of a user's
daemons on a machine; each daemon takes an identity of its own.

============================ ================================================================
`identity/N.key`             32 raw bytes, mode 0600; locked by the daemon that uses it
`peers.json`                 contacts that answered lately (see :mod:`swarmd.dht.peers_file`)
`throughput.json`            speeds measured on this machine
`evidence.json`              peers that gave wrong outputs (see :mod:`swarmd.client.evidence`)
============================ ================================================================
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import platformdirs

from swarmd.errors import StateError
from swarmd.identity import Identity

try:
    import fcntl
except ImportError:  # Windows: no advisory locks; run one daemon for each state folder
    fcntl = None  # type: ignore[assignment]

__all__ = ["StateFolder", "default_state_path"]

MAX_IDENTITIES = 64


def default_state_path() -> Path:
    """`$SWARMD_STATE`, or the platform's folder for a user's state."""
    chosen = os.environ.get("SWARMD_STATE")
    return Path(chosen) if chosen else Path(platformdirs.user_state_dir("swarmd", appauthor=False))


class StateFolder:
    """Paths in the state folder, and its identities. Creates the folder, mode 0700."""

    def __init__(self, path: Path | None = None) -> None:
        """Raises StateError if the folder cannot be made."""
        self.path = path or default_state_path()
        try:
            self.path.mkdir(parents=True, exist_ok=True, mode=0o700)
        except OSError as error:
            raise StateError(
                f"cannot make the state folder {self.path}: {error.strerror}; choose another by "
                "--state-dir or $SWARMD_STATE"
            ) from error

    @property
    def peers_file(self) -> Path:
        return self.path / "peers.json"

    @property
    def throughput_file(self) -> Path:
        return self.path / "throughput.json"

    @property
    def evidence_file(self) -> Path:
        return self.path / "evidence.json"

    @contextlib.contextmanager
    def identity(self) -> Iterator[Identity]:
        """The first identity that no other process uses, made if need be; locked meanwhile.

        Raises StateError when it cannot be read or written.
        """
        file, identity = self._take_identity(self.path / "identity")
        with file:  # the lock ends with it
            yield identity

    def _take_identity(self, folder: Path) -> tuple[IO[bytes], Identity]:
        """The lowest unused key file, locked, and the identity in it."""
        try:
            folder.mkdir(exist_ok=True, mode=0o700)
            for number in range(MAX_IDENTITIES):
                path = folder / f"{number}.key"
                file = self._locked(path)
                if file is not None:
                    return file, self._read(path, file)
        except OSError as error:
            raise StateError(f"cannot use the identities in {folder}: {error.strerror}") from error
        raise StateError(f"all {MAX_IDENTITIES} identities in {folder} are in use")

    @staticmethod
    def _locked(path: Path) -> IO[bytes] | None:
        file = os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT, 0o600), "r+b")
        try:
            if fcntl is not None:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.close()
            return None
        return file

    @staticmethod
    def _read(path: Path, file: IO[bytes]) -> Identity:
        key = file.read()
        if not key:
            identity = Identity.generate()
            file.write(identity.private_bytes())
            file.flush()
            os.fsync(file.fileno())
            return identity
        try:
            return Identity(key)
        except ValueError as error:
            file.close()
            raise StateError(
                f"{path} is not an identity (32 bytes); move it away to get a new one"
            ) from error
