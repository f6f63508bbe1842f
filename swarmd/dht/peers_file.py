"""Peers to try at the next start: a small JSON file that several nodes of a machine share."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from swarmd.atomic_file import write_file
from swarmd.dht.addresses import is_sendable
from swarmd.errors import StateError
from swarmd.identity import PEER_ID_BYTES, PeerId
from swarmd.peers import Address

try:
    import fcntl
except ImportError:  # Windows has no fcntl; a rename is atomic there too, only merging is not
    fcntl = None  # type: ignore[assignment]

__all__ = ["Entry", "PeersFile"]

Entry = tuple[PeerId, Address, float]
"""A peer, where it was, and when it last answered in seconds since the epoch."""

MAX_PEERS = 200
"""Entries kept, those that answered last."""
MAX_FILE_BYTES = 1 << 20
"""A larger file is not ours."""
LOCK_TRIES = 100
LOCK_PAUSE = 0.01
"""Seconds; after 100 such pauses it is written without the lock: a stopped process may hold it."""


class PeersFile:
    """`{"peers": [{"id", "host", "port", "last_ok"}]}`, `last_ok` in seconds since the epoch.

    Writing is atomic (a new file, fsync, rename) and merges with what is on disk. A file that is
    missing, cut short or garbage counts as empty. The plain methods block: for milliseconds,
    for a second at most while others write. Those named `async_` do the same in a thread and are
    what an event loop may call; a write goes on to its end when the caller is cancelled.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)

    def load(self) -> list[Entry]:
        """The peers on disk that answered last, newest first. Never raises."""
        try:
            with self.path.open("rb") as file:
                content = json.loads(file.read(MAX_FILE_BYTES))
            entries = [_entry(item) for item in content["peers"]]
        except (OSError, ValueError, TypeError, KeyError, RecursionError):
            return []
        return _newest(entry for entry in entries if entry is not None)

    def record(self, entries: Iterable[Entry]) -> None:
        """Note peers that answered. Raises StateError when the file cannot be written."""
        news = list(entries)
        self._update(lambda old: [*old, *news])

    def forget(self, ids: Iterable[PeerId]) -> None:
        """Remove peers. Raises StateError when the file cannot be written."""
        gone = set(ids)
        self._update(lambda old: [entry for entry in old if entry[0] not in gone])

    async def async_load(self) -> list[Entry]:
        """`load`, off the event loop."""
        return await asyncio.to_thread(self.load)

    async def async_record(self, entries: Iterable[Entry]) -> None:
        """`record`, off the event loop. `entries` are read before it waits."""
        await asyncio.to_thread(self.record, list(entries))

    async def async_forget(self, ids: Iterable[PeerId]) -> None:
        """`forget`, off the event loop. `ids` are read before it waits."""
        await asyncio.to_thread(self.forget, list(ids))

    def _update(self, change: Callable[[list[Entry]], list[Entry]]) -> None:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self._locked():
                self._write(_newest(change(self.load())))
        except OSError as exc:
            raise StateError(
                f"cannot write the peers file {self.path}: {exc.strerror or exc}; "
                "check the folder's owner and free space, or choose another state folder"
            ) from exc

    def _write(self, entries: list[Entry]) -> None:
        peers = [
            {"id": str(peer), "host": address.host, "port": address.port, "last_ok": last_ok}
            for peer, address, last_ok in entries
        ]
        write_file(self.path, json.dumps({"peers": peers}, indent=1))

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        if fcntl is None:
            yield
            return
        # The lock has a file of its own: the peers file itself is replaced at each write.
        with open(self.path.with_name(self.path.name + ".lock"), "ab") as file:
            for _ in range(LOCK_TRIES):
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    time.sleep(LOCK_PAUSE)
            yield


def _entry(item: object) -> Entry | None:
    if not isinstance(item, dict):
        return None
    peer, host, port, last_ok = (item.get(name) for name in ("id", "host", "port", "last_ok"))
    if not isinstance(peer, str) or not isinstance(host, str) or not isinstance(port, int):
        return None
    if not isinstance(last_ok, int | float) or not 0 <= last_ok < 1e12:  # NaN is refused as well
        return None
    if not is_sendable(host, port):
        return None
    try:
        raw = bytes.fromhex(peer)
    except ValueError:
        return None
    return (PeerId(raw), Address(host, port), float(last_ok)) if len(raw) == PEER_ID_BYTES else None


def _newest(entries: Iterable[Entry]) -> list[Entry]:
    """One entry an id, the newest; newest first."""
    best: dict[PeerId, Entry] = {}
    for entry in entries:
        if entry[0] not in best or entry[2] >= best[entry[0]][2]:
            best[entry[0]] = entry
    return sorted(best.values(), key=lambda entry: (-entry[2], entry[0]))[:MAX_PEERS]
