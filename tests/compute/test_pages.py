"""Pages: no page has two owners unaware of each other, none is lost, names tell the truth."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, invariant, rule

from swarmd.compute.pages import PagePool, pages_for, whole_pages

N_PAGES = 12


class Pool(RuleBasedStateMachine):
    """A model of the table in `pages`: references by page and names, in plain dictionaries."""

    holders: Bundle[int] = Bundle("holders")

    def __init__(self) -> None:
        super().__init__()
        self.pool = PagePool(N_PAGES)
        self.held: dict[int, list[int]] = {}
        self.names: dict[bytes, int] = {}
        self.next_holder = 0

    def references(self, page: int) -> int:
        return sum(pages.count(page) for pages in self.held.values())

    @rule(target=holders)
    def join(self) -> int:
        self.next_holder += 1
        self.held[self.next_holder] = []
        return self.next_holder

    @rule(holder=holders, count=st.integers(0, 5))
    def take(self, holder: int, count: int) -> None:
        pages = self.held[holder]
        if count > self.pool.available:
            with pytest.raises(ValueError, match="available"):
                self.pool.take(count)
            return
        taken = self.pool.take(count, pages[-1] if pages else None)
        assert len(set(taken)) == count
        assert not any(self.references(page) for page in taken), "nobody held them"
        pages += taken
        self.names = {name: page for name, page in self.names.items() if page not in taken}

    @rule(holder=holders, name=st.sampled_from([b"a", b"b", b"c", b"d"]))
    def name(self, holder: int, name: bytes) -> None:
        for page in self.held[holder][-1:]:
            fresh = self.names.get(name, page) == page
            assert self.pool.name(page, name) is fresh
            if fresh:
                self.names = {n: p for n, p in self.names.items() if p != page}
                self.names[name] = page

    @rule(holder=holders, name=st.sampled_from([b"a", b"b", b"c", b"d"]))
    def share(self, holder: int, name: bytes) -> None:
        page = self.pool.find(name)
        if page is not None:
            self.pool.share(page)
            self.held[holder].append(page)

    @rule(holder=holders)
    def write(self, holder: int) -> None:
        for page in self.held[holder][-1:]:
            assert self.pool.is_shared(page) == (self.references(page) > 1)
            self.pool.unname(page)
            self.names = {name: p for name, p in self.names.items() if p != page}

    @rule(holder=holders, keep=st.integers(0, 4))
    def release(self, holder: int, keep: int) -> None:
        released = self.held[holder][keep:]
        del self.held[holder][keep:]
        self.pool.release(released)

    @invariant()
    def nothing_is_lost(self) -> None:
        held = {page for pages in self.held.values() for page in pages}
        assert self.pool.available == N_PAGES - len(held)
        kept = {page for page in self.names.values() if page not in held}
        assert self.pool.kept == len(kept)
        for name in (b"a", b"b", b"c", b"d"):
            assert self.pool.find(name) == self.names.get(name)


TestPool = Pool.TestCase
TestPool.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)


def test_two_sessions_that_grow_in_turn_keep_runs() -> None:
    """Each finds room behind its own pages, so both stay in one piece until they meet."""
    pool = PagePool(32)
    one, two = pool.take(1), pool.take(1)
    for _ in range(10):
        one += pool.take(1, one[-1])
        two += pool.take(1, two[-1])
    for pages in (one, two):
        assert pages == list(range(pages[0], pages[0] + 11))


def test_what_was_not_used_for_longest_is_given_up_first() -> None:
    pool = PagePool(3)
    for page, name in zip(pool.take(3), (b"old", b"newer", b"newest"), strict=True):
        pool.name(page, name)
        pool.release([page])
    pool.share(found := pool.find(b"old") or 0)
    pool.release([found])  # used again
    pool.take(1)
    assert pool.find(b"newer") is None
    assert pool.find(b"old") is not None
    assert pool.find(b"newest") is not None


def test_misuse() -> None:
    pool = PagePool(2)
    for wrong in (pool.share, pool.unname, lambda page: pool.release([page])):
        with pytest.raises(ValueError):
            wrong(0)
    with pytest.raises(ValueError):
        pool.name(0, b"x")
    with pytest.raises(ValueError):
        PagePool(0)


def test_rounding() -> None:
    assert [pages_for(n) for n in (0, 1, 32, 33)] == [0, 1, 1, 2]
    assert [whole_pages(n) for n in (0, 1, 32, 63, 64)] == [32, 32, 32, 32, 64]
