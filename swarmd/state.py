"""The state folder: identities, known peers, measured speeds. One folder serves all of a user's
daemons on a machine; each daemon takes an identity of its own.

============================ ================================================================
`identity/N.key`             32 raw bytes, mode 0600; locked by the daemon that uses it
`identity/ID.old`            the same, of an identity that was given up; ID is its peer id
`peers.json`                 contacts that answered lately (see :mod:`swarmd.dht.peers_file`)
`peers-SWARM.json`           the same, of a private swarm
`running/PEER.json`          nodes that run now (see :mod:`swarmd.running`)
`throughput.json`            speeds measured on this machine
`evidence.json`              peers that gave wrong outputs (see :mod:`swarmd.client.evidence`)
`chat_history`               lines typed into `swarmd chat`, mode 0600
============================ ================================================================
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import platformdirs

from swarmd.atomic_file import write_file
from swarmd.errors import StateError
from swarmd.identity import Identity, PeerId
from swarmd.swarm_key import PUBLIC_SWARM_KEY, KeyRing, SwarmKey

try:
    import fcntl
except ImportError:  # Windows: no advisory locks; run one daemon for each state folder
    fcntl = None  # type: ignore[assignment]

__all__ = ["Slot", "StateFolder", "default_state_path"]

MAX_IDENTITIES = 64


def default_state_path() -> Path:
    """`$SWARMD_STATE`, or the platform's folder for a user's state."""
    chosen = os.environ.get("SWARMD_STATE")
    return Path(chosen) if chosen else Path(platformdirs.user_state_dir("swarmd", appauthor=False))


@dataclass(frozen=True, slots=True)
class Slot:
    """The public half of an identity, and whether a process holds it."""

    number: int
    public_key: bytes
    in_use: bool

    @property
    def peer_id(self) -> PeerId:
        return PeerId.of_public_key(self.public_key)


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

    def peers_file(self, keys: KeyRing) -> Path:
        """One file for each swarm, so that contacts of one are not asked for another. When a key
        changes, the contacts that were known under the one before are taken along.

        Raises StateError if that cannot be written.
        """
        path = self._peers_file(keys.current)
        if keys.previous is not None and not path.exists():
            with contextlib.suppress(FileNotFoundError):
                try:
                    write_file(path, self._peers_file(keys.previous).read_bytes())
                except FileNotFoundError:
                    raise
                except OSError as error:
                    raise StateError(f"cannot write {path}: {error.strerror}") from error
        return path

    def _peers_file(self, key: SwarmKey) -> Path:
        public = key == PUBLIC_SWARM_KEY
        return self.path / ("peers.json" if public else f"peers-{key.swarm_id.hex()[:16]}.json")

    @property
    def throughput_file(self) -> Path:
        return self.path / "throughput.json"

    @property
    def evidence_file(self) -> Path:
        return self.path / "evidence.json"

    @property
    def chat_history(self) -> Path:
        return self.path / "chat_history"

    @contextlib.contextmanager
    def identity(self) -> Iterator[Identity]:
        """The first identity that no other process uses, made if need be; locked meanwhile.

        Raises StateError when it cannot be read or written.
        """
        file, identity = self._take_identity(self.path / "identity")
        with file:  # the lock ends with it
            yield identity

    def slots(self) -> list[Slot]:
        """The identities of this folder, without taking any. Raises StateError."""
        found = []
        folder = self.path / "identity"
        for number in range(MAX_IDENTITIES):
            path = folder / f"{number}.key"
            try:
                if not path.exists():
                    continue
                key = path.read_bytes()
                file = self._locked(path)
            except OSError as error:
                raise StateError(f"cannot read {path}: {error.strerror}") from error
            if file is not None:
                file.close()
            if not key:  # made by a process that has not written it yet
                continue
            try:
                identity = Identity(key)
            except ValueError as error:
                raise StateError(_not_a_key(path)) from error
            found.append(Slot(number, identity.public_key, file is None))
        return found

    def renew_identity(self) -> Path | None:
        """Make another identity for slot 0; the file in which the old one is kept, if there was
        one. Raises StateError, also while a process uses the old one."""
        folder = self.path / "identity"
        path = folder / "0.key"
        try:
            folder.mkdir(exist_ok=True, mode=0o700)
            file = self._locked(path)
            if file is None:
                raise StateError(f"a process uses {path}; stop it, then make another identity")
            with file:
                kept = None
                if file.read(1):
                    file.seek(0)
                    kept = folder / f"{self._read(path, file).peer_id}.old"
                    path.rename(kept)  # the lock goes with the old file
            with self._new_file(path) as fresh:
                self._read(path, fresh)
        except OSError as error:
            raise StateError(f"cannot write {path}: {error.strerror}") from error
        return kept

    @staticmethod
    def _new_file(path: Path) -> IO[bytes]:
        return os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT, 0o600), "r+b")

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
            raise StateError(_not_a_key(path)) from error


def _not_a_key(path: Path) -> str:
    return f"{path} is not an identity (32 bytes); move it away to get a new one"
