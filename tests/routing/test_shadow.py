"""A standby holds what its hop was given, whatever is cut back, refused or late."""

from __future__ import annotations

from collections import deque

from hypothesis import given
from hypothesis import strategies as st

from swarmd.routing.shadow import WINDOW, Shadow, ShadowRun


class Peer:
    """A peer's cache, by the protocol's rule: a step cuts back to its start, and appends."""

    def __init__(self) -> None:
        self.held: list[int] = []
        self.inbox: deque[tuple[ShadowRun, list[int]]] = deque()
        self.outbox: deque[int] = deque()

    def run(self) -> None:
        run, items = self.inbox.popleft()
        assert run.start <= len(self.held), "a gap"
        self.held = self.held[: run.start] + items
        self.outbox.append(run.number)


OPERATIONS = st.lists(
    st.tuples(st.sampled_from(["arrive", "cut", "send", "run", "answer", "refuse"]),
              st.integers(0, 12)),
    max_size=120,
)  # fmt: skip


@given(OPERATIONS, st.integers(1, 7))
def test_it_holds_what_the_history_says(operations: list[tuple[str, int]], chunk: int) -> None:
    shadow, peer, history = Shadow(), Peer(), list[int]()
    names, number = iter(range(100_000)), 0

    def send() -> bool:
        nonlocal number
        number += 1
        run = shadow.next(len(history), number=number, chunk=chunk)
        if run is not None:
            assert run.end - run.start <= chunk
            peer.inbox.append((run, history[run.start : run.end]))
        return run is not None

    for what, amount in operations:
        if what == "arrive":
            history += [next(names) for _ in range(amount)]
        elif what == "cut":
            del history[amount:]
            shadow.cut(amount)
        elif what == "send":
            send()
        elif what == "run" and peer.inbox:
            peer.run()
        elif what == "answer" and peer.outbox:
            shadow.finished(peer.outbox.popleft())
        elif what == "refuse" and peer.inbox:
            # what was sent behind it has no place any more either
            for run, _ in list(peer.inbox):
                while peer.outbox:  # answers are in order
                    shadow.finished(peer.outbox.popleft())
                shadow.refused(run.number)
            peer.inbox.clear()
        assert shadow.cached <= len(history)
        ahead = [run for run, _ in peer.inbox]
        certain = min([shadow.cached, *(run.start for run in ahead)])
        if not peer.outbox and not ahead:
            certain = shadow.cached
        assert peer.held[:certain] == history[:certain]
    for _ in range(10 * (len(history) + WINDOW)):
        while send():
            pass
        while peer.inbox:
            peer.run()
        while peer.outbox:
            shadow.finished(peer.outbox.popleft())
    assert shadow.cached == len(history)
    assert peer.held[: len(history)] == history


def test_few_runs_are_on_their_way() -> None:
    shadow = Shadow()
    runs = [shadow.next(100, number=n, chunk=10) for n in range(WINDOW + 2)]
    assert [run is not None for run in runs] == [True] * WINDOW + [False] * 2
    shadow.finished(1)
    assert shadow.cached == 20
    run = shadow.next(100, number=9, chunk=10)
    assert run is not None
    assert (run.start, run.end) == (40, 50)


def test_an_answer_to_what_was_cut_is_void() -> None:
    shadow = Shadow()
    shadow.next(8, number=1, chunk=8)
    shadow.cut(3)
    shadow.cut(0)
    shadow.finished(1)
    assert shadow.cached == 0
