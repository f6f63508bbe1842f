"""Invites: what is printed is read back, and nothing else is read at all."""

from __future__ import annotations

import base64
import contextlib
import hashlib
from typing import Any

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from swarmd.errors import UsageError
from swarmd.identity import PeerId
from swarmd.invite import MAX_TEXT, PREFIX, Contact, Invite
from swarmd.peers import Address
from swarmd.swarm_key import SwarmKey

PEER = PeerId(b"p" * 20)
HOSTS = st.one_of(
    st.ip_addresses().map(str),
    st.from_regex(r"[a-z][a-z0-9-]{0,20}(\.[a-z]{2,8}){1,3}", fullmatch=True),
)
CONTACTS = st.builds(
    Contact,
    st.binary(min_size=20, max_size=20).map(PeerId),
    st.builds(Address, HOSTS, st.integers(1, 65535)),
)
INVITES = st.builds(
    Invite,
    st.lists(CONTACTS, min_size=1, max_size=4).map(tuple),
    st.none() | st.binary(min_size=32, max_size=32).map(SwarmKey),
)
SAMPLE = Invite((Contact(PEER, Address("192.0.2.7", 31330)),), SwarmKey(b"s" * 32))


def text_of(body: bytes) -> str:
    """An invite's text with a checksum that is right, whatever the body says."""
    raw = body + hashlib.sha256(body).digest()[:4]
    return PREFIX + base64.b32encode(raw).decode().rstrip("=").lower()


@given(INVITES)
def test_what_is_printed_is_read_back(invite: Invite) -> None:
    assert len(invite.text) <= MAX_TEXT
    assert Invite.parse(f"  {invite.text}\n") == invite


@given(st.data())
def test_a_changed_character_is_found(data: st.DataObject) -> None:
    text = SAMPLE.text
    place = data.draw(st.integers(0, len(text) - 1))
    other = data.draw(st.characters(codec="utf-8").filter(lambda c: c != text[place]))
    with pytest.raises(UsageError, match="not a whole invite"):
        Invite.parse(text[:place] + other + "x" + text[place + 1 :])
    with pytest.raises(UsageError, match="not a whole invite"):
        Invite.parse(text[:place])


@given(st.binary(max_size=300))
def test_bytes_of_a_stranger_are_refused(body: bytes) -> None:
    with contextlib.suppress(UsageError):
        assert Invite.parse(text_of(body)).text == text_of(body)


@given(st.text(max_size=200))
def test_any_text_is_refused_by_one_error(text: str) -> None:
    with pytest.raises(UsageError):
        Invite.parse(PREFIX + text)


NODE: list[Any] = [bytes(PEER), "192.0.2.7", 31330]


@pytest.mark.parametrize(
    "content",
    [
        [b"", []],
        [b"", [NODE] * 5],
        [b"short", [NODE]],
        ["text", [NODE]],
        [b"", [[b"p" * 19, "192.0.2.7", 1]]],
        [b"", [[bytes(PEER), "192.0.2.7", 0]]],
        [b"", [[bytes(PEER), "192.0.2.7", 65536]]],
        [b"", [[bytes(PEER), "192.0.2.7", True]]],
        [b"", [[bytes(PEER), "bad host", 1]]],
        [b"", [[bytes(PEER), "-x", 1]]],
        [b"", [[bytes(PEER), "\x1b[31m", 1]]],
        [b"", [[bytes(PEER), "h" * 254, 1]]],
        [b"", [[bytes(PEER), "", 1]]],
        [b"", [[bytes(PEER), b"192.0.2.7", 1]]],
        [b"", [NODE], 1],
        {"key": b""},
        7,
        None,
    ],
)
def test_a_hostile_body_is_refused(content: Any) -> None:
    with pytest.raises(UsageError, match="not a whole invite"):
        Invite.parse(text_of(msgpack.packb(content)))


def test_of_one_invite_there_is_one_text() -> None:
    longer = b"\xdc\x00\x02" + msgpack.packb([b"", [NODE]])[1:]  # the same, as a longer array head
    assert msgpack.unpackb(longer) == [b"", [NODE]]
    with pytest.raises(UsageError):
        Invite.parse(text_of(longer))
    with pytest.raises(UsageError):
        Invite.parse(SAMPLE.text.upper())
    with pytest.raises(UsageError):
        Invite.parse(SAMPLE.text + "=")


def test_a_long_text_is_not_decoded_and_no_error_tells_the_key() -> None:
    with pytest.raises(UsageError):
        Invite.parse(PREFIX + "a" * 10**7)
    with pytest.raises(UsageError) as caught:
        Invite.parse(SAMPLE.text[:-1])
    assert SAMPLE.text[20:40] not in str(caught.value)
    assert SAMPLE.key is not None
    assert SAMPLE.key.text not in repr(SAMPLE)
