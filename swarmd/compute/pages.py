"""The pages of the attention cache: who holds which, and which are kept for reuse. Pure.

| state | references | named | comes about by |
|---|---|---|---|
| free | 0 | no | the start; `release` of the last reference of a page without a name |
| held | 1 or more | maybe | `take` (one reference); `share` adds one |
| kept | 0 | yes | `release` of the last reference of a named page |

A name is the hash of everything that a page's content follows from (see `prefixes`), so a session
with the same beginning may hold the page as well. Kept pages are room: when free ones run out, the
one that was not used for longest loses its name and is free.

Sessions get pages that follow one another where that is possible, because the keys and values of
such a run are one slice of memory and need not be copied together at each step.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable

__all__ = ["PAGE_TOKENS", "PagePool", "pages_for", "whole_pages"]

PAGE_TOKENS = 32
"""Positions in a page. Smaller pages waste less at a session's end; larger ones need fewer lookups
and hashes. A page is also the unit in which a shared beginning is found."""


def pages_for(tokens: int) -> int:
    """How many pages so many positions need."""
    return -(-tokens // PAGE_TOKENS)


def whole_pages(tokens: int) -> int:
    """The tokens of as many whole pages as so many tokens are room for, one at least."""
    return max(1, tokens // PAGE_TOKENS) * PAGE_TOKENS


class PagePool:
    """All pages of a node, numbered from 0. Not thread-safe, but `available` may be read from any
    thread."""

    def __init__(self, n_pages: int) -> None:
        if n_pages < 1:
            raise ValueError("at least one page is needed")
        self.n_pages = n_pages
        self._references = [0] * n_pages
        self._names: dict[int, bytes] = {}
        self._named: dict[bytes, int] = {}
        self._kept: OrderedDict[int, None] = OrderedDict()
        self._free = set(range(n_pages))

    @property
    def available(self) -> int:
        """Pages that can be taken now, kept ones included."""
        return len(self._free) + len(self._kept)

    @property
    def kept(self) -> int:
        """Pages that nobody holds and that are kept for a session with the same beginning."""
        return len(self._kept)

    def take(self, count: int, after: int | None = None) -> list[int]:
        """Hold `count` pages, if possible the ones that follow page `after`. Raises ValueError when
        fewer are available: the caller asks first."""
        if count > self.available:
            raise ValueError(f"{count} pages were asked for, {self.available} are available")
        while len(self._free) < count:
            page, _ = self._kept.popitem(last=False)
            self._unname(page)
            self._free.add(page)
        taken: list[int] = []
        while len(taken) < count:
            wanted = count - len(taken)
            follower = after + 1 if after is not None else -1
            if follower not in self._free:
                follower = self._start_of_run(wanted)
            while wanted and follower in self._free:
                self._free.discard(follower)
                self._references[follower] = 1
                taken.append(follower)
                after, follower, wanted = follower, follower + 1, wanted - 1
        return taken

    def share(self, page: int) -> None:
        """Hold a page that is held or kept already."""
        if page in self._free:
            raise ValueError(f"page {page} is free")
        self._kept.pop(page, None)
        self._references[page] += 1

    def release(self, pages: Iterable[int]) -> None:
        """Give up one reference of each page."""
        for page in pages:
            if self._references[page] < 1:
                raise ValueError(f"page {page} is not held")
            self._references[page] -= 1
            if self._references[page]:
                continue
            if page in self._names:
                self._kept[page] = None
            else:
                self._free.add(page)

    def is_shared(self, page: int) -> bool:
        """Whether more than one session holds it, so that none may write to it."""
        return self._references[page] > 1

    def name(self, page: int, name: bytes) -> bool:
        """Let a held page be found by `name`; False if another one has that name already."""
        if self._references[page] < 1:
            raise ValueError(f"page {page} is not held")
        if name in self._named:
            return self._named[name] == page
        self._unname(page)
        self._names[page], self._named[name] = name, page
        return True

    def find(self, name: bytes) -> int | None:
        return self._named.get(name)

    def unname(self, page: int) -> None:
        """A held page is about to change: it is not found any more."""
        if self._references[page] < 1:
            raise ValueError(f"page {page} is not held")
        self._unname(page)

    def _unname(self, page: int) -> None:
        name = self._names.pop(page, None)
        if name is not None:
            del self._named[name]

    def _start_of_run(self, count: int) -> int:
        """Where a new run of pages best begins: in the longest gap, and in its middle if that
        leaves enough room, so that whoever holds the page before the gap can grow as well."""
        best_start, best_length, start, previous = -1, 0, -1, -2
        for page in sorted(self._free):
            if page != previous + 1:
                start = page
            previous = page
            if page - start + 1 > best_length:
                best_start, best_length = start, page - start + 1
        half = best_length // 2
        crowded = best_start > 0  # the page before the gap is somebody's
        return best_start + half if crowded and best_length - half >= count else best_start
