"""The ledger's promises: never exceeded, always given back, bounded memory, nobody locked out."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from swarmd.errors import Busy
from swarmd.identity import PeerId
from swarmd.node.limits import SessionLimits
from swarmd.node.quotas import Guest, Quotas
from swarmd.rates import Rates, address_key

LIMITS = SessionLimits(
    connections=6,
    client_connections=3,
    client_sessions=2,
    client_steps=4,
    handshakes=1000.0,
    payload_bytes=100,
)
HOSTS = ("192.0.2.1", "192.0.2.2", "2001:db8::1", "2001:db8::2", "127.0.0.1")


def check(quotas: Quotas, limits: SessionLimits) -> None:
    assert 0 <= quotas.payload_bytes <= limits.payload_bytes
    assert 0 <= quotas.open_connections <= limits.connections
    assert quotas.half_open <= quotas.open_connections
    for holdings in (quotas.connections, quotas.sessions, quotas.steps):
        assert all(0 < held <= holdings.limit for held in holdings._held.values())


@given(st.integers(0, 2**32))
def test_nothing_is_exceeded_and_everything_is_given_back(seed: int) -> None:
    rng, quotas, now = random.Random(seed), Quotas(LIMITS), 0.0
    guests: list[Guest] = []
    in_session: set[Guest] = set()
    for _ in range(300):
        now += rng.random() / 10
        event = rng.randrange(6)
        guest = rng.choice(guests) if guests else None
        try:
            if event == 0:
                fresh, evicted = quotas.admit(rng.choice(HOSTS), now)
                guests.append(fresh)
                if evicted is not None:
                    guests.remove(evicted)
                    in_session.discard(evicted)
            elif guest is None:
                continue
            elif event == 1 and guest in quotas._half_open:
                guest.greeted(PeerId(bytes([rng.randrange(3)]) * 20))
            elif event == 2 and guest not in in_session and guest not in quotas._half_open:
                guest.open_session()
                in_session.add(guest)
            elif event == 3 and guest in in_session:
                guest.take_step(rng.randrange(60))
            elif event == 4:
                guest.step_done()
            elif event == 5:
                if rng.random() < 0.5:
                    guest.close_session()
                else:
                    guest.leave()
                    guests.remove(guest)
                in_session.discard(guest)
        except Busy as error:
            assert error.retry_after is not None
            assert error.retry_after > 0
        check(quotas, LIMITS)
    for guest in guests:
        guest.leave()
        guest.leave()
    assert (quotas.payload_bytes, quotas.open_connections, quotas.half_open) == (0, 0, 0)
    assert [len(held) for held in (quotas.connections, quotas.sessions, quotas.steps)] == [0, 0, 0]


def test_a_million_addresses_leave_little_behind() -> None:
    quotas = Quotas(SessionLimits(handshakes=0.001))
    for number in range(1_000_000):
        keys = (("net4", number),)
        assert quotas.handshakes.admit(keys, 0.0) == 0.0
        quotas.connections.take(keys)
        quotas.connections.give_back(keys)
    assert len(quotas.connections) == 0
    assert len(quotas.handshakes) <= 4096


def test_a_full_node_drops_the_oldest_without_hello_first() -> None:
    quotas = Quotas(LIMITS)
    hosts = [f"198.51.100.{number}" for number in range(20)]
    greeted, _ = quotas.admit(hosts[0], 0.0)
    greeted.greeted(None)
    silent = [quotas.admit(host, 0.0)[0] for host in hosts[1:6]]
    for host, oldest in zip(hosts[6:11], silent, strict=True):
        guest, evicted = quotas.admit(host, 0.0)
        assert evicted is oldest
        guest.greeted(None)
    with pytest.raises(Busy):  # all have said hello: nobody makes room
        quotas.admit(hosts[11], 0.0)
    assert quotas.open_connections == LIMITS.connections


def test_one_address_cannot_push_others_out() -> None:
    """Its own limit comes first, so of six places it holds three however often it calls."""
    quotas = Quotas(LIMITS)
    others = [quotas.admit(f"198.51.100.{number}", 0.0)[0] for number in range(3)]
    for _ in range(3):
        quotas.admit("192.0.2.1", 0.0)
    for _ in range(100):
        with pytest.raises(Busy):
            quotas.admit("192.0.2.1", 0.0)
    assert all(guest in quotas._half_open for guest in others)


def test_two_clients_have_the_same_room() -> None:
    quotas = Quotas(LIMITS)
    one, other = (quotas.admit(host, 0.0)[0] for host in HOSTS[:2])
    for guest in (one, other):
        guest.open_session()
        for _ in range(LIMITS.client_steps):
            guest.take_step(1)
        with pytest.raises(Busy):
            guest.take_step(1)
    one.step_done()
    one.take_step(1)


def test_a_peer_with_many_addresses_is_one_client() -> None:
    quotas, peer = Quotas(LIMITS), PeerId(b"p" * 20)
    for number in range(LIMITS.client_connections):
        guest, _ = quotas.admit(f"203.0.113.{number}", 0.0)
        guest.greeted(peer)
        assert guest.client == ("peer", peer)
    late, _ = quotas.admit("203.0.113.9", 0.0)
    with pytest.raises(Busy):
        late.greeted(peer)
    late.leave()
    assert quotas.connections.held(("peer", peer)) == LIMITS.client_connections


def test_bytes_of_all_connections_are_counted_together() -> None:
    quotas = Quotas(LIMITS)
    one, other = (quotas.admit(host, 0.0)[0] for host in HOSTS[:2])
    one.take_step(60)
    with pytest.raises(Busy):
        other.take_step(41)
    with pytest.raises(Busy):
        other.take_step(30, unread=11)
    other.take_step(30, unread=10)


@given(
    st.lists(st.tuples(st.floats(0, 5), st.floats(0, 40)), min_size=1, max_size=50),
    st.floats(1, 20),
)
def test_who_waits_out_its_delays_keeps_to_the_rate(
    plan: list[tuple[float, float]], rate: float
) -> None:
    rates, now, spent, keys = Rates(rate, burst=10), 0.0, 0.0, (("net4", 1),)
    for pause, amount in plan:
        now += pause
        delay = rates.spend(keys, amount, now)
        assert delay >= 0.0
        now += delay
        spent += amount
        assert spent <= 10 + rate * now + 1e-6


def test_handshakes_come_back_with_time() -> None:
    rates, keys = Rates(2.0, burst=3), (("net4", 1),)
    assert [rates.admit(keys, 0.0) for _ in range(4)] == [0.0, 0.0, 0.0, 0.5]
    assert rates.admit(keys, 0.4) > 0.0
    assert rates.admit(keys, 0.5) == 0.0
    assert rates.admit((("net4", 2),), 0.5) == 0.0
    assert rates.admit((), 0.5) == 0.0


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("192.0.2.1", "192.0.2.2", False),
        ("192.0.2.1", "::ffff:192.0.2.1", True),
        ("2001:db8::1", "2001:db8::ffff:1", True),
        ("2001:db8:0:1::1", "2001:db8:0:2::1", False),
        ("fe80::1%eth0", "fe80::2%eth1", True),
    ],
)
def test_what_counts_as_one_address(one: str, other: str, same: bool) -> None:
    assert (address_key(one) == address_key(other)) is same


def test_loopback_counts_only_where_asked() -> None:
    for host in ("127.0.0.1", "127.9.9.9", "::1", "::ffff:127.0.0.1"):
        assert address_key(host) is None
        assert address_key(host, loopback=True) is not None
    assert address_key("?") is None
