"""Which steps the engine runs next: a pure decision from the queue.

Steps belong to sessions, and sessions to clients. Each turn runs

- the step of every client that has just one waiting, if it has few tokens (a decode step): somebody
  reads along there;
- one piece for all others together: a chunk of a long step (a prefill), or a decode step of a
  client that has more steps waiting. Clients take turns at it by what they cost (`FairQueue`), and
  so do the sessions of one client.

So a long prompt delays the tokens of another client by at most one chunk a turn, and a client with
twenty sessions gets no more than one with a single session. A chunk is short while another client
decodes. Steps of one session run in the order in which they came.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable
from dataclasses import dataclass

from swarmd.compute.fair_queue import FairQueue

__all__ = ["Scheduler", "Turn", "Work"]


@dataclass(slots=True)
class Work:
    """A step that waits or is part done. `deadline`: seconds of the monotonic clock, or None.
    `client`: who pays for it; None is a client with this session only."""

    key: int
    session: Hashable
    tokens: int
    deadline: float | None = None
    done: int = 0
    client: Hashable | None = None

    @property
    def payer(self) -> Hashable:
        return ("session", self.session) if self.client is None else self.client

    @property
    def remaining(self) -> int:
        return self.tokens - self.done


@dataclass(frozen=True, slots=True)
class Turn:
    """What to run now: each piece is a step and how many of its tokens. `expired` missed its
    deadline while it waited, and is to be refused."""

    pieces: tuple[tuple[Work, int], ...]
    expired: tuple[Work, ...]


READING_SECONDS = 1.0
"""So long after its last decode step a client counts as one that reads along."""


class Scheduler:
    """`chunk_tokens`: the longest piece of a prefill; `shared_chunk_tokens`: the same while another
    client decodes; `decode_tokens`: up to which length a step counts as a decode step."""

    def __init__(
        self, *, chunk_tokens: int = 256, decode_tokens: int = 8, shared_chunk_tokens: int = 16
    ) -> None:
        if not 0 < decode_tokens <= chunk_tokens:
            raise ValueError("0 < decode_tokens <= chunk_tokens must hold")
        self.chunk_tokens = chunk_tokens
        self.shared_chunk_tokens = min(chunk_tokens, max(shared_chunk_tokens, decode_tokens + 1))
        self.decode_tokens = decode_tokens
        self._clients: dict[Hashable, dict[Hashable, deque[Work]]] = {}
        self._works: dict[int, Work] = {}
        self._among_clients = FairQueue()
        self._among_sessions: dict[Hashable, FairQueue] = {}
        self._read_at: dict[Hashable, float] = {}

    def __len__(self) -> int:
        """Steps that wait or are part done."""
        return len(self._works)

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

    def next_turn(self, now: float) -> Turn:
        """Choose the next pieces. Part-done steps stay queued until `advance` completes them."""
        expired = tuple(
            work
            for work in self._works.values()
            if work.deadline is not None and work.deadline <= now
        )
        for work in expired:
            self.remove(work.key)
        self._read_at = {c: at for c, at in self._read_at.items() if now - at < READING_SECONDS}
        pieces, others = [], []
        for client, sessions in self._clients.items():
            only = self._only_decode_step(sessions)
            if only is None:
                others.append(client)
                continue
            pieces.append((only, only.remaining))
            self._read_at[client] = now
        if others:
            pieces.append(self._shared_piece(others))
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

    def _only_decode_step(self, sessions: dict[Hashable, deque[Work]]) -> Work | None:
        if len(sessions) > 1:
            return None
        (queue,) = sessions.values()
        few = len(queue) == 1 and queue[0].remaining <= self.decode_tokens
        return queue[0] if few and queue[0].done == 0 else None

    def _shared_piece(self, clients: list[Hashable]) -> tuple[Work, int]:
        client = self._among_clients.pick(clients)
        sessions = self._clients[client]
        shares = self._among_sessions.setdefault(client, FairQueue())
        oldest_first = sorted(sessions, key=lambda session: sessions[session][0].key)
        work = sessions[shares.pick(oldest_first)][0]
        disturbs = any(reader != client for reader in self._read_at)
        longest = self.shared_chunk_tokens if disturbs else self.chunk_tokens
        return work, min(work.remaining, longest)
