"""Who may ask: API keys, as hashes, and the file that they may stand in."""

from __future__ import annotations

import hashlib
import hmac
import os
from collections.abc import Iterable
from pathlib import Path

from swarmd.errors import UsageError

__all__ = ["ApiKeys", "read_keys"]

SHORTEST = 16
"""Characters: a shorter key can be guessed over a network."""
MAX_BYTES = 1 << 16


class ApiKeys:
    """A set of keys; without any, everybody may ask."""

    def __init__(self, keys: Iterable[str] = ()) -> None:
        """Raises UsageError for a key that is too short, or that no header can hold."""
        self._hashes = []
        for key in keys:
            if len(key) < SHORTEST or not key.isascii() or not key.isprintable() or " " in key:
                raise UsageError(
                    f"an API key has {SHORTEST} printable ASCII characters or more, no spaces; "
                    "one is made by: openssl rand -hex 24"
                )
            self._hashes.append(_hash(key))

    def __bool__(self) -> bool:
        return bool(self._hashes)

    def holder(self, authorization: str) -> bytes | None:
        """Which key an `Authorization: Bearer KEY` header holds (RFC 6750), as its hash; None for
        none of them. Takes as long for a wrong key as for a right one."""
        scheme, _, given = authorization.partition(" ")
        asked = _hash(given.strip())
        found = [known for known in self._hashes if hmac.compare_digest(known, asked)]
        return found[0] if found and scheme.lower() == "bearer" else None


def _hash(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()


def read_keys(path: Path) -> list[str]:
    """The keys in a file, one a line; `#` begins a remark. Raises UsageError, also where others
    on this machine may read the file."""
    try:
        with path.open("rb") as file:
            if os.name == "posix" and os.fstat(file.fileno()).st_mode & 0o077:
                raise UsageError(
                    f"others on this machine may read the API keys in {path}; run: chmod 600 {path}"
                )
            raw = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise UsageError(f"cannot read the API keys in {path}: {error.strerror}") from error
    try:
        lines = [line.partition("#")[0].strip() for line in raw.decode("ascii").splitlines()]
    except UnicodeDecodeError as error:
        raise UsageError(f"{path}: API keys are ASCII text, one a line") from error
    keys = [line for line in lines if line]
    if not keys or len(raw) > MAX_BYTES:
        raise UsageError(f"{path} holds no API key, or too many; write one a line")
    return keys
