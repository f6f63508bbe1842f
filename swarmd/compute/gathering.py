"""How long a turn waits for the steps of those who are about to ask for their next token. Pure.

A turn of many rows takes little longer than one of few. Clients that decode side by side send their
next step a moment after their last output; a turn that starts with the first of them leaves the
others to the next turn, and from then on each takes part in every second turn only. In a chain of
nodes it is worse: sessions go round in groups, and who comes a moment too late everywhere stays
a group of its own for good. So a turn waits for the sessions whose next step is due within some
time, in turns, from when it could begin (:mod:`swarmd.compute.patience` says how long that is): a
session is due when it has paused as long as the last time. Who is due later, because another node
is at it, or it lives far away or pauses, is not waited for.

| event | of a session | then |
|---|---|---|
| `arrived` | at rest | busy; the time since its last output is its *pause* |
| `finished` | busy with one step | at rest, its output is given now |
| `finished`, `arrived` | busy with several | stays busy: it is never waited for |
| `forget` | any | unknown |
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass

from swarmd.compute.patience import PatienceSearch

__all__ = ["Gathering"]

LATENESS = 0.5
"""By how much of its last pause, or of the longest wait if that is less, a session may be late;
seconds of `LEAST` are always granted."""
LEAST = 0.0005


@dataclass(slots=True)
class _Session:
    steps: int = 0
    rested_at: float | None = None
    pause: float | None = None


class Gathering:
    """Times are seconds of one monotonic clock."""

    def __init__(self) -> None:
        self._sessions: dict[Hashable, _Session] = {}
        self._search = PatienceSearch()
        self._turn = 0.0

    @property
    def _patience(self) -> float:
        return self._search.value * self._turn

    def arrived(self, session: Hashable, now: float) -> None:
        """A step of the session came at `now`."""
        known = self._sessions.get(session)
        if known is None:
            known = self._sessions[session] = _Session()
            self._search.disturbed()
        known.steps += 1
        if known.rested_at is not None:
            known.pause = max(0.0, now - known.rested_at)
            known.rested_at = None

    def finished(self, session: Hashable, now: float) -> None:
        """A step of the session was answered, refused or cancelled."""
        known = self._sessions.get(session)
        if known is None or known.steps == 0:
            return
        known.steps -= 1
        known.rested_at = now if known.steps == 0 else None

    def ran(self, now: float, seconds: float, rows: int) -> None:
        """A turn of so many rows, decode steps only, is over at `now` and took so long."""
        self._turn = seconds
        self._search.ran(now, rows)

    def ran_other(self) -> None:
        """A turn with a piece of a prompt is over."""
        self._search.disturbed()

    def forget(self, session: Hashable) -> None:
        """The session is closed."""
        if self._sessions.pop(session, None) is not None:
            self._search.disturbed()

    def until(self, now: float, since: float) -> float | None:
        """When to wait no longer for those who are due, if the turn could have begun at `since`;
        None if nobody is."""
        latest = since + self._patience
        due = [at for known in self._sessions.values() if (at := self._due(known, latest)) > now]
        return max(due, default=None)

    def _due(self, known: _Session, latest: float) -> float:
        """Until when a session is waited for, 0 if it is not."""
        if known.rested_at is None or known.pause is None:
            return 0.0
        due = known.rested_at + known.pause
        if due > latest:
            return 0.0
        return min(latest, due + LATENESS * min(known.pause, self._patience) + LEAST)
