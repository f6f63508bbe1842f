"""How a second chain catches up with a session that goes on: which positions it runs next. Pure.

What is done here for hidden states is done for the memory of virtual machines that move while they
run: copy, then copy what has changed since, and stop the old one only when little is left (Clark et
al., "Live Migration of Virtual Machines", NSDI 2005, section 3).

======== ======================================= ============================== ===================
state    meaning                                 leaves by                      next
======== ======================================= ============================== ===================
idle     nothing is under way on the new chain   `next`: a chunk of what is     running
                                                 missing, or `again`
running  a chunk is                              `ended`                        idle
======== ======================================= ============================== ===================

The session's steps begin and end in either state. One that begins at a position cuts both chains
back to it, also under a chunk that is running: of that only what lies before the cut counts.

The chunks must not be felt. Steps that ran beside one are timed; where they are slower than before
by more than a share, chunks become shorter, and when they cannot, the new chain is a burden.
"""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Precopy", "PrecopyConfig"]


@dataclass(frozen=True, slots=True, kw_only=True)
class PrecopyConfig:
    """In positions, unless the name says else."""

    chunk: int = 32
    """As of a prompt at least; each peer's other sessions wait for no longer one."""
    shortest_chunk: int = 16
    """Still a prompt to a node's engine: steps of up to 8 positions go before it."""
    near: int = 4
    """So few may be missing when the session's next step goes to the new chain, which then runs
    them in the same pass."""
    sample_steps: int = 8
    """Steps beside chunks that are timed before they are judged."""
    most_slowed: float = 1.5
    """How many times as long these may take as steps did before."""


class Precopy:
    """`done` positions of the `held` ones are on the new chain; both are counts from position 0."""

    def __init__(self, held: int, step_seconds: float, config: PrecopyConfig | None = None) -> None:
        """`step_seconds`: what a decode step of the session took before."""
        self.config = config or PrecopyConfig()
        self.held = held
        self.done = 0
        self.chunk = self.config.chunk
        self.is_burden = False
        """Steps are slowed down by the shortest of chunks."""
        self._usual = step_seconds
        self._running: int | None = None  # where it ends
        self._kept = 0  # up to where it counts
        self._beside = False
        self._timed: list[float] = []

    @property
    def missing(self) -> int:
        return self.held - self.done

    @property
    def is_near(self) -> bool:
        """Whether the session's next step may go to the new chain."""
        return self._running is None and self.missing <= self.config.near

    def begin_step(self, start: int) -> None:
        """The session's next step: it cuts back to `start`."""
        self.held = min(self.held, start)
        self.done = min(self.done, start)
        self._kept = min(self._kept, start)
        self._beside = self._running is not None

    def end_step(self, end: int, seconds: float | None) -> None:
        """That step succeeded; `seconds` if it was a decode step."""
        self.held = end
        if not self._beside or seconds is None:
            return
        self._timed.append(seconds)
        if len(self._timed) < self.config.sample_steps:
            return
        mean = sum(self._timed) / len(self._timed)
        self._timed.clear()
        if mean > self.config.most_slowed * self._usual:
            self.is_burden = self.chunk == self.config.shortest_chunk
            self.chunk = max(self.chunk // 2, self.config.shortest_chunk)

    def next(self, near: int) -> tuple[int, int] | None:
        """Begin to run the positions `[start, end)` that are given; None where no more than `near`
        are missing."""
        if self.missing <= near:
            return None
        return self._begin(self.done, min(self.held, self.done + self.chunk))

    def again(self) -> tuple[int, int]:
        """Begin to run the last position once more, to see how long that takes. Raises ValueError
        where nothing is done."""
        if self.done < 1:
            raise ValueError("no position to run again")
        return self._begin(self.done - 1, self.done)

    def ended(self) -> None:
        """What was begun has ended well."""
        if self._running is None:
            raise ValueError("no chunk is under way")
        self.done = min(self._running, self._kept)
        self._running = None

    def _begin(self, start: int, end: int) -> tuple[int, int]:
        if self._running is not None:
            raise ValueError("a chunk is under way")
        self._running, self._kept, self._beside = end, end, True
        return start, end
