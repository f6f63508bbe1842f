"""Where a session's outputs go: to its client, and first to the next hop where it is linked."""

from __future__ import annotations

import asyncio
import logging

from swarmd.errors import ConnectionLost, DhtError, PeerFailure, RemoteError
from swarmd.node.edge import Edge, Successors
from swarmd.node.outlet import Outlet
from swarmd.node.quotas import Guest
from swarmd.tasks import TaskOwner
from swarmd.wire.connection import Connection
from swarmd.wire.fields import MAX_TEXT
from swarmd.wire.messages import Link, Linked, Output, Step, Unlinked

__all__ = ["Onward"]

log = logging.getLogger(__name__)

MAX_LINKS = 256
"""Links that one session may ask for: each is a dial. A repair needs two."""
SMALL = 1 << 16
"""Bytes that are sent at once; larger outputs travel while the next step computes."""
WAITING = 2
"""Larger outputs that wait to be sent; then the session computes no more."""


class Onward:
    """Sends outputs in order. With a link, `deliver` sends an output to the next hop and then a
    copy to the client, so that the copy is never in the way. `start` runs it among the session's
    tasks."""

    def __init__(
        self,
        connection: Connection,
        session: bytes,
        outlet: Outlet,
        guest: Guest,
        successors: Successors | None,
    ) -> None:
        self._connection = connection
        self._session = session
        self._outlet = outlet
        self._guest = guest
        self._successors = successors
        self._edge: Edge | None = None
        self._holding: asyncio.Task[None] | None = None
        self._links = 0
        self._waiting: asyncio.Queue[tuple[Step, Output, memoryview, int]] = asyncio.Queue(WAITING)
        self._at_work = False
        self._owner: TaskOwner | None = None

    def start(self, owner: TaskOwner) -> None:
        """`owner` ends with the session; a client that is lost or does not read ends it."""
        self._owner = owner
        owner.spawn(self._send_waiting(), name="answers")

    # ---- outputs --------------------------------------------------------------------------------

    async def deliver(self, step: Step, output: Output, data: memoryview, arrived: float) -> None:
        """Send the output of `step`, which arrived at that time of the loop's. Raises
        ConnectionLost."""
        left = 0
        if step.deadline_ms:
            spent = 1000 * (asyncio.get_running_loop().time() - arrived)
            left = max(1, round(step.deadline_ms - spent))
        if len(data) > SMALL or self._at_work:
            self._at_work = True
            await self._waiting.put((step, output, data, left))
        else:
            await self._send(step, output, data, left)

    async def _send_waiting(self) -> None:
        while True:
            waiting = await self._waiting.get()
            await self._send(*waiting)
            self._at_work = not self._waiting.empty()

    async def _send(self, step: Step, output: Output, data: memoryview, left: int) -> None:
        loop, sent = asyncio.get_running_loop(), len(data)
        if step.forward and self._edge is not None:
            try:
                await self._edge.forward(step, output.tensor, data, deadline_ms=left)
                self._outlet.forwarded(len(data))
                sent += len(data)
            except ConnectionLost as error:  # whoever watches the edge tells the client
                log.debug("a link to a next hop broke: %s", error)
        await self._outlet.send(self._connection, output, data)
        if delay := self._guest.sent(sent, loop.time()):
            await asyncio.sleep(delay)

    # ---- the link -------------------------------------------------------------------------------

    def link(self, message: Link) -> None:
        """Link the session to the next hop; the client is told what became of it."""
        assert self._owner is not None
        self._links += 1
        before, self._edge = self._holding, None
        if before is not None:
            before.cancel()
        self._holding = self._owner.spawn(self._hold(message), name="link")

    async def _hold(self, message: Link) -> None:
        """Keep an edge until it breaks, or another takes its place. Raises ConnectionLost."""
        if self._successors is None or self._links > MAX_LINKS:
            reason = "this node forwards nothing" if self._successors is None else "too many links"
            await self._tell(Unlinked(self._session, message.link, reason))
            return
        try:
            edge = await self._successors.open(message)
        except (PeerFailure, RemoteError, DhtError) as error:
            await self._tell(Unlinked(self._session, message.link, str(error)[:MAX_TEXT]))
            return
        try:
            self._edge = edge
            await self._tell(Linked(self._session, message.link, round(1e6 * edge.rtt)))
            reason = await edge.watch()
            self._edge = None
            await self._tell(Unlinked(self._session, message.link, reason[:MAX_TEXT]))
        finally:
            if self._edge is edge:
                self._edge = None
            edge.close()

    def close(self) -> None:
        """Drop the link, if there is one."""
        if self._edge is not None:
            self._edge.close()

    async def _tell(self, message: Linked | Unlinked) -> None:
        await self._outlet.send(self._connection, message)
