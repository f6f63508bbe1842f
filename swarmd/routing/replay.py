"""The replay machine: which positions each hop of a chain has to run next. Pure.

A chain of hops has a *boundary* before each hop and one after the last. A boundary knows how many
positions have arrived at the client for it (`arrived`); the shell keeps their bytes in a
:class:`~swarmd.routing.history.History`. A hop knows how many positions its peer has answered
(`cached`) and how many are on their way to it or beyond (`sent`). One rule does everything::

    a hop to which fewer positions were sent than have arrived before it is sent the difference,
    in chunks; its outputs arrive at the next boundary, unless they arrived there before.

A prefill, a decode step and a replay are the same rule: a replacement is a hop to which nothing
was sent, while its boundary holds the whole history. Healthy hops keep their caches, because their
boundaries already have what a replay produces again. Chunks of one prefill flow through the hops
like a pipeline without a further word.

**A ring is a short cut.** Where a hop is *linked* to the next one, a run may name a `path`: each
hop on it forwards its output to the next, and a copy comes to the client. A hop is fed so only with
the very positions that it lacks and that have not arrived at the client before it. What such a copy
tells is the same as an answer's, so the rule above goes on from wherever a short cut breaks: the
next hop is then sent by the client what arrived in the meantime, under a higher number, and peers
pass over whatever comes late with a lower one.

=========== ===================================== =================================================
of a hop    changes by                            meaning
=========== ===================================== =================================================
flights     `runnable` adds, `finished` takes     runs that the peer has not answered, in order: all
                                                  of them sent by the client, or all of them fed
linked      `linked`, `unlinked`                  it can forward to the next hop; when that ends, so
                                                  do the flights that were fed over it, there and
                                                  further down
lost        `lost`, until `replace`               the peer or its session is gone, with its flights,
                                                  its links and what they fed
=========== ===================================== =================================================

A step that cuts back shortens flights, or ends them. The answer to a flight that has ended is void.

**Positions may be put in ahead of the step that asks for them** (`extend`): they travel behind the
step under way, by the same rule. The step after it then goes on with them (`resume`), or cuts them
back like all else (`begin`).
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

from swarmd.blocks import Span

__all__ = ["Due", "Keep", "OutOfOrder", "Replay", "Run"]

DEFAULT_CHUNK_TOKENS = 512
WINDOW = 4
"""Runs on their way to a hop from the client: while it computes one, the next ones travel."""
MAX_FED = 32
"""Runs on their way to a hop from the one before: copies may come so much later than the answer."""


class OutOfOrder(ValueError):
    """A hop answered a run, and not the one before it."""


@dataclass(frozen=True, slots=True)
class Run:
    """Instruction: send positions `[start, end)` of the boundary before `hop` to it, as step
    `number`; `path` are the hops that run them in turn, `hop` first. Numbers rise."""

    hop: int
    number: int
    start: int
    end: int
    path: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Keep:
    """Instruction: of an output that begins at position `first`, `[start, end)` are new at the
    boundary of hop `after` (None: the end of the chain). Nothing is new if start equals end.

    `fed`: the output's run was forwarded to the hop. `behind`: when the run was sent, the hop had
    others to answer first, so how long it took says nothing. `tokens`: positions of the run.
    """

    after: int | None
    first: int
    start: int
    end: int
    tokens: int
    fed: bool
    behind: bool


@dataclass(frozen=True, slots=True)
class Due:
    """A hop has all that it needs to answer this run of so many positions next; `fed` says that it
    comes, or came, from the hop before."""

    hop: int
    number: int
    tokens: int
    fed: bool


@dataclass(slots=True)
class _Flight:
    number: int
    start: int
    end: int
    tokens: int
    fed: bool
    behind: bool


@dataclass(slots=True)
class _Hop:
    key: int
    span: Span
    lost: bool = False
    linked: bool = False
    arrived: int = 0
    cached: int = 0
    sent: int = 0
    flights: deque[_Flight] = field(default_factory=deque)

    def add(self, number: int, start: int, end: int, *, fed: bool) -> None:
        behind = bool(self.flights)
        self.flights.append(_Flight(number, start, end, end - start, fed, behind))
        self.sent = end

    def cut(self, start: int) -> None:
        self.arrived = min(self.arrived, start)
        self.cached = min(self.cached, start)
        self.sent = min(self.sent, start)
        while self.flights and self.flights[-1].start >= start:
            self.flights.pop()
        if self.flights:
            self.flights[-1].end = min(self.flights[-1].end, start)

    def drop_fed(self, number: int) -> None:
        """End the flights that were fed under this number or a higher one."""
        while self.flights and self.flights[-1].fed and self.flights[-1].number >= number:
            self.sent = self.flights.pop().start


class Replay:
    """The machine of one session. Hops are named by keys that are never used twice."""

    def __init__(self, spans: Sequence[Span], *, chunk_tokens: int = DEFAULT_CHUNK_TOKENS) -> None:
        if not spans or any(a.end != b.start for a, b in itertools.pairwise(spans)):
            raise ValueError("a chain's spans must join")
        self.chunk_tokens = chunk_tokens
        self._keys = itertools.count()
        self._numbers = itertools.count(1)
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
    def target(self) -> int:
        """The position behind the last one of the current step."""
        return self._target

    @property
    def lost_hops(self) -> tuple[int, ...]:
        return tuple(hop.key for hop in self._hops if hop.lost)

    def cached(self, key: int) -> int:
        """How many positions the hop's peer has answered."""
        return self._hop(key).cached

    def arrived(self, key: int) -> int:
        """How many positions have arrived at the boundary before the hop."""
        return self._hop(key).arrived

    def all_arrived(self, end: int) -> bool:
        """Whether all positions before `end` have arrived before each hop."""
        return all(hop.arrived >= end for hop in self._hops)

    def take_number(self) -> int:
        """A step number that is used for nothing else, higher than those before."""
        return next(self._numbers)

    def is_linked(self, key: int) -> bool:
        return self._hop(key).linked

    def under_way(self, key: int) -> int:
        """How many runs the hop has to answer."""
        return len(self._hop(key).flights)

    def expected(self, key: int, number: int) -> bool | None:
        """Whether run `number`, which the hop has to answer, was fed to it; None if there is no
        such run."""
        index = self._index(key)
        flights = () if index is None else self._hops[index].flights
        return next((flight.fed for flight in flights if flight.number == number), None)

    def begin(self, start: int, tokens: int) -> None:
        """A step: cut everything back to `start`, then `tokens` positions arrive at the first
        boundary. Raises ValueError if `start` lies beyond what the steps before were asked for and
        left the last hop, so that no position of a step that failed is passed over."""
        complete = min(self._delivered, self._target)
        if tokens < 1 or not 0 <= start <= complete:
            raise ValueError(f"step of {tokens} at {start}; {complete} are complete")
        for hop in self._hops:
            hop.cut(start)
        self._delivered = min(self._delivered, start)
        self._target = start + tokens
        self._hops[0].arrived = self._target

    def extend(self, tokens: int) -> None:
        """So many positions arrive at the first boundary, behind all that came before."""
        if tokens < 1:
            raise ValueError(f"{tokens} positions")
        self._hops[0].arrived += tokens

    def resume(self, tokens: int) -> None:
        """A step that begins where the one before ended, and whose positions were put in ahead:
        nothing is cut. Raises ValueError if that one is not complete, or fewer were put in."""
        if not self.complete or not 1 <= tokens <= self._hops[0].arrived - self._target:
            raise ValueError(f"step of {tokens} behind {self._target}; {self._delivered} are done")
        self._target += tokens

    def runnable(self) -> list[Run]:
        """What is to be sent now; it counts as sent."""
        runs = []
        for index, hop in enumerate(self._hops):
            while self._can_be_sent(hop):
                start, number = hop.sent, next(self._numbers)
                end = min(hop.arrived, start + self.chunk_tokens)
                path = [hop]
                for before, after in itertools.pairwise(self._hops[index:]):
                    if not (before.linked and self._can_be_fed(after, start)):
                        break
                    path.append(after)
                for one in path:
                    one.add(number, start, end, fed=one is not hop)
                runs.append(Run(hop.key, number, start, end, tuple(one.key for one in path)))
        return runs

    @staticmethod
    def _can_be_sent(hop: _Hop) -> bool:
        """What comes from the client must not overtake what is fed."""
        fed = bool(hop.flights) and hop.flights[0].fed
        return not hop.lost and not fed and hop.sent < hop.arrived and len(hop.flights) < WINDOW

    @staticmethod
    def _can_be_fed(hop: _Hop, start: int) -> bool:
        """Nor the other way round; and what the client has at hand, it sends itself."""
        direct = bool(hop.flights) and not hop.flights[0].fed
        lacks = hop.sent == start and hop.arrived <= start
        return not hop.lost and not direct and lacks and len(hop.flights) < MAX_FED

    def finished(self, key: int, number: int) -> Keep | None:
        """A hop answered run `number`. Returns which part is new, or None if that is void. Raises
        OutOfOrder."""
        index = self._index(key)
        if index is None:
            return None
        hop = self._hops[index]
        if all(flight.number != number for flight in hop.flights):
            return None
        if hop.flights[0].number != number:
            raise OutOfOrder(f"step {number} is answered before step {hop.flights[0].number}")
        run = hop.flights.popleft()
        hop.cached = run.end
        following = self._hops[index + 1] if index + 1 < len(self._hops) else None
        known = self._delivered if following is None else following.arrived
        start = max(run.start, min(known, run.end))
        if following is None:
            self._delivered = max(known, run.end)
        else:
            following.arrived = max(known, run.end)
        after = None if following is None else following.key
        return Keep(after, run.start, start, run.end, run.tokens, run.fed, run.behind)

    def due(self) -> list[Due]:
        """The runs that hops ought to be at work on: of each the first one, once the hop before
        it (if that feeds it) has answered."""
        found = []
        for index, hop in enumerate(self._hops):
            if not hop.flights:
                continue
            run = hop.flights[0]
            before = self._hops[index - 1] if run.fed else None
            if before is None or all(one.number != run.number for one in before.flights):
                found.append(Due(hop.key, run.number, run.tokens, run.fed))
        return found

    def linked(self, key: int) -> None:
        """The hop can forward to the next one."""
        index = self._index(key)
        if index is None or index + 1 == len(self._hops):
            return
        if not self._hops[index].lost and not self._hops[index + 1].lost:
            self._hops[index].linked = True

    def unlinked(self, key: int) -> None:
        """It cannot, or can no more. What it has fed is given up, and will be sent."""
        index = self._index(key)
        if index is None:
            return
        self._hops[index].linked = False
        following = self._hops[index + 1 :]
        if following and following[0].flights and following[0].flights[0].fed:
            number = following[0].flights[0].number
            for hop in following:
                hop.drop_fed(number)

    def lost(self, key: int) -> bool:
        """The hop's peer or session is gone. False if the hop is not of this chain any more."""
        index = self._index(key)
        if index is None:
            return False
        self.unlinked(key)
        if index > 0:
            self.unlinked(self._hops[index - 1].key)
        hop = self._hops[index]
        hop.lost, hop.cached, hop.sent = True, 0, 0
        hop.flights.clear()
        return True

    def replace(self, key: int, spans: Sequence[Span], *, cached: int = 0) -> list[int]:
        """Put hops over `spans` in the place of a lost hop; returns their keys.

        The first keeps the lost hop's boundary and history; boundaries between the new hops
        start empty. `cached`: positions that a single new hop's peer holds already; those of which
        the output is missing are run again. Raises ValueError if the spans are not exactly the lost
        hop's blocks.
        """
        hop = self._hop(key)
        joined = all(a.end == b.start for a, b in itertools.pairwise(spans))
        if not hop.lost or not spans or not joined:
            raise ValueError(f"hop {key} lost: {hop.lost}; spans {list(map(str, spans))}")
        if (spans[0].start, spans[-1].end) != (hop.span.start, hop.span.end):
            raise ValueError(f"{spans[0].start}:{spans[-1].end} does not replace {hop.span}")
        if cached and len(spans) > 1:
            raise ValueError("only a single hop can hold what the lost one held")
        new = [_Hop(next(self._keys), span) for span in spans]
        new[0].arrived = hop.arrived
        index = self._hops.index(hop)
        if cached:
            last = index + 1 == len(self._hops)
            known = self._delivered if last else self._hops[index + 1].arrived
            new[0].cached = new[0].sent = min(cached, known, hop.arrived)
        self._hops[index : index + 1] = new
        return [one.key for one in new]

    def _hop(self, key: int) -> _Hop:
        index = self._index(key)
        if index is None:
            raise KeyError(f"no hop {key}")
        return self._hops[index]

    def _index(self, key: int) -> int | None:
        return next((i for i, hop in enumerate(self._hops) if hop.key == key), None)
