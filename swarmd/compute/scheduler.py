"""Which steps the engine runs together next: a pure decision from queue, pages and deadlines.

Steps belong to sessions, and sessions to clients. Steps of one session run in the order in which
they came. A turn is one run through the blocks; it takes

1. a decode step (few tokens: somebody reads along) of every client that has one waiting;
2. further decode steps of the same clients, those first whose clients have cost least so far;
3. one piece of one long step (a prefill), of the client that has cost least so far, and of its
   sessions the one that has.

What 2 and 3 add is bounded by what it costs: while a client decodes, a turn takes at most
`STRETCH` times as long as one with a decode step of each client alone. So neither a long prompt nor
a client with twenty sessions makes another one's tokens come at less than half of their pace. Where
any piece of a long step costs more than that (`TurnCost.piece`: on a GPU), what turns leave unused
is saved until it pays for a whole piece: the same pace over some turns, instead of in each.

A step that needs pages of the attention cache begins when there are enough. Until then it waits:
decode steps need one page at most and go first, long steps stand in line. A step whose deadline
passes is refused; one that waited for pages says so.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field

from swarmd.compute.fair_queue import FairQueue
from swarmd.compute.turn_cost import TurnCost

__all__ = [
    "CHUNK_TOKENS",
    "DECODE_TOKENS",
    "MAX_ROWS",
    "STRETCH",
    "Refused",
    "Scheduler",
    "Turn",
    "Work",
]

READING_SECONDS = 1.0
"""So long after its last decode step a client counts as one that reads along."""

CHUNK_TOKENS = 256
"""The longest piece of a long step."""

DECODE_TOKENS = 8
"""The longest step that counts as one of decode."""

MAX_ROWS = 64
"""The most tokens of decode steps in a turn."""

STRETCH = 1.9
"""By how much what rides along may make the turns of those who read along longer."""

SMALLEST_PIECE = 8
"""A piece of a long step is not cut shorter than this: it would cost more turns than it spares."""


@dataclass(slots=True, eq=False)
class Work:
    """A step that waits or is part done. `deadline`: seconds of the monotonic clock, or None.
    `client`: who pays for it; None is a client with this session only."""

    key: int
    session: Hashable
    tokens: int
    deadline: float | None = None
    done: int = 0
    client: Hashable | None = None
    begun: bool = False
    lacks_pages: bool = False

    @property
    def payer(self) -> Hashable:
        return ("session", self.session) if self.client is None else self.client

    @property
    def remaining(self) -> int:
        return self.tokens - self.done


@dataclass(frozen=True, slots=True)
class Refused:
    """A step whose deadline passed; `for_pages`: while it waited for room in the cache."""

    work: Work
    for_pages: bool


@dataclass(frozen=True, slots=True)
class Turn:
    """What to run now, together: each piece is a step and how many of its tokens."""

    pieces: tuple[tuple[Work, int], ...]
    expired: tuple[Refused, ...] = ()

    @property
    def tokens(self) -> int:
        return sum(tokens for _, tokens in self.pieces)


@dataclass(slots=True)
class _Heads:
    """The steps that may run now, the first one of each session, by client."""

    decode: dict[Hashable, list[Work]] = field(default_factory=dict)
    long: dict[Hashable, list[Work]] = field(default_factory=dict)


class Scheduler:
    """`chunk_tokens`: the longest piece of a long step; `decode_tokens`: up to which length a step
    counts as a decode step; `max_rows`: the most tokens of decode steps in a turn."""

    def __init__(
        self,
        *,
        chunk_tokens: int = CHUNK_TOKENS,
        decode_tokens: int = DECODE_TOKENS,
        max_rows: int = MAX_ROWS,
        cost: TurnCost | None = None,
    ) -> None:
        if not 0 < decode_tokens <= min(chunk_tokens, max_rows):
            raise ValueError("0 < decode_tokens <= chunk_tokens, max_rows must hold")
        self.chunk_tokens = chunk_tokens
        self.decode_tokens = decode_tokens
        self.max_rows = max_rows
        self.cost = cost or TurnCost()
        self._clients: dict[Hashable, dict[Hashable, deque[Work]]] = {}
        self._works: dict[int, Work] = {}
        self._among_clients = FairQueue()
        self._among_sessions: dict[Hashable, FairQueue] = {}
        self._read_at: dict[Hashable, float] = {}
        self._saved = 0.0

    def __len__(self) -> int:
        """Steps that wait or are part done."""
        return len(self._works)

    def next_deadline(self) -> float | None:
        """When the first of the waiting steps has to be refused."""
        return min(
            (w.deadline for w in self._works.values() if w.deadline is not None), default=None
        )

    def add(self, work: Work) -> None:
        if work.key in self._works:
            raise ValueError(f"step {work.key} is queued already")
        self._works[work.key] = work
        sessions = self._clients.setdefault(work.payer, {})
        sessions.setdefault(work.session, deque()).append(work)

    def remove(self, key: int) -> bool:
        """Forget a step: it was cancelled, refused or finished. False if it is not known."""
        work = self._works.pop(key, None)
        if work is None:
            return False
        sessions = self._clients[work.payer]
        queue = sessions[work.session]
        queue.remove(work)
        if not queue:
            del sessions[work.session]
        if not sessions:
            del self._clients[work.payer]
            self._among_sessions.pop(work.payer, None)
        if not self._works:
            self._among_clients.clear()
        return True

    def next_turn(
        self, now: float, *, free_pages: int = 0, needs: Callable[[Work], int] = lambda _: 0
    ) -> Turn:
        """Choose the next pieces. `needs` tells how many of `free_pages` a step takes when it
        begins. Part-done steps stay queued until `advance` completes them.

        A turn without pieces, while steps wait, means that all of them lack pages.
        """
        expired = self._expire(now)
        self._read_at = {c: at for c, at in self._read_at.items() if now - at < READING_SECONDS}
        heads = self._startable(free_pages, needs)
        clients = heads.decode.keys() | heads.long.keys()
        if clients:
            self._among_clients.pick(sorted(clients, key=self._age))  # the level follows the least
        self._read_at.update(dict.fromkeys(heads.decode, now))
        pieces = self._first_of_each(heads.decode)
        spare = self._spare(pieces)
        for_long = spare / 2 if heads.long else 0.0
        alone = len(clients | self._read_at.keys()) <= 1
        room = self.max_rows if alone else self.cost.rows_within(spare - for_long)
        more = self._more_rows(heads.decode, pieces, room)
        for_long = max(for_long, spare - self.cost.of_row * sum(tokens for _, tokens in more))
        pieces += more
        if not heads.long:
            self._saved = 0.0
        elif (piece := self._long_piece(heads.long, bool(pieces), for_long)) is not None:
            pieces.append(piece)
        for work, _ in pieces:
            work.begun = True
        return Turn(tuple(pieces), expired)

    def advance(self, work: Work, tokens: int, cost: float | None = None) -> bool:
        """Record that `tokens` of a step ran and what they cost (seconds; None: one a token).
        True when the step is complete (and forgotten)."""
        cost = float(tokens) if cost is None else cost
        self._among_clients.charge(work.payer, cost)
        self._among_sessions.setdefault(work.payer, FairQueue()).charge(work.session, cost)
        work.done += tokens
        if work.remaining > 0:
            return False
        self.remove(work.key)
        return True

    def _expire(self, now: float) -> tuple[Refused, ...]:
        late = [w for w in self._works.values() if w.deadline is not None and w.deadline <= now]
        for work in late:
            self.remove(work.key)
        return tuple(Refused(work, work.lacks_pages) for work in late)

    def _startable(self, free_pages: int, needs: Callable[[Work], int]) -> _Heads:
        """The first step of each session, as far as there are pages for it, oldest first."""
        firsts = [queue[0] for sessions in self._clients.values() for queue in sessions.values()]
        firsts.sort(key=lambda work: (not self._is_decode(work), work.key))
        heads, line_stands = _Heads(), False
        for work in firsts:
            if not work.begun:
                needed = needs(work)
                decode = self._is_decode(work)
                work.lacks_pages = needed > free_pages or (line_stands and needed > 0)
                if work.lacks_pages:
                    line_stands = line_stands or not decode
                    continue
                free_pages -= needed
            by_client = heads.decode if self._is_decode(work) else heads.long
            by_client.setdefault(work.payer, []).append(work)
        return heads

    def _is_decode(self, work: Work) -> bool:
        return work.done == 0 and work.tokens <= self.decode_tokens

    def _first_of_each(self, decode: dict[Hashable, list[Work]]) -> list[tuple[Work, int]]:
        """A decode step of each client, as many as a turn has rows for."""
        pieces: list[tuple[Work, int]] = []
        rows = 0
        for client in sorted(decode, key=self._among_clients.share):
            work = self._pick_session(client, decode[client])
            if rows + work.tokens > self.max_rows:
                break
            pieces.append((work, work.tokens))
            rows += work.tokens
        return pieces

    def _spare(self, pieces: list[tuple[Work, int]]) -> float:
        """What may ride along with one decode step of each who reads along, also of those whose
        next step is still on its way: seconds."""
        readers = max(sum(count for _, count in pieces), len(self._read_at))
        return (STRETCH - 1) * self.cost.seconds(readers)

    def _more_rows(
        self, decode: dict[Hashable, list[Work]], first: list[tuple[Work, int]], room: int
    ) -> list[tuple[Work, int]]:
        """Further decode steps, in turn from the clients that cost least."""
        room = min(room, self.max_rows - sum(tokens for _, tokens in first))
        taken = {work.key for work, _ in first}
        waiting = {
            client: [work for work in works if work.key not in taken]
            for client, works in decode.items()
        }
        pieces: list[tuple[Work, int]] = []
        by_cost = sorted(waiting, key=self._among_clients.share)
        for number in range(max(map(len, waiting.values()), default=0)):
            for client in by_cost:
                if number >= len(waiting[client]):
                    continue
                work = waiting[client][number]
                if work.tokens > room:
                    return pieces
                pieces.append((work, work.tokens))
                room -= work.tokens
        return pieces

    def _long_piece(
        self, long: dict[Hashable, list[Work]], beside: bool, spare: float
    ) -> tuple[Work, int] | None:
        """A piece that costs what may be spent; None if that has to be saved up first. `beside`
        decode steps only: a turn without any would do nothing."""
        client = min(sorted(long, key=self._age), key=self._among_clients.share)
        work = self._pick_session(client, long[client])
        longest = min(work.remaining, self.chunk_tokens)
        if not beside and self._read_at.keys() <= {client}:
            self._saved = 0.0
            return work, longest  # nobody is made to wait
        if not self.cost.piece:
            return work, min(longest, max(SMALLEST_PIECE, self.cost.tokens_within(spare)))
        price = self.cost.piece_seconds(longest)
        self._saved += spare
        if beside and self._saved < price:
            return None
        self._saved = max(0.0, self._saved - price)
        return work, longest

    def _pick_session(self, client: Hashable, works: list[Work]) -> Work:
        shares = self._among_sessions.setdefault(client, FairQueue())
        by_session = {work.session: work for work in sorted(works, key=lambda work: work.key)}
        return by_session[shares.pick(by_session)]

    def _age(self, client: Hashable) -> int:
        """The number of a client's oldest step: of equals the one that came first goes first."""
        return min(queue[0].key for queue in self._clients[client].values())
