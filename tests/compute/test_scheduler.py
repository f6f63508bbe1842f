"""The scheduler's promises, for any arrivals, lengths, deadlines and cancels."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from swarmd.compute.scheduler import STRETCH, Scheduler, Turn, Work

CHUNK, DECODE = 16, 4

arrivals = st.lists(
    st.tuples(st.integers(0, 3), st.integers(1, 60), st.integers(0, 12)), max_size=25
)


@dataclass
class Log:
    """What ran: the pieces of each step, and each session's steps in order of their end."""

    pieces: dict[int, list[int]] = field(default_factory=dict)
    order: dict[int, list[int]] = field(default_factory=dict)
    started: dict[int, list[int]] = field(default_factory=dict)


def run_turn(scheduler: Scheduler, turn: Turn, log: Log) -> None:
    sessions = [work.session for work, _ in turn.pieces]
    assert len(set(sessions)) == len(sessions), "two steps of one session in one turn"
    long = [tokens for work, tokens in turn.pieces if work.remaining > DECODE]
    assert len(long) <= 1, "more than one chunk rides along"
    for work, tokens in turn.pieces:
        assert 0 < tokens <= min(CHUNK, work.remaining)
        log.pieces.setdefault(work.key, []).append(tokens)
        if work.done == 0:
            log.started.setdefault(int(str(work.session)), []).append(work.key)
        complete = scheduler.advance(work, tokens)
        assert complete == (work.done == work.tokens)
        if complete:
            log.order.setdefault(int(str(work.session)), []).append(work.key)


@given(arrivals)
def test_every_token_runs_once_and_sessions_keep_their_order(
    plan: list[tuple[int, int, int]],
) -> None:
    scheduler, log = Scheduler(chunk_tokens=CHUNK, decode_tokens=DECODE), Log()
    waiting = sorted(
        ((turn, key, session, tokens) for key, (session, tokens, turn) in enumerate(plan))
    )
    number = 0
    arrived: dict[int, list[int]] = {}
    while waiting or len(scheduler):
        while waiting and waiting[0][0] <= number:
            _, key, session, tokens = waiting.pop(0)
            scheduler.add(Work(key, session, tokens))
            arrived.setdefault(session, []).append(key)
        turn = scheduler.next_turn(0.0)
        assert bool(turn.pieces) == bool(len(scheduler)), "no turn is idle while steps wait"
        run_turn(scheduler, turn, log)
        number += 1
        assert number < 1000
    assert {key: sum(pieces) for key, pieces in log.pieces.items()} == {
        key: tokens for key, (_, tokens, _) in enumerate(plan)
    }
    assert log.order == log.started == arrived


@given(st.lists(st.integers(DECODE + 1, 500), min_size=1, max_size=6), st.integers(1, DECODE))
def test_a_decode_step_never_waits_for_more_than_one_chunk(prompts: list[int], tokens: int) -> None:
    """Whatever long steps are queued, it runs in the very next turn, beside one chunk."""
    scheduler = Scheduler(chunk_tokens=CHUNK, decode_tokens=DECODE)
    for key, length in enumerate(prompts):
        scheduler.add(Work(key, f"long {key}", length))
    key = len(prompts)
    for _ in range(1000):
        if not len(scheduler):
            break
        decode = Work(key, "decode", tokens)
        key += 1
        scheduler.add(decode)
        turn = scheduler.next_turn(0.0)
        assert (decode, tokens) in turn.pieces
        others = [(work, n) for work, n in turn.pieces if work is not decode]
        assert sum(n for work, n in others if work.remaining > DECODE) <= CHUNK
        for work, n in turn.pieces:
            scheduler.advance(work, n)
    assert len(scheduler) == 0


def test_all_decode_steps_run_in_one_turn_and_the_oldest_prompt_rides_along() -> None:
    scheduler = Scheduler(chunk_tokens=CHUNK, decode_tokens=DECODE)
    works = [Work(key, f"s{key}", tokens) for key, tokens in enumerate((100, 1, 200, 4, 5))]
    for work in works:
        scheduler.add(work)
    pieces = {work.key: tokens for work, tokens in scheduler.next_turn(0.0).pieces}
    assert pieces == {
        0: scheduler.cost.tokens_within((STRETCH - 1) * scheduler.cost.seconds(5)),
        1: 1,
        3: 4,
    }
    for key in (0, 1, 3):
        scheduler.remove(key)
    assert {work.key for work, _ in scheduler.next_turn(0.0).pieces} == {2}


@given(
    st.lists(
        st.tuples(st.integers(0, 3), st.integers(1, 40), st.none() | st.integers(0, 10)),
        min_size=1,
        max_size=15,
    ),
    st.integers(0, 10),
)
def test_what_is_late_is_refused_once_and_never_runs(
    plan: list[tuple[int, int, int | None]], now: int
) -> None:
    scheduler = Scheduler(chunk_tokens=CHUNK, decode_tokens=DECODE)
    for key, (session, tokens, deadline) in enumerate(plan):
        scheduler.add(Work(key, session, tokens, deadline))
    late = {key for key, (_, _, at) in enumerate(plan) if at is not None and at <= now}
    turn = scheduler.next_turn(now)
    assert {refused.work.key for refused in turn.expired} == late
    assert not late & {work.key for work, _ in turn.pieces}
    assert len(scheduler) == len(plan) - len(late)
    assert scheduler.next_turn(now).expired == ()
    assert not any(scheduler.remove(key) for key in late)


@given(arrivals, st.data())
def test_a_removed_step_never_runs_and_holds_nobody_up(
    plan: list[tuple[int, int, int]], data: st.DataObject
) -> None:
    scheduler, log = Scheduler(chunk_tokens=CHUNK, decode_tokens=DECODE), Log()
    for key, (session, tokens, _) in enumerate(plan):
        scheduler.add(Work(key, session, tokens))
    run_turn(scheduler, scheduler.next_turn(0.0), log)  # some are part done
    removed = data.draw(st.sets(st.integers(0, max(0, len(plan) - 1))))
    before = {key: sum(pieces) for key, pieces in log.pieces.items()}
    gone = {key for key in removed if scheduler.remove(key)}
    assert not any(scheduler.remove(key) for key in gone)
    for _ in range(1000):
        if not len(scheduler):
            break
        run_turn(scheduler, scheduler.next_turn(0.0), log)
    assert len(scheduler) == 0
    ran = {key: sum(pieces) for key, pieces in log.pieces.items()}
    for key, (_, tokens, _) in enumerate(plan):
        assert ran.get(key, 0) == (before.get(key, 0) if key in gone else tokens)


def test_misuse() -> None:
    scheduler = Scheduler()
    scheduler.add(Work(1, "a", 1))
    with pytest.raises(ValueError, match="queued already"):
        scheduler.add(Work(1, "b", 1))
    for wrong in ({"decode_tokens": 0}, {"chunk_tokens": 2, "decode_tokens": 3}):
        with pytest.raises(ValueError):
            Scheduler(**wrong)
