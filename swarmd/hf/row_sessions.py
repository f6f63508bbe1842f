"""The sessions of one batch: a chain of hops for each row, run side by side."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

from swarmd.client.moving_session import MovingSession
from swarmd.hf.swarm_link import SwarmLink

__all__ = ["Ran", "RowSessions", "RowStep"]


SHARED_TOKENS = 32
"""Peers share what they computed in pages of so many positions (`compute/pages.py`)."""


@dataclass(frozen=True, slots=True)
class RowStep:
    """Instruction: run `tokens` positions from `start` on in the session of `slot`; `data` are
    their inputs to the first block, as raw bytes in the chain's dtype."""

    slot: int
    start: int
    tokens: int
    data: bytes


@dataclass(frozen=True, slots=True)
class Ran:
    """What a step gave: outputs of the last block, and the inputs of the hops, each with the block
    that it enters, if they were asked for. Raw bytes, for the step's positions."""

    output: bytes
    boundaries: tuple[tuple[int, bytes], ...]


def _turns(steps: Sequence[RowStep]) -> list[list[int]]:
    """Which steps to run side by side, and which after them: copies of a longer one, as beams
    begin with, find at the peers what it has computed."""
    first: dict[tuple[int, bytes], int] = {}
    now: list[int] = []
    later: list[int] = []
    for index, step in enumerate(steps):
        alike = first.setdefault((step.start, step.data), index)
        (later if alike != index and step.tokens >= SHARED_TOKENS else now).append(index)
    return [turn for turn in (now, later) if turn]


class RowSessions:
    """Slot by slot; a slot that is new is opened when it first runs."""

    def __init__(self, link: SwarmLink) -> None:
        self._link = link
        self._sessions: dict[int, MovingSession] = {}
        self.max_length = 0
        """Positions that each of the open sessions has room for."""

    @property
    def n_open(self) -> int:
        return len(self._sessions)

    async def run(
        self,
        steps: Sequence[RowStep],
        *,
        max_length: int,
        surplus: Sequence[int] = (),
        boundaries: bool = False,
    ) -> list[Ran | BaseException]:
        """All steps at once; one that fails has its error in its place, and the others are run to
        their end. Sessions of `surplus` are closed first; those that are missing are opened, with
        `max_length`. Raises NoRoute, and what opening raises, before any step is run."""
        await self.close(surplus)
        missing = [step.slot for step in steps if step.slot not in self._sessions]
        if missing:
            await self._open(missing, max_length)

        async def one(step: RowStep) -> Ran:
            session = self._sessions[step.slot]
            output = await session.step(step.start, step.data, step.tokens)
            end = step.start + step.tokens
            return Ran(output, await session.boundaries(step.start, end) if boundaries else ())

        ran: dict[int, Ran | BaseException] = {}
        for turn in _turns(steps):
            results = await asyncio.gather(
                *(one(steps[index]) for index in turn), return_exceptions=True
            )
            ran |= zip(turn, results, strict=True)
        return [ran[index] for index in range(len(steps))]

    async def close(self, slots: Sequence[int] | None = None) -> None:
        """Close these sessions, or all of them."""
        which = list(self._sessions) if slots is None else slots
        closing = [self._sessions.pop(slot) for slot in which if slot in self._sessions]
        await self._link.close(closing)

    async def _open(self, slots: Sequence[int], max_length: int) -> None:
        opened = await self._link.sessions(len(slots), max_length=max_length)
        self.max_length = min(self.max_length, max_length) if self._sessions else max_length
        self._sessions.update(zip(slots, opened, strict=True))
