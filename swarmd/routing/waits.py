"""Who is late: for how long the runs that hops ought to be at work on have been waited for. Pure.

========== ===================================== ==================================================
a run is   when its hop has not answered          then
========== ===================================== ==================================================
waited for                                        its time is kept from the moment at which it fell
                                                  due (:meth:`Replay.due`)
doubtful   half of its time, if it was fed        the client pings the hop: is it the hop, or the
                                                  link from the hop before?
late       all of its time                        the hop is lost; or, where it was heard since the
                                                  ping, that link is given up
========== ===================================== ==================================================
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from swarmd.routing.replay import Due

__all__ = ["Alarm", "Waits"]


class Alarm(enum.Enum):
    """What a run that is not answered calls for."""

    PING = "ask whether the hop is alive"
    HOP = "the hop is lost"
    LINK = "the link to the hop is broken"


@dataclass(slots=True)
class _Wait:
    due: Due
    since: float
    allowed: float
    pinged: bool = False
    heard: bool = False

    @property
    def next_at(self) -> float:
        share = 0.5 if self.due.fed and not self.pinged else 1.0
        return self.since + share * self.allowed


class Waits:
    """Times in seconds, on one clock. `allowed` says how long a run may take."""

    def __init__(self, allowed: Callable[[Due], float]) -> None:
        self._allowed = allowed
        self._waits: dict[tuple[int, int], _Wait] = {}

    def update(self, due: Sequence[Due], now: float) -> float | None:
        """What is due now; who was waited for before goes on. Returns when the first alarm is."""
        self._waits = {
            (one.hop, one.number): self._waits.get((one.hop, one.number))
            or _Wait(one, now, self._allowed(one))
            for one in due
        }
        return min((wait.next_at for wait in self._waits.values()), default=None)

    def alarms(self, now: float) -> list[tuple[Due, Alarm]]:
        """What is to be done by now. A ping is asked for once."""
        found = []
        for wait in self._waits.values():
            if now < wait.next_at:
                continue
            if wait.due.fed and not wait.pinged:
                wait.pinged = True
                found.append((wait.due, Alarm.PING))
            else:
                found.append((wait.due, Alarm.LINK if wait.heard else Alarm.HOP))
        return found

    def heard(self, hop: int) -> None:
        """Something came from the hop."""
        for wait in self._waits.values():
            if wait.due.hop == hop and wait.pinged:
                wait.heard = True

    def since(self, hop: int, number: int) -> float | None:
        """When the run fell due; None if it did not."""
        wait = self._waits.get((hop, number))
        return None if wait is None else wait.since

    def allowed(self, hop: int, number: int) -> float:
        """Seconds that the run may take."""
        return self._waits[hop, number].allowed
