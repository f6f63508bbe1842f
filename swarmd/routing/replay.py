"""The replay machine: which positions each hop of a chain has to run next. Pure.

A chain of hops has a *boundary* before each hop and one after the last. A boundary knows how many
positions have arrived at it (`arrived`); the shell keeps their bytes in a
:class:`~swarmd.routing.history.History`. A hop knows how many positions its peer has in its
attention cache (`cached`). One rule does everything::

    a hop whose cache is shorter than what arrived before it runs the difference, in chunks;
    its outputs arrive at the next boundary, unless they arrived there before.

A prefill, a decode step and a replay are the same rule: a replacement is a hop whose cache holds
nothing while its boundary holds the whole history. Healthy hops keep their caches, because their
boundaries already have what a replay produces again. Chunks of one prefill flow through
the hops like a pipeline without a further word.

========== ============================= =====================================================
state      leaves by                     meaning
========== ============================= =====================================================
waiting    `runnable` -> running         nothing under way on this hop
running    `finished` -> waiting         positions `[cached, until)` are with the peer
any        `lost` -> lost                the peer or its session is gone
lost       `replace` -> waiting          new hops stand in its place, with empty caches
========== ============================= =====================================================

Results of a hop that was lost, replaced or cut back meanwhile carry an old ticket and are void.
"""

from __future__ import annotations

import enum
import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field

from swarmd.blocks import Span

__all__ = ["HopState", "Keep", "Replay", "Run"]

DEFAULT_CHUNK_TOKENS = 512


class HopState(enum.Enum):
    WAITING = "waiting"
    RUNNING = "running"
    LOST = "lost"


@dataclass(frozen=True, slots=True)
class Run:
    """Instruction: run positions `[start, end)` of the boundary before hop `hop`."""

    hop: int
    ticket: int
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class Keep:
    """Instruction: of a run's output, positions `[start, end)` are new at the boundary of hop
    `after` (None: the end of the chain). Nothing is new if start equals end."""

    after: int | None
    start: int
    end: int


@dataclass(slots=True)
class _Hop:
    key: int
    span: Span
    state: HopState = HopState.WAITING
    arrived: int = 0
    cached: int = 0
    until: int = 0
    ticket: int = field(default=-1)


class Replay:
    """The machine of one session. Hops are named by keys that are never used twice."""

    def __init__(self, spans: Sequence[Span], *, chunk_tokens: int = DEFAULT_CHUNK_TOKENS) -> None:
        if not spans or any(a.end != b.start for a, b in itertools.pairwise(spans)):
            raise ValueError("a chain's spans must join")
        self.chunk_tokens = chunk_tokens
        self._keys = itertools.count()
        self._tickets = itertools.count()
        self._hops = [_Hop(next(self._keys), span) for span in spans]
        self._delivered = 0
        self._target = 0

    @property
    def hops(self) -> tuple[tuple[int, Span], ...]:
        """Keys and spans, in order."""
        return tuple((hop.key, hop.span) for hop in self._hops)

    @property
    def complete(self) -> bool:
        """Whether all positions of the current step have left the last hop."""
        return self._delivered >= self._target

    @property
    def lost_hops(self) -> tuple[int, ...]:
        return tuple(hop.key for hop in self._hops if hop.state is HopState.LOST)

    def cached(self, key: int) -> int:
        """How many positions the hop's peer holds."""
        return self._hop(key).cached

    def arrived(self, key: int) -> int:
        """How many positions have arrived at the boundary before the hop."""
        return self._hop(key).arrived

    def begin(self, start: int, tokens: int) -> None:
        """A step: cut everything back to `start`, then `tokens` positions arrive at the first
        boundary. Raises ValueError if `start` lies beyond what left the last hop before, so that
        no position of a step that failed is passed over."""
        if tokens < 1 or not 0 <= start <= self._delivered:
            raise ValueError(f"step of {tokens} at {start}; {self._delivered} are complete")
        for hop in self._hops:
            hop.arrived = min(hop.arrived, start)
            hop.cached = min(hop.cached, start)
            if hop.state is HopState.RUNNING:
                hop.state, hop.ticket = HopState.WAITING, -1
        self._delivered = min(self._delivered, start)
        self._target = start + tokens
        self._hops[0].arrived = self._target

    def runnable(self) -> list[Run]:
        """What can be started now; each hop that is returned counts as running."""
        runs = []
        for hop in self._hops:
            if hop.state is HopState.WAITING and hop.cached < hop.arrived:
                hop.state, hop.ticket = HopState.RUNNING, next(self._tickets)
                hop.until = min(hop.arrived, hop.cached + self.chunk_tokens)
                runs.append(Run(hop.key, hop.ticket, hop.cached, hop.until))
        return runs

    def finished(self, run: Run) -> Keep | None:
        """A run's output has come. Returns which part is new, or None if the run is void."""
        index = self._index(run.hop)
        if index is None or self._hops[index].ticket != run.ticket:
            return None
        hop = self._hops[index]
        hop.state, hop.ticket, hop.cached = HopState.WAITING, -1, run.end
        if index + 1 < len(self._hops):
            following = self._hops[index + 1]
            start = max(run.start, min(following.arrived, run.end))
            following.arrived = max(following.arrived, run.end)
            return Keep(following.key, start, run.end)
        start = max(run.start, min(self._delivered, run.end))
        self._delivered = max(self._delivered, run.end)
        return Keep(None, start, run.end)

    def lost(self, key: int) -> bool:
        """The hop's peer or session is gone. False if the hop is not of this chain any more."""
        index = self._index(key)
        if index is None:
            return False
        hop = self._hops[index]
        hop.state, hop.ticket, hop.cached = HopState.LOST, -1, 0
        return True

    def replace(self, key: int, spans: Sequence[Span]) -> list[int]:
        """Put hops over `spans` in the place of a lost hop; returns their keys.

        The first keeps the lost hop's boundary and history; boundaries between the new hops
        start empty. Raises ValueError if the spans are not exactly the lost hop's blocks.
        """
        hop = self._hop(key)
        joined = all(a.end == b.start for a, b in itertools.pairwise(spans))
        if hop.state is not HopState.LOST or not spans or not joined:
            raise ValueError(f"hop {key} is {hop.state.value}; spans {list(map(str, spans))}")
        if (spans[0].start, spans[-1].end) != (hop.span.start, hop.span.end):
            raise ValueError(f"{spans[0].start}:{spans[-1].end} does not replace {hop.span}")
        new = [_Hop(next(self._keys), span) for span in spans]
        new[0].arrived = hop.arrived
        index = self._hops.index(hop)
        self._hops[index : index + 1] = new
        return [one.key for one in new]

    def _hop(self, key: int) -> _Hop:
        index = self._index(key)
        if index is None:
            raise KeyError(f"no hop {key}")
        return self._hops[index]

    def _index(self, key: int) -> int | None:
        return next((i for i, hop in enumerate(self._hops) if hop.key == key), None)
