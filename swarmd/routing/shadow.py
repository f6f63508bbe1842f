"""What a standby peer has to run next, so that it holds the cache of the hop it stands by. Pure.

The standby is sent the inputs of its hop as they are known at the client, in order, a few runs at a
time. Its outputs are of no use, only that it gave them: so many positions it holds. When the hop is
lost, the standby takes its place with what it holds (:meth:`Replay.replace`).

=========== ================================= ====================================================
of it       changes by                        meaning
=========== ================================= ====================================================
sent        `next` adds, `cut`, `refused`     positions that were sent
flights     `next` adds, `finished` takes     runs that it has not answered, in order
cached      `finished` raises, `cut` lowers   positions that it holds for certain
=========== ================================= ====================================================

A step that cuts the history back shortens flights, or ends them, as in the replay machine; the
answer to a flight that has ended is void. The next run then begins where the history was cut, and
the peer cuts its cache back there.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

__all__ = ["Shadow", "ShadowRun"]

WINDOW = 4
"""Runs on their way: while the peer computes one, the next ones travel."""


@dataclass(slots=True)
class ShadowRun:
    """Instruction: send positions `[start, end)` as step `number`."""

    number: int
    start: int
    end: int


class Shadow:
    """The machine of one standby."""

    def __init__(self) -> None:
        self.cached = 0
        self._sent = 0
        self._flights: deque[ShadowRun] = deque()

    def next(self, arrived: int, *, number: int, chunk: int) -> ShadowRun | None:
        """What to send now, of `arrived` positions and at most `chunk`; it counts as sent. None:
        nothing, for now."""
        if self._sent >= arrived or len(self._flights) >= WINDOW:
            return None
        run = ShadowRun(number, self._sent, min(arrived, self._sent + chunk))
        self._flights.append(ShadowRun(number, run.start, run.end))
        self._sent = run.end
        return run

    def cut(self, start: int) -> None:
        """The history ends at `start` now, if it was longer."""
        self.cached, self._sent = min(self.cached, start), min(self._sent, start)
        while self._flights and self._flights[-1].start >= start:
            self._flights.pop()
        if self._flights:
            self._flights[-1].end = min(self._flights[-1].end, start)

    def finished(self, number: int) -> None:
        """The peer answered a run, and with it all before it."""
        while self._flights and self._flights[0].number <= number:
            run = self._flights.popleft()
            if run.number == number:
                self.cached = run.end

    def refused(self, number: int) -> bool:
        """The peer did not run this: begin again from what it holds. False if that is void."""
        if all(run.number != number for run in self._flights):
            return False
        self._flights.clear()
        self._sent = self.cached
        return True
