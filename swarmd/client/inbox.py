"""What the hops of one session say, in the order in which it came."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Iterator
from typing import TypeAlias

from swarmd.client.hop_link import HopEvent, HopLink
from swarmd.errors import PeerFailure, RemoteError
from swarmd.tasks import TaskOwner

__all__ = ["Inbox", "Incoming"]

Incoming: TypeAlias = tuple[int, HopLink, HopEvent | PeerFailure | RemoteError, float]
"""Which hop, over which link, what it said or how it ended, and when (`time.monotonic`)."""


class Inbox:
    """Reads each hop's link by a task of `owner`. What the links' own queues may hold is bounded
    by how many steps are under way, so this is too."""

    def __init__(self, owner: TaskOwner) -> None:
        self._owner = owner
        self._readers: dict[int, asyncio.Task[None]] = {}
        self._queue: deque[Incoming] = deque()
        self._came = asyncio.Event()

    def read(self, key: int, link: HopLink) -> None:
        """Read `link` for hop `key` until it ends, which is the last that it says."""
        self._readers[key] = self._owner.spawn(self._read(key, link), name=f"hop {key}")

    def leave(self, key: int) -> None:
        """Read no more for this hop."""
        if (reader := self._readers.pop(key, None)) is not None:
            reader.cancel()

    def wake(self) -> None:
        """End a wait: there is something else to see to."""
        self._came.set()

    def take(self) -> Iterator[Incoming]:
        """What has come so far."""
        while self._queue:
            yield self._queue.popleft()

    async def wait(self, seconds: float | None) -> bool:
        """Whether something comes, or `wake` is called, within so many seconds (None: for ever)."""
        if self._queue:
            return True
        self._came.clear()
        try:
            async with asyncio.timeout(seconds):
                await self._came.wait()
        except TimeoutError:
            return False
        return True

    async def _read(self, key: int, link: HopLink) -> None:
        while True:
            event: HopEvent | PeerFailure | RemoteError
            try:
                event = await link.receive()
            except (PeerFailure, RemoteError) as error:
                event = error
            self._queue.append((key, link, event, time.monotonic()))
            self._came.set()
            if isinstance(event, PeerFailure | RemoteError):
                return
