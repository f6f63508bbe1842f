"""How often a node dials back for others: so that nobody has it dial for him all day. Pure."""

from __future__ import annotations

from collections import deque

__all__ = ["DialBackBudget"]

PERIOD = 60.0
"""Seconds over which the numbers below are counted."""
PER_HOST = 4
"""A machine has a few nodes, and each asks once in a while."""
IN_ALL = 64
"""A dial costs a socket for a few seconds."""


class DialBackBudget:
    """Counts dials of the last minute; holds at most as many entries as it allows dials."""

    def __init__(self, *, per_host: int = PER_HOST, in_all: int = IN_ALL) -> None:
        self._per_host = per_host
        self._in_all = in_all
        self._dials: deque[tuple[float, str]] = deque()

    def take(self, host: str, now: float) -> bool:
        """Whether `host` may be dialled at `now` (seconds, never less than before); counts it."""
        while self._dials and self._dials[0][0] <= now - PERIOD:
            self._dials.popleft()
        of_host = sum(one == host for _, one in self._dials)
        if of_host >= self._per_host or len(self._dials) >= self._in_all:
            return False
        self._dials.append((now, host))
        return True
