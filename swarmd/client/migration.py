"""A second chain for a session that goes on: opened, fed and tried in the background.

What it runs next is decided by :mod:`swarmd.routing.precopy`; here that is carried out over a
:class:`ChainSession` of its own, one short chunk at a time.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import time
from collections.abc import AsyncIterator, Callable

from swarmd.client.chain_session import ChainSession
from swarmd.routing.precopy import Precopy

__all__ = ["Migration", "NotWorthIt"]

TRIALS = 3
"""Steps of one position that are timed on the new chain. The fastest counts: what else runs on the
same machines at that moment can only make them slower."""
LINK_SECONDS = 0.5
"""To wait for the hops to link themselves to one another before anything is timed."""
LONGEST_PAUSE = 1.0
"""Between two chunks, in seconds; a pause is as long as the chunk before it took."""
LOOK_EVERY = 0.5
"""Seconds after which a chain that has caught up looks whether the session is idle."""


class NotWorthIt(Exception):
    """The new chain is given up; the reason is for people."""


class Migration:
    """`run` until the next step may go to `session`, and on, so that this stays so."""

    def __init__(
        self,
        session: ChainSession,
        precopy: Precopy,
        *,
        inputs: Callable[[int, int], bytes],
        confirms: Callable[[float], bool],
        is_idle: Callable[[], bool],
    ) -> None:
        """`inputs`: the raw hidden states of positions; `confirms`: whether a step of so many
        seconds is good enough; `is_idle`: whether the session that is followed had no step for
        longer than there is between two tokens."""
        self.session = session
        self.hops = session.chain
        self.precopy = precopy
        self.step_seconds = 0.0
        """What a step took on the new chain; 0 before it was tried."""
        self.replayed = 0
        self.trouble: str | None = None
        """What went wrong on the new chain, if something did."""
        self._inputs = inputs
        self._confirms = confirms
        self._is_idle = is_idle
        self._stepped = asyncio.Event()
        self._limit: asyncio.Timeout | None = None

    @property
    def is_ready(self) -> bool:
        """Whether the session's next step may go to the new chain."""
        return self.step_seconds > 0 and self.precopy.is_near and self.trouble is None

    def failed(self, line: str) -> None:
        """Something went wrong on the new chain. The session there would look for replacements;
        but nobody needs it, so what `run` does ends at once."""
        self.trouble = self.trouble or line
        if self._limit is not None and not self._limit.expired():
            self._limit.reschedule(asyncio.get_running_loop().time())

    def begin_step(self, start: int) -> None:
        """The session begins a step at `start`."""
        self.precopy.begin_step(start)

    def end_step(self, end: int, seconds: float | None) -> None:
        """It ended well; `seconds` if it was a decode step."""
        self.precopy.end_step(end, seconds)
        self._stepped.set()

    async def run(self, seconds: float) -> None:
        """Catch up with the session, and keep up with it. Returns when nothing is missing while it
        is idle: then nobody need wait for its next step. To be cancelled when a step goes to the
        new chain.

        Raises NotWorthIt when it takes longer than `seconds`, disturbs the session, is not as fast
        as it seemed, or when anything fails on the new chain; and what `ChainSession.step` raises.
        """
        async with self._within(seconds):
            await self._run()

    async def cross(self, start: int, data: bytes, tokens: int, seconds: float) -> bytes:
        """The session's step on the new chain, within `seconds`; `run` has been cancelled. Raises
        NotWorthIt, and what `ChainSession.step` raises."""
        async with self._within(seconds):
            return await self.session.step(start, data, tokens)

    @contextlib.asynccontextmanager
    async def _within(self, seconds: float) -> AsyncIterator[None]:
        try:
            async with asyncio.timeout(seconds) as limit:
                self._limit = limit
                yield
        except TimeoutError as error:
            raise NotWorthIt(self.trouble or f"it took longer than {seconds:.0f} s") from error
        finally:
            if self._limit is limit:
                self._limit = None
        if self.trouble is not None:
            raise NotWorthIt(self.trouble)

    async def _run(self) -> None:
        await self.session.__aenter__()
        await self.session.open_links()
        await self.session.wait_for_links(LINK_SECONDS)
        while True:
            self._stepped.clear()
            idle = self._is_idle()
            near = 0 if idle and self.step_seconds else self.precopy.config.near
            chunk = self.precopy.next(near)
            if chunk is not None:
                took = await self._timed(*chunk)
                self.replayed += chunk[1] - chunk[0]
                if self.precopy.is_burden:
                    raise NotWorthIt("the replay slowed the answer down")
                if not idle:
                    await asyncio.sleep(min(took, LONGEST_PAUSE))
            elif not self.step_seconds and self.precopy.done:
                await self._try()
            elif idle and self.step_seconds and not self.precopy.missing:
                return
            else:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(LOOK_EVERY):
                        await self._stepped.wait()

    async def _try(self) -> None:
        """Measure steps on the new chain. Raises NotWorthIt."""
        seconds = math.inf
        for _ in range(TRIALS):
            if not self.precopy.done:  # the session was cut back to its start
                return
            seconds = min(seconds, await self._timed(*self.precopy.again()))
        if not self._confirms(seconds):
            raise NotWorthIt(f"a step takes {1e3 * seconds:.0f} ms there")
        self.step_seconds = seconds

    async def _timed(self, start: int, end: int) -> float:
        began = time.perf_counter()
        await self.session.step(start, self._inputs(start, end), end - start)
        self.precopy.ended()
        return time.perf_counter() - began
