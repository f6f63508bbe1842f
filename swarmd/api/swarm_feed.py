"""`/swarm` and `/swarm/events`: what the web page shows, once or as it changes."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any

from aiohttp import web

from swarmd.api.errors import AGAIN_IN, ApiError
from swarmd.api.stream import EventStream
from swarmd.api.swarm_view import AnswerSeen, ModelSeen, TokenRate, changes, snapshot
from swarmd.errors import SwarmdError
from swarmd.tasks import TaskOwner, periodic

__all__ = ["SwarmFeed", "SwarmSource"]

log = logging.getLogger(__name__)

TICK = 1.0
"""Seconds between events at least: what a person can follow."""
LOOK = 3.0
"""Seconds after which announcements are fetched anew while somebody looks."""
PATIENCE = 5.0
"""Seconds that `/swarm` waits for announcements; then what is known must do."""
MAX_LISTENERS = 32
"""Each holds a connection, and one snapshot in a buffer."""
WRITE_TIMEOUT = 10.0
"""Seconds for a listener to read on; a page that comes back gets a whole snapshot."""


@dataclass(frozen=True, slots=True)
class SwarmSource:
    """Where the feed has its facts from; any HTTP server of swarmd can give them."""

    refresh: Callable[[float], Awaitable[None]]
    """Look again if what is known is older than so many seconds. May raise SwarmdError."""
    models: Callable[[], Sequence[ModelSeen]]
    answers: Callable[[], Sequence[AnswerSeen]]
    tokens: Callable[[], int]
    """New tokens since the start."""


class SwarmFeed:
    """One snapshot a tick, for all listeners. `lifetime` is for `Application.cleanup_ctx`."""

    def __init__(
        self,
        source: SwarmSource,
        *,
        keep_alive: float,
        tick: float = TICK,
        look: float = LOOK,
        max_listeners: int = MAX_LISTENERS,
        write_timeout: float = WRITE_TIMEOUT,
    ) -> None:
        """Times in seconds; `keep_alive` is the silence after which a comment is sent."""
        self.listeners = 0
        self._source = source
        self._keep_alive = keep_alive
        self._tick = tick
        self._look = look
        self._max_listeners = max_listeners
        self._write_timeout = write_timeout
        self._rate = TokenRate()
        self._latest: dict[str, Any] = {}
        self._ticked = asyncio.Event()
        self._came = asyncio.Event()
        self._closing = False

    async def lifetime(self, app: web.Application) -> AsyncIterator[None]:
        async with TaskOwner("swarm-feed") as owner:
            sample = periodic(self._sample, interval=self._tick, jitter=0)
            look = periodic(self._look_again, interval=self._look, wake=self._came)
            # the page is no reason to stop a node
            owner.spawn(sample, name="sample", errors="log")
            owner.spawn(look, name="look", errors="log")
            yield

    async def close(self, app: web.Application) -> None:
        """For `Application.on_shutdown`: streams without end must not hold a shutdown up."""
        self._closing = True
        self._ticked.set()

    async def once(self, request: web.Request) -> web.Response:
        """The handler of `/swarm`."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(PATIENCE):
                await self._refresh()
        return web.json_response(self._snapshot(), headers={"Cache-Control": "no-store"})

    async def events(self, request: web.Request) -> web.StreamResponse:
        """The handler of `/swarm/events`: a snapshot, then the keys of it that changed.

        Raises ApiError (503) where too many listen.
        """
        if self.listeners >= self._max_listeners:
            raise ApiError(
                503,
                f"{self.listeners} pages listen already; close one of them",
                code="too_many_listeners",
                retry_after=AGAIN_IN,
            )
        self.listeners += 1
        self._came.set()
        stream = EventStream(request, write_timeout=self._write_timeout)
        try:
            await stream.open()
            await self._tell(stream)
        except (TimeoutError, ConnectionError) as error:
            log.info("a page is gone: %s", error or "reads no more")
            if request.transport is not None:
                request.transport.abort()
        finally:
            self.listeners -= 1
        return stream.response

    async def _tell(self, stream: EventStream) -> None:
        seen: dict[str, Any] = {}
        latest, spoke = self._snapshot(), time.monotonic()
        while not self._closing:
            ticked = self._ticked
            now = time.monotonic()
            if news := changes(seen, latest):
                await stream.send(news)
                seen, spoke = latest, now
            elif now - spoke >= self._keep_alive:
                await stream.keep_alive()
                spoke = now
            await ticked.wait()
            latest = self._latest

    async def _sample(self) -> None:
        self._rate.sample(self._source.tokens(), time.monotonic())
        if self.listeners:
            self._latest = self._snapshot()
            ticked, self._ticked = self._ticked, asyncio.Event()
            ticked.set()

    async def _look_again(self) -> None:
        if self.listeners:
            await self._refresh()

    async def _refresh(self) -> None:
        try:
            await self._source.refresh(self._look)
        except SwarmdError as error:
            log.debug("the page shows what was known: %s", error)

    def _snapshot(self) -> dict[str, Any]:
        source = self._source
        return snapshot(source.models(), source.answers(), tuple(self._rate.rates))
