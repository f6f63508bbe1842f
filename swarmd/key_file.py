"""The file that holds the key of a private swarm: read and written with care for who may read it.

Its text is that of :class:`swarmd.swarm_key.KeyRing`. It has mode 0600; one that others may read
is refused, so that a key is not in use which half of the machine knows.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path

from swarmd.atomic_file import write_file
from swarmd.errors import UsageError
from swarmd.swarm_key import KeyRing

__all__ = ["read_key_file", "write_key_file"]

MAX_BYTES = 4096
"""Two keys and some remarks; a longer file is something else."""


def read_key_file(path: Path) -> KeyRing:
    """The keys in a file. Raises UsageError, which never repeats what the file holds."""
    try:
        # not to wait where a pipe was named; a key file is a plain file
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
        with open(descriptor, "rb") as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise UsageError(f"{path} is not a plain file; a swarm key lies in one")
            if os.name == "posix" and status.st_mode & 0o077:
                raise UsageError(
                    f"others on this machine may read the swarm key {path}; run: chmod 600 {path}"
                )
            raw = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise UsageError(
            f"cannot read the swarm key {path}: {error.strerror}; make one by: swarmd key new"
        ) from error
    try:
        if len(raw) > MAX_BYTES:
            raise UsageError(f"longer than {MAX_BYTES} bytes")
        return KeyRing.parse(raw.decode("ascii"))
    except UnicodeDecodeError as error:
        raise UsageError(f"{path} is not a swarm key file; make one by: swarmd key new") from error
    except UsageError as error:
        raise UsageError(f"{path}: {error}") from error


def write_key_file(path: Path, keys: KeyRing, *, replace: bool = False) -> None:
    """Write the keys, mode 0600, whole or not at all. Raises UsageError, also where there is a
    file already and `replace` is false."""
    try:
        write_file(path, keys.text, replace=replace)
    except FileExistsError as error:
        raise UsageError(
            f"{path} is there already; its swarm would lose its key. Name another file, or say "
            "--force"
        ) from error
    except OSError as error:
        raise UsageError(f"cannot write the swarm key {path}: {error.strerror}") from error
