"""One session's place in the attention cache, with position semantics, and a client's share. Pure.

"Step at p" means: cut the cache back to p, then append. A cut is a change of one integer, so a
retry, a rejected draft and a replay cost nothing here. All blocks keep all positions, also those
with a sliding window: a cut back into a window that has been dropped would be impossible (ADR 5).

A session holds the pages of its positions (`pages`), the same numbers in each block. Pages that
another session holds as well are never written to: they are copied first.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass

from swarmd.blocks import Span
from swarmd.compute.pages import PAGE_TOKENS, PagePool, pages_for
from swarmd.errors import Busy, PositionOutOfRange

__all__ = ["KvBudget", "SessionCache", "Slots"]


class KvBudget:
    """How many tokens of the cache the sessions of one client may hold. What a part takes counts
    in its `whole` as well. Thread-safe."""

    def __init__(self, tokens: int, *, whole: KvBudget | None = None) -> None:
        self.tokens = tokens
        self._used = 0
        self._whole = whole
        self._lock = threading.Lock()

    @property
    def free(self) -> int:
        own = self.tokens - self._used
        return own if self._whole is None else min(own, self._whole.free)

    def take(self, tokens: int) -> None:
        """Reserve room. Raises Busy, and reserves nothing, when there is not enough."""
        with self._lock:
            if self._used + tokens > self.tokens:
                raise Busy(
                    f"your share of the cache is full: {self.tokens - self._used} of {self.tokens} "
                    f"tokens are free, {tokens} more are needed",
                    retry_after=1.0,
                )
            if self._whole is not None:
                self._whole.take(tokens)
            self._used += tokens

    def give_back(self, tokens: int) -> None:
        with self._lock:
            self._used -= tokens
        if self._whole is not None:
            self._whole.give_back(tokens)


@dataclass(frozen=True, slots=True)
class Slots:
    """Places in a block's buffers that follow one another: `[start, start + count)`."""

    start: int
    count: int


class SessionCache:
    """A session's pages over `blocks`; `limit` is its greatest length in tokens.

    `names` are those of its leading pages, as far as they are known (see `prefixes`).
    """

    def __init__(
        self, blocks: Span, limit: int, pool: PagePool, budget: KvBudget | None = None
    ) -> None:
        self.blocks = blocks
        self.limit = limit
        self.position = 0
        self.pages: list[int] = []
        self.names: list[bytes] = []
        self._pool = pool
        self._budget = budget
        self._runs: list[Slots] | None = None
        self._closed = False

    # ---- what a step needs ---------------------------------------------------------------------

    def check(self, start: int, tokens: int) -> None:
        """Raises PositionOutOfRange when a step begins beyond what is held, or ends beyond the
        limit."""
        if start > self.position:
            raise PositionOutOfRange(
                f"step at {start}, but the cache holds only {self.position} positions"
            )
        if start + tokens > self.limit:
            raise PositionOutOfRange(
                f"step ends at {start + tokens}; the session was opened for {self.limit}"
            )

    def missing_pages(self, start: int, tokens: int) -> int:
        """Pages that a step at `start` takes from the pool: for growth, and for copies of pages
        that are shared."""
        needed = pages_for(start + tokens)
        shared = sum(
            self._pool.is_shared(page) for page in self.pages[start // PAGE_TOKENS : needed]
        )
        return max(0, needed - len(self.pages)) + shared

    def prepare(self, start: int, tokens: int) -> list[tuple[int, int]]:
        """Cut back to `start` and hold pages for `tokens` more, which nobody else holds.

        Returns the pages to copy, as (from, to). Raises PositionOutOfRange and Busy, and then
        changes nothing.
        """
        self.check(start, tokens)
        first, needed = start // PAGE_TOKENS, pages_for(start + tokens)
        missing = self.missing_pages(start, tokens)
        if missing > self._pool.available:
            raise Busy(
                f"the attention cache is full: {self._pool.available * PAGE_TOKENS} tokens are "
                f"free, {missing * PAGE_TOKENS} more are needed",
                retry_after=1.0,
            )
        self._reserve(needed - len(self.pages))
        self.cut(start)
        self._drop(needed)
        copies = []
        for index in range(first, len(self.pages)):
            page = self.pages[index]
            if not self._pool.is_shared(page):
                self._pool.unname(page)
                continue
            (own,) = self._pool.take(1, self.pages[index - 1] if index else None)
            self.pages[index] = own
            if index * PAGE_TOKENS < start:
                copies.append((page, own))
            self._pool.release([page])
            self._runs = None
        if len(self.pages) < needed:
            last = self.pages[-1] if self.pages else None
            self.pages += self._pool.take(needed - len(self.pages), last)
            self._runs = None
        return copies

    def adopt(self, page: int, name: bytes) -> None:
        """Append a page of another session, or a kept one: one page further without computing.

        The position must lie at the end of the held pages. Raises Busy.
        """
        if self.position != len(self.pages) * PAGE_TOKENS:
            raise ValueError("a page can be adopted only at the end of the last page")
        self._reserve(1)
        self._pool.share(page)
        self.pages.append(page)
        self.names.append(name)
        self.position += PAGE_TOKENS
        self._runs = None

    # ---- positions -----------------------------------------------------------------------------

    def cut(self, position: int) -> None:
        """Forget everything from `position` on; pages stay until the next step needs fewer."""
        self.position = min(position, self.position)
        del self.names[self.position // PAGE_TOKENS :]

    def cut_to_pages(self, position: int) -> None:
        """Cut back and let go of all pages beyond, so that pages can be adopted from there."""
        self.cut(position)
        self._drop(pages_for(self.position))

    def advance(self, tokens: int) -> None:
        """Record that `tokens` more positions went through all blocks."""
        self.position += tokens

    def slots(self, start: int, end: int) -> list[Slots]:
        """Where the positions `[start, end)` lie, as few runs as there are."""
        if self._runs is None:
            self._runs = _runs(self.pages)
        found, base = [], 0
        for run in self._runs:
            low, high = max(start, base), min(end, base + run.count)
            if low < high:
                found.append(Slots(run.start + low - base, high - low))
            base += run.count
        return found

    def close(self) -> None:
        """Give all pages and the reservation back. Idempotent."""
        if self._closed:
            return
        self.cut(0)
        self._drop(0)
        self._closed = True
        self.limit = 0

    def _reserve(self, pages: int) -> None:
        if self._budget is not None and pages > 0:
            self._budget.take(pages * PAGE_TOKENS)

    def _drop(self, keep: int) -> None:
        """Release all pages but the first `keep`."""
        released = self.pages[keep:]
        if released:
            self._pool.release(reversed(released))
            del self.pages[keep:]
            self._runs = None
            if self._budget is not None:
                self._budget.give_back(len(released) * PAGE_TOKENS)


def _runs(pages: list[int]) -> list[Slots]:
    runs: list[Slots] = []
    for page in pages:
        if runs and runs[-1].start + runs[-1].count == page * PAGE_TOKENS:
            runs[-1] = Slots(runs[-1].start, runs[-1].count + PAGE_TOKENS)
        else:
            runs.append(Slots(page * PAGE_TOKENS, PAGE_TOKENS))
    return runs
