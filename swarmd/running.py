"""Which nodes run on this machine, as each notes it in the state folder: for `swarmd invite`.

A note is `running/<peer id>.json`, locked by its node for as long as that serves. So a note whose
lock is free was left behind by a node that died, and counts for nothing.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from swarmd.errors import StateError, UsageError
from swarmd.identity import PeerId
from swarmd.peers import Address, parse_address

try:
    import fcntl
except ImportError:  # Windows: a note that was left behind counts there until it is removed
    fcntl = None  # type: ignore[assignment]

__all__ = ["RunningNode", "noted", "running_nodes"]

MAX_NOTES = 64
"""Read at most: as many as a state folder has identities."""
MAX_NOTE_BYTES = 16384
"""A longer note is not ours."""


@dataclass(frozen=True, slots=True)
class RunningNode:
    """A node that serves: who it is, what others dial, its swarm's id, its key file if any."""

    peer_id: PeerId
    address: Address
    swarm_id: bytes
    key_file: Path | None = None


@contextlib.contextmanager
def noted(state: Path, node: RunningNode) -> Iterator[None]:
    """Note that `node` runs while the block lasts. Raises StateError if that cannot be written."""
    path = state / "running" / f"{node.peer_id}.json"
    content = {
        "id": str(node.peer_id),
        "address": str(node.address),
        "swarm": node.swarm_id.hex(),
        "key_file": None if node.key_file is None else str(node.key_file.absolute()),
    }
    try:
        path.parent.mkdir(mode=0o700, exist_ok=True)
        file = os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o600), "w")
        with contextlib.suppress(OSError):
            if fcntl is not None:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        json.dump(content, file)
        file.flush()
    except OSError as error:
        raise StateError(f"cannot note the running node in {path}: {error.strerror}") from error
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            path.unlink()
        file.close()


def running_nodes(state: Path) -> list[RunningNode]:
    """The nodes that run now, by peer id. Never raises: what is no note of ours is passed over."""
    try:
        paths = sorted((state / "running").glob("*.json"))[:MAX_NOTES]
    except OSError:
        return []
    return [node for path in paths if (node := _read(path)) is not None]


def _read(path: Path) -> RunningNode | None:
    try:
        with path.open("rb") as file:
            if fcntl is not None and not _is_locked(file.fileno()):
                return None
            content = json.loads(file.read(MAX_NOTE_BYTES))
        key_file = content["key_file"]
        return RunningNode(
            PeerId(bytes.fromhex(content["id"])),
            parse_address(content["address"]),
            bytes.fromhex(content["swarm"]),
            None if key_file is None else Path(key_file),
        )
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError, UsageError):
        return None


def _is_locked(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    return False
