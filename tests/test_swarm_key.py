"""Swarm keys: what is written is read, what is not a key is refused, and no secret is printed."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from swarmd.errors import UsageError
from swarmd.swarm_key import PUBLIC_KEYS, PUBLIC_SWARM_KEY, KeyRing, SwarmKey


@given(secret=st.binary(min_size=32, max_size=32))
def test_a_key_is_read_as_it_was_written(secret: bytes) -> None:
    key = SwarmKey(secret)
    assert SwarmKey.parse(key.text) == key
    assert (
        SwarmKey.parse(f"  {key.text.upper().replace('SWARMD-KEY-1-', 'swarmd-key-1-')}\n") == key
    )
    assert key.text not in repr(key)
    assert secret.hex() not in repr(key)


@given(text=st.text(max_size=80))
def test_what_is_not_a_key_is_refused_without_being_repeated(text: str) -> None:
    for candidate in (text, f"swarmd-key-1-{text}"):
        with pytest.raises(UsageError, match="swarmd key new"):
            SwarmKey.parse(candidate)


def test_keys_differ_in_all_that_is_derived() -> None:
    one, two = SwarmKey.generate(), SwarmKey.generate()
    derived = {key.derive(use) for key in (one, two) for use in (b"datagram", b"stream")}
    assert len(derived | {one.secret, two.secret}) == 6
    assert one.swarm_id != two.swarm_id
    assert one.derive(b"x") == SwarmKey(one.secret).derive(b"x")


def test_a_ring_has_one_key_or_two() -> None:
    old, new = SwarmKey.generate(), SwarmKey.generate()
    ring = KeyRing.parse(f"# since Monday\n\n{new.text}\n{old.text}\n")
    assert ring == KeyRing(new, old) == KeyRing.parse(ring.text)
    assert ring.accepted == (new, old)
    assert KeyRing.parse(new.text).accepted == (new,)
    third = SwarmKey.generate().text
    for wrong in ("", "# nothing\n", f"{new.text}\n{new.text}", f"{ring.text}{third}"):
        with pytest.raises(UsageError):
            KeyRing.parse(wrong)


def test_the_public_swarm_is_known_as_such() -> None:
    assert PUBLIC_KEYS.is_public
    assert PUBLIC_KEYS.current is PUBLIC_SWARM_KEY
    assert not KeyRing(SwarmKey.generate(), PUBLIC_SWARM_KEY).is_public


def test_a_key_has_32_bytes() -> None:
    with pytest.raises(UsageError, match="32 bytes, not 31"):
        SwarmKey(bytes(31))
