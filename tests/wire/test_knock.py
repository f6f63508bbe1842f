"""The knock: made by a key, for a peer, once, in time. Everything else leaves the door shut."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from swarmd.identity import Identity, PeerId
from swarmd.swarm_key import KeyRing, SwarmKey
from swarmd.wire.knock import CLOCK_TOLERANCE, KNOCK_BYTES, Doorkeeper, make_knock

OLD, NEW, STRANGE = SwarmKey(b"o" * 32), SwarmKey(b"n" * 32), SwarmKey(b"s" * 32)
PEER, OTHER = Identity.generate().peer_id, Identity.generate().peer_id
NOW = 1_700_000_000.0


def knock(
    key: SwarmKey = NEW, expected: PeerId | None = PEER, *, now: float = NOW, number: int = 0
) -> bytes:
    made = make_knock(key, expected, now=now, nonce=number.to_bytes(16, "big"))
    assert len(made) == KNOCK_BYTES
    return made


@pytest.mark.parametrize("expected", [PEER, None], ids=["us", "anybody"])
@pytest.mark.parametrize("key", [NEW, OLD])
def test_both_keys_of_a_ring_open_to_who_means_us_or_anybody(
    key: SwarmKey, expected: PeerId | None
) -> None:
    assert Doorkeeper(KeyRing(NEW, OLD), PEER).recognise(knock(key, expected), NOW) == key


def test_another_key_another_peer_and_a_key_that_was_given_up() -> None:
    keeper = Doorkeeper(KeyRing(NEW), PEER)
    assert keeper.recognise(knock(STRANGE), NOW) is None
    assert keeper.recognise(knock(OLD), NOW) is None
    assert keeper.recognise(knock(NEW, OTHER), NOW) is None
    assert keeper.recognise(knock(), NOW) == NEW, "what was refused leaves no trace"


@given(st.integers(0, 8 * KNOCK_BYTES - 1))
def test_no_bit_may_change(bit: int) -> None:
    made = bytearray(knock())
    made[bit // 8] ^= 1 << bit % 8
    assert Doorkeeper(KeyRing(NEW, OLD), PEER).recognise(bytes(made), NOW) is None


@given(st.binary(min_size=KNOCK_BYTES, max_size=KNOCK_BYTES))
def test_garbage(data: bytes) -> None:
    assert Doorkeeper(KeyRing(NEW, OLD), PEER).recognise(data, NOW) is None


def test_a_knock_opens_once_at_any_time() -> None:
    """Whether it was made by a fast clock or a slow one, and whenever it comes again."""
    for made in (NOW - CLOCK_TOLERANCE, NOW, NOW + CLOCK_TOLERANCE):
        keeper = Doorkeeper(KeyRing(NEW), PEER)
        assert keeper.recognise(knock(now=made), NOW) == NEW
        for later in (0, 1, 59, 60, 61, 119, 120, 121, 122, 123, 200):
            keeper.recognise(knock(number=later + 1, now=NOW + later), NOW + later)
            assert keeper.recognise(knock(now=made), NOW + later) is None, (made, later)


@pytest.mark.parametrize("off", [-CLOCK_TOLERANCE - 2, CLOCK_TOLERANCE + 2, 1e9, -1e9])
def test_clocks_that_differ_too_much(off: float) -> None:
    assert Doorkeeper(KeyRing(NEW), PEER).recognise(knock(now=NOW + off), NOW) is None


def test_the_memory_for_nonces_is_bounded_and_outsiders_fill_none_of_it() -> None:
    keeper = Doorkeeper(KeyRing(NEW), PEER, max_nonces=10)
    for number in range(100):
        assert keeper.recognise(knock(STRANGE, number=number), NOW) is None
    assert len(keeper._seen) == 0
    for number in range(100):
        assert keeper.recognise(knock(number=number), NOW) == NEW
        assert len(keeper._seen) <= 10
    assert keeper.recognise(knock(number=99), NOW) is None
    keeper.recognise(knock(number=200, now=NOW + 500), NOW + 500)
    assert len(keeper._seen) == 1, "what is too old to be used again is forgotten"
