"""The engine is shared fairly among clients, whatever number of sessions each of them has."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from swarmd.compute.fair_queue import FairQueue
from swarmd.compute.scheduler import SMALLEST_PIECE, STRETCH, Scheduler, Work
from swarmd.compute.turn_cost import TurnCost

CHUNK, DECODE = 16, 4
COST = TurnCost(8.0, 1.0)


def scheduler() -> Scheduler:
    return Scheduler(chunk_tokens=CHUNK, decode_tokens=DECODE, max_rows=32, cost=COST)


def costs_of(turns: int, sessions: dict[str, int], tokens: int) -> Counter[object]:
    """What each client got in so many turns, with every session refilled at once."""
    queue, got, key = scheduler(), Counter[object](), 0

    def add(client: object, session: object) -> None:
        nonlocal key
        queue.add(Work(key, session, tokens, client=client))
        key += 1

    for client, count in sessions.items():
        for number in range(count):
            add(client, (client, number))
    for _ in range(turns):
        for work, ran in queue.next_turn(0.0).pieces:
            got[work.client] += ran
            if queue.advance(work, ran):
                add(work.client, work.session)
    return got


def test_twenty_sessions_get_no_more_than_one() -> None:
    got = costs_of(400, {"many": 20, "single": 1}, tokens=100)
    assert 0.48 < got["single"] / got.total() < 0.52


@given(st.integers(1, 20), st.integers(2, 20), st.integers(DECODE + 1, 100))
def test_any_two_clients_get_the_same(one: int, other: int, tokens: int) -> None:
    got = costs_of(200, {"one": one, "other": other}, tokens)
    assert abs(got["one"] - got["other"]) <= 2 * CHUNK


def test_many_who_decode_do_not_slow_one_who_decodes() -> None:
    """The single session runs in every turn, and no turn takes more than twice as long as one with
    a step of each client."""
    got = costs_of(100, {"many": 20, "single": 1}, tokens=1)
    assert got["single"] == 100
    assert got["many"] <= 100 * (1 + COST.rows_within((STRETCH - 1) * COST.seconds(2)))
    assert got["many"] > 100, "what costs little is not held back"


def test_sessions_of_one_client_take_turns() -> None:
    queue, got = scheduler(), Counter[object]()
    for number in range(5):
        queue.add(Work(number, number, 1000, client="one"))
    for _ in range(50):
        ((work, ran),) = queue.next_turn(0.0).pieces
        queue.advance(work, ran)
        got[work.session] += ran
    assert set(got.values()) == {10 * CHUNK}


@given(st.integers(1, 5), st.integers(1, 6), st.integers(1, DECODE))
def test_a_decode_steps_turn_is_stretched_so_far_and_no_further(
    clients: int, sessions: int, tokens: int
) -> None:
    queue, key = scheduler(), 1000
    for client in range(clients):
        for number in range(sessions):
            queue.add(Work(client * 100 + number, (client, number), 5000, client=client))
    for _ in range(50):
        decode = Work(key, "reader", tokens, client="reader")
        key += 1
        queue.add(decode)
        pieces = queue.next_turn(0.0).pieces
        assert (decode, tokens) in pieces
        beside = sum(ran for work, ran in pieces if work is not decode)
        longest = STRETCH * COST.seconds(tokens)
        assert (
            beside <= SMALLEST_PIECE
            or COST.seconds(tokens) + COST.piece_seconds(beside) <= longest + 1e-9
        )
        assert beside > 0
        for work, ran in pieces:
            queue.advance(work, ran)


def test_chunks_are_long_again_when_nobody_reads_along() -> None:
    queue = scheduler()
    queue.add(Work(0, "long", 1000, client="long"))
    queue.add(Work(1, "reader", 1, client="reader"))
    seen = []
    for now in (0.0, 0.5, 2.0):
        for work, ran in queue.next_turn(now).pieces:
            queue.advance(work, ran)
            if work.session == "long":
                seen.append(ran)
    beside = COST.tokens_within((STRETCH - 1) * COST.seconds(1))
    assert seen == [beside, beside, CHUNK]
    assert beside < CHUNK


@given(
    st.floats(0, 100), st.floats(0.01, 1), st.integers(0, 5), st.integers(1, 20)
)  # fmt: skip
def test_a_piece_that_costs_more_than_a_turn_leaves_is_saved_up(
    piece: float, token: float, others: int, sessions: int
) -> None:
    """Whoever decodes has half of its pace over some turns, and the long step goes on."""
    cost = TurnCost(8.0, token, row=0.1, piece=piece)
    queue = Scheduler(chunk_tokens=CHUNK, decode_tokens=DECODE, max_rows=32, cost=cost)
    long = Work(0, "long", 10_000, client="long")
    queue.add(long)
    key, spent, alone = 1, 0.0, 0.0
    turns = 300
    waiting: set[object] = set()
    for _ in range(turns):
        for client in range(1 + others):
            for session in range(sessions):
                if (client, session) not in waiting:
                    queue.add(Work(key, (client, session), 1, client=client))
                    waiting.add((client, session))
                    key += 1
        pieces = queue.next_turn(0.0).pieces
        assert {work.client for work, _ in pieces} >= set(range(1 + others)), "all who decode run"
        rows = sum(ran for work, ran in pieces if work is not long)
        spent += cost.seconds(rows)
        alone += cost.seconds(1 + others)
        for work, ran in pieces:
            if work is long:
                spent += cost.piece_seconds(ran)
            else:
                waiting.discard(work.session)
            queue.advance(work, ran)
    assert long.done > 0
    smallest = turns * token * SMALLEST_PIECE if not piece else 0.0
    assert spent <= STRETCH * alone + smallest + cost.piece_seconds(CHUNK)


@given(
    st.lists(
        st.tuples(st.integers(0, 3), st.integers(0, 3), st.integers(1, 40), st.integers(0, 9)),
        max_size=20,
    ),
    st.integers(0, 5),
)
def test_what_is_gone_leaves_no_trace(plan: list[tuple[int, int, int, int]], turns: int) -> None:
    queue = scheduler()
    for key, (client, session, tokens, deadline) in enumerate(plan):
        queue.add(Work(key, (client, session), tokens, float(deadline), client=client))
    for now in range(turns):
        for work, ran in queue.next_turn(float(now)).pieces:
            queue.advance(work, ran)
    for key in range(len(plan)):
        queue.remove(key)
    assert queue.next_turn(100.0).pieces == ()
    assert len(queue) == 0
    left = (queue._clients, queue._works, queue._among_sessions, queue._read_at)
    assert not any(left)
    assert len(queue._among_clients) == 0


def test_who_pauses_saves_nothing_up_and_who_leaves_loses_no_debt() -> None:
    queue = FairQueue()
    queue.charge("busy", 10)
    assert queue.pick(["busy", "fresh"]) == "fresh"
    queue.charge("fresh", 1)
    assert queue.pick(["busy", "fresh"]) == "fresh"
    assert queue.pick(["busy"]) == "busy"  # alone: the level rises to its share
    queue.charge("busy", 5)
    assert queue.pick(["fresh", "busy"]) == "fresh"
    queue.charge("fresh", 6)  # counted from the level of 10, not from 1
    assert queue.pick(["fresh", "busy"]) == "busy"


def test_names_are_forgotten_as_the_level_passes_them() -> None:
    queue = FairQueue()
    for number in range(100_000):
        assert queue.pick([number]) == number
        queue.charge(number, 1.0)
        queue.charge("steady", 0.5)
        queue.pick(["steady"])
    assert len(queue) < 10
