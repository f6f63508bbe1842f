"""The list of idle things: a pure decision, checked against a plain model; and the pool itself."""

from __future__ import annotations

import asyncio

from hypothesis import given
from hypothesis import strategies as st

from swarmd.clock import ManualClock
from swarmd.errors import Unreachable
from swarmd.identity import Identity
from swarmd.peers import Address
from swarmd.wire.pool import IDLE_SECONDS, MAX_IDLE_PER_PEER, IdleList, Pool
from swarmd.wire.protocol import State
from swarmd.wire.transport import Greeting
from tests.conftest import Runner
from tests.wire.ends import Greeter

actions = st.lists(
    st.one_of(
        st.tuples(st.just("put"), st.sampled_from("abc")),
        st.tuples(st.just("take"), st.sampled_from("abc")),
        st.tuples(st.just("expire"), st.floats(0.0, 20.0)),
    ),
    max_size=40,
)


@given(actions, st.integers(1, 3))
def test_idle_list_against_a_plain_model(script: list[tuple[str, object]], per_key: int) -> None:
    idle: IdleList[str, int] = IdleList(per_key=per_key, seconds=10.0)
    model: list[tuple[str, int, float]] = []
    now, number = 0.0, 0
    for action, argument in script:
        if action == "put":
            number += 1
            given_back = idle.put(str(argument), number, now)
            model.append((str(argument), number, now))
            same = [item for item in model if item[0] == argument]
            surplus = same[:-per_key]
            assert given_back == [value for _, value, _ in surplus]
            model = [item for item in model if item not in surplus]
        elif action == "take":
            same = [item for item in model if item[0] == argument]
            assert idle.take(str(argument)) == (same[-1][1] if same else None)
            if same:
                model.remove(same[-1])
        else:
            assert isinstance(argument, float)
            now += argument
            old = [item for item in model if now - item[2] >= 10.0]
            assert sorted(idle.expire(now)) == sorted(value for _, value, _ in old)
            model = [item for item in model if item not in old]
        assert len(idle) == len(model)
    assert sorted(idle.clear()) == sorted(value for _, value, _ in model)
    assert len(idle) == 0
    assert idle.clear() == []


def test_a_released_connection_is_used_again_until_it_is_old(run_either: Runner) -> None:
    async def work() -> None:
        clock = ManualClock()
        async with Greeter() as greeter, Pool(Greeting(), clock=clock) as pool:
            first = await pool.acquire(greeter.peer_id, greeter.address)
            second = await pool.acquire(greeter.peer_id, greeter.address)
            assert first.connection is not second.connection, "one session at a time"
            pool.release(first)
            pool.release(second)
            again = await pool.acquire(greeter.peer_id, greeter.address)
            assert again.connection is second.connection, "the one that was used last"
            pool.release(again)
            clock.advance(IDLE_SECONDS)
            fresh = await pool.acquire(greeter.peer_id, greeter.address)
            assert fresh.connection not in (first.connection, second.connection)
            assert not first.connection.is_usable
            assert not second.connection.is_usable
            pool.release(fresh)

    run_either(work())


def test_a_connection_that_is_not_clean_is_dropped(run_either: Runner) -> None:
    async def work() -> None:
        async with Greeter() as greeter, Pool(Greeting()) as pool:
            broken = await pool.acquire(greeter.peer_id, greeter.address)
            broken.connection.protocol.state = State.SESSION
            pool.release(broken)
            assert not broken.connection.is_usable
            cut = await pool.acquire(greeter.peer_id, greeter.address)
            pool.release(cut)
            for connection in greeter.connections:
                connection.abort()
            async with asyncio.timeout(10):
                while cut.connection.is_usable:
                    await asyncio.sleep(0.001)
            fresh = await pool.acquire(greeter.peer_id, greeter.address)
            assert fresh.connection is not cut.connection
            pool.release(fresh)

    run_either(work())


def test_no_more_than_a_few_are_kept_and_all_are_closed_at_the_end(run_either: Runner) -> None:
    async def work() -> None:
        async with Greeter() as greeter:
            async with Pool(Greeting()) as pool:
                taken = [
                    await pool.acquire(greeter.peer_id, greeter.address)
                    for _ in range(MAX_IDLE_PER_PEER + 2)
                ]
                for greeted in taken:
                    pool.release(greeted)
                usable = [greeted.connection.is_usable for greeted in taken]
                assert usable == [False] * 2 + [True] * MAX_IDLE_PER_PEER
            assert not any(greeted.connection.is_usable for greeted in taken)

    run_either(work())


def test_what_comes_back_after_the_end_is_dropped(run_either: Runner) -> None:
    """A client within a node may end after the node's pool."""

    async def work() -> None:
        async with Greeter() as greeter:
            async with Pool(Greeting()) as pool:
                early = await pool.acquire(greeter.peer_id, greeter.address)
            late = await pool.acquire(greeter.peer_id, greeter.address)
            for greeted in (early, late):
                assert greeted.connection.is_usable
                pool.release(greeted)
                assert not greeted.connection.is_usable

    run_either(work())


def test_a_dead_address_is_unreachable(run_either: Runner) -> None:
    async def work() -> None:
        async with Greeter() as greeter:
            address = greeter.address
        async with Pool(Greeting()) as pool:
            try:
                await pool.acquire(Identity.generate().peer_id, Address("127.0.0.1", address.port))
            except Unreachable as error:
                assert str(address.port) in str(error)
            else:
                raise AssertionError("nobody listens there")

    run_either(work())
