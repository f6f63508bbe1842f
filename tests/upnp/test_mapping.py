"""The mapping's table, and what holds whatever a router answers."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from swarmd.upnp.mapping import (
    LEASE,
    PORTS,
    RENEW,
    RENEW_AGAIN,
    TRY_AGAIN,
    Add,
    Check,
    Delete,
    Discover,
    Done,
    Mapping,
    Protocol,
    State,
    Wait,
    is_of_the_internet,
)

TCP, UDP = Protocol.TCP, Protocol.UDP
OUTSIDE = "1.2.3.4"


def machine() -> Mapping:
    return Mapping(31330, rng=random.Random(1))


def mapped() -> Mapping:
    one = machine()
    one.found(OUTSIDE)
    one.granted(31330)
    one.granted(31330)
    assert one.instruction == Check(OUTSIDE, 31330)
    assert one.outside is None
    one.answered(True)
    return one


def test_the_straight_way() -> None:
    one = machine()
    assert one.instruction == Discover()
    one.found(OUTSIDE)
    assert one.instruction == Add(TCP, 31330, LEASE)
    one.granted(31330)
    assert one.instruction == Add(UDP, 31330, LEASE)
    one = mapped()
    assert one.instruction == Wait(RENEW)
    assert one.outside == (OUTSIDE, 31330)
    one.timer()
    one.found(OUTSIDE)
    assert one.outside == (OUTSIDE, 31330)
    one.granted(31330)
    one.granted(31330)
    assert one.instruction == Wait(RENEW)  # the same address: nobody is asked again
    one.drop()
    assert one.instruction == Delete(UDP, 31330)
    one.deleted()
    assert one.instruction == Delete(TCP, 31330)
    one.failed("silent")
    assert one.instruction == Done()
    assert one.outside is None


def test_permanent_leases_only() -> None:
    one = machine()
    one.found(OUTSIDE)
    one.refused(725)
    assert one.instruction == Add(TCP, 31330, 0)
    one.granted(31330)
    assert one.instruction == Add(UDP, 31330, 0)
    assert one.permanent
    one.refused(725)  # a router that has no lease at all
    assert one.instruction == Delete(TCP, 31330)
    one.deleted()
    assert one.instruction == Wait(TRY_AGAIN)


def test_a_taken_port_leads_to_another_for_both() -> None:
    one = machine()
    one.found(OUTSIDE)
    one.granted(31330)
    one.refused(718)
    assert one.instruction == Delete(TCP, 31330)
    one.deleted()
    add = one.instruction
    assert isinstance(add, Add)
    assert add.any
    assert add.port != 31330
    one.granted(45678)  # the router chose
    assert one.instruction == Add(UDP, 45678, LEASE)


def test_ports_are_not_tried_for_ever() -> None:
    one, tried = machine(), []
    one.found(OUTSIDE)
    while isinstance(add := one.instruction, Add):
        tried.append(add.port)
        one.refused(718)
    assert len(tried) == PORTS
    assert one.state is State.IDLE
    assert "718" in one.why


def test_renewals_may_fail_twice() -> None:
    one = mapped()
    for _ in range(2):
        one.timer()
        one.failed("silent")
        assert one.instruction == Wait(RENEW_AGAIN)
        assert one.outside is not None
    one.timer()
    one.failed("silent")
    assert isinstance(one.instruction, Delete)
    assert one.outside is None


def test_another_address_is_checked_anew() -> None:
    one = mapped()
    one.timer()
    one.found("1.2.3.5")
    one.granted(31330)
    one.granted(31330)
    assert one.instruction == Check("1.2.3.5", 31330)
    one.answered(False)
    assert isinstance(one.instruction, Delete)


def test_what_others_cannot_dial_is_mapped_and_checked_again() -> None:
    one = mapped()
    one.shaken()
    assert one.instruction == Discover()
    one.found(OUTSIDE)
    one.granted(31330)
    one.granted(31330)
    assert one.instruction == Check(OUTSIDE, 31330)


@pytest.mark.parametrize(
    ("host", "use"),
    [
        ("8.8.8.8", True), ("10.0.0.1", False), ("172.16.0.1", False), ("192.168.1.1", False),
        ("100.64.0.1", False), ("100.127.255.255", False), ("169.254.1.1", False),
        ("127.0.0.1", False), ("0.0.0.0", False), ("224.1.1.1", False), ("x", False),
        ("255.255.255.255", False), ("2606:4700::1", False), ("", False),
    ],
)  # fmt: skip
def test_which_addresses_are_of_use(host: str, use: bool) -> None:
    assert is_of_the_internet(host) is use
    if not use:
        one = machine()
        one.found(host)
        assert one.instruction == Wait(TRY_AGAIN)
        assert host in one.why


EVENTS = st.lists(st.tuples(st.integers(0, 5), st.integers(1, 65535)), max_size=80)


@given(events=EVENTS, seed=st.integers(0, 999))
def test_whatever_a_router_answers(events: list[tuple[int, int]], seed: int) -> None:
    """Nothing that was granted is forgotten, and `drop` ends with nothing left at the router."""
    one = Mapping(31330, rng=random.Random(seed))
    at_router: set[tuple[Protocol, int]] = set()
    refused_lease = False
    for choice, number in events:
        match one.instruction:
            case Discover():
                if choice < 2:
                    one.failed("silent")
                else:
                    one.found(["10.0.0.1", OUTSIDE, OUTSIDE, "1.2.3.5"][choice - 2])
            case Add(protocol, port, lease, any):
                assert lease in (LEASE, 0)
                assert lease or refused_lease
                if choice == 0:
                    at_router.discard((protocol, port))  # another has it now
                    one.refused(718)
                elif choice == 5:
                    one.refused(501)
                elif choice == 1:
                    refused_lease = True
                    one.refused(725)
                elif choice == 2:
                    at_router.add((protocol, port))  # done, but the answer was lost
                    one.failed("silent")
                else:
                    chosen = number if any else port
                    at_router.add((protocol, chosen))
                    one.granted(chosen)
            case Check():
                assert {protocol for protocol, _ in at_router} == {TCP, UDP}
                one.answered(choice > 1)
            case Wait(seconds):
                assert seconds > 0
                if choice == 0:
                    one.shaken()
                else:
                    one.timer()
            case Delete(protocol, port):
                at_router.discard((protocol, port))
                one.deleted()
        assert len(at_router) <= 2
        if one.outside is not None:
            assert is_of_the_internet(one.outside[0])
            assert at_router == {(TCP, one.outside[1]), (UDP, one.outside[1])}
    one.drop()
    while isinstance(delete := one.instruction, Delete):
        at_router.discard((delete.protocol, delete.port))
        one.deleted()
    assert one.instruction == Done()
    assert not at_router


def test_an_event_out_of_turn_is_a_bug() -> None:
    with pytest.raises(RuntimeError, match="nobody was told"):
        machine().granted(1)
