"""Which steps the engine runs next: a pure decision from the queue.

Each turn takes the first waiting step of every session that has few tokens (a decode step), and
one chunk of one long step (a prefill) rides along. So a long prompt of one session delays the
tokens of another by at most one chunk a turn. Steps of one session run in the order in which
they came. Long steps take turns in order of arrival.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Hashable
from dataclasses import dataclass

__all__ = ["Scheduler", "Turn", "Work"]


@dataclass(slots=True)
class Work:
    """A step that waits or is part done. `deadline`: seconds of the monotonic clock, or None."""

    key: int
    session: Hashable
    tokens: int
    deadline: float | None = None
    done: int = 0

    @property
    def remaining(self) -> int:
        return self.tokens - self.done


@dataclass(frozen=True, slots=True)
class Turn:
    """What to run now: each piece is a step and how many of its tokens. `expired` missed its
    deadline while it waited, and is to be refused."""

    pieces: tuple[tuple[Work, int], ...]
    expired: tuple[Work, ...]


class Scheduler:
    """`chunk_tokens`: the longest piece of a prefill; `decode_tokens`: up to which length a step
    counts as a decode step."""

    def __init__(self, *, chunk_tokens: int = 256, decode_tokens: int = 8) -> None:
        if not 0 < decode_tokens <= chunk_tokens:
            raise ValueError("0 < decode_tokens <= chunk_tokens must hold")
        self.chunk_tokens = chunk_tokens
        self.decode_tokens = decode_tokens
        self._queues: OrderedDict[Hashable, deque[Work]] = OrderedDict()
        self._works: dict[int, Work] = {}

    def __len__(self) -> int:
        """Steps that wait or are part done."""
        return len(self._works)

    def add(self, work: Work) -> None:
        if work.key in self._works:
            raise ValueError(f"step {work.key} is queued already")
        self._works[work.key] = work
        self._queues.setdefault(work.session, deque()).append(work)

    def remove(self, key: int) -> bool:
        """Forget a step: it was cancelled, refused or finished. False if it is not known."""
        work = self._works.pop(key, None)
        if work is None:
            return False
        queue = self._queues[work.session]
        queue.remove(work)
        if not queue:
            del self._queues[work.session]
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
        heads = [queue[0] for queue in self._queues.values()]
        pieces = [(work, work.remaining) for work in heads if work.remaining <= self.decode_tokens]
        long = min(
            (work for work in heads if work.remaining > self.decode_tokens),
            key=lambda work: work.key,
            default=None,
        )
        if long is not None:
            pieces.append((long, min(long.remaining, self.chunk_tokens)))
        return Turn(tuple(pieces), expired)

    def advance(self, work: Work, tokens: int) -> bool:
        """Record that `tokens` of a step ran. True when the step is complete (and forgotten)."""
        work.done += tokens
        if work.remaining > 0:
            return False
        self.remove(work.key)
        return True
