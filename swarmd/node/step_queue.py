"""The steps of one session that were read and wait for their turn, bounded by their bytes."""

from __future__ import annotations

import asyncio
from typing import TypeAlias

from swarmd.errors import RemoteError
from swarmd.wire.messages import Step

__all__ = ["StepQueue", "Waiting"]

Waiting: TypeAlias = tuple[Step, bytearray, float, RemoteError | None]
"""A step, its payload, the time of its arrival, and why it is refused when its turn comes. What is
refused has no payload: answers keep the order of the steps, so its place alone waits."""


class StepQueue:
    """Steps that wait for their session's worker, in order, with the time of their arrival.

    An empty queue takes a step of any length. Beyond `max_bytes` of payloads there is no room,
    so a reader that waits for room before it reads holds at most one step more than that.
    """

    def __init__(self, max_bytes: int) -> None:
        self.waiting_bytes = 0
        self._max_bytes = max_bytes
        self._steps: asyncio.Queue[Waiting] = asyncio.Queue()
        self._room = asyncio.Event()
        self._room.set()

    def put(
        self, step: Step, payload: bytearray, arrived: float, refusal: RemoteError | None = None
    ) -> None:
        if refusal is not None:
            payload = bytearray()
        self._steps.put_nowait((step, payload, arrived, refusal))
        self.waiting_bytes += len(payload)
        if self.waiting_bytes > self._max_bytes:
            self._room.clear()

    async def get(self) -> Waiting:
        step, payload, arrived, refusal = await self._steps.get()
        self.waiting_bytes -= len(payload)
        if self.waiting_bytes <= self._max_bytes:
            self._room.set()
        return step, payload, arrived, refusal

    async def wait_for_room(self) -> None:
        """Wait until a step may be put."""
        await self._room.wait()
