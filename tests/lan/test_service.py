"""What is believed of an answer on the local network."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from zeroconf import ServiceStateChange

from swarmd.identity import PeerId
from swarmd.lan import neighbours
from swarmd.lan.neighbours import MAX_ASKED, Neighbours, lan_interfaces
from swarmd.lan.service import MAX_ADDRESSES, LanNode, heard, properties
from swarmd.peers import Address

PEER, OTHER = PeerId(b"p" * 20), PeerId(b"q" * 20)
SWARM = b"s" * 16
TXT: dict[bytes, bytes | None] = {
    key.encode(): value.encode() for key, value in properties(PEER, SWARM).items()
}


def hear(txt: Any = TXT, hosts: Any = ("10.0.0.1",), port: Any = 31330, **others: Any) -> Any:
    return heard(txt, hosts, port, **{"swarm_ids": [SWARM], "own": None, **others})


def test_a_node_is_heard() -> None:
    expected = LanNode(PEER, (Address("10.0.0.1", 31330),))
    assert hear() == expected
    assert hear(swarm_ids=[b"n" * 16, SWARM], own=OTHER) == expected
    many = [f"10.0.0.{n}" for n in range(1, 100)]
    assert len(hear(hosts=many).addresses) == MAX_ADDRESSES


@pytest.mark.parametrize(
    "changes",
    [
        {"own": PEER},
        {"swarm_ids": [b"n" * 16]},
        {"swarm_ids": []},
        {"port": 0},
        {"port": 65536},
        {"port": None},
        {"hosts": ()},
        {"hosts": ("127.0.0.1", "224.0.0.1", "0.0.0.0", "::1", "fe80::1", "255.255.255.255", "x")},
        {"txt": {}},
        {"txt": {**TXT, b"v": b"2"}},
        {"txt": {**TXT, b"v": None}},
        {"txt": {**TXT, b"peer": None}},
        {"txt": {**TXT, b"peer": b"z" * 40}},
        {"txt": {**TXT, b"peer": b"\xff" * 40}},
        {"txt": {**TXT, b"peer": b"00" * 21}},
        {"txt": {**TXT, b"swarm": b"00" * 10**6}},
    ],
)
def test_others_and_nonsense_are_not(changes: dict[str, Any]) -> None:
    assert hear(**changes) is None


@given(
    st.dictionaries(
        st.sampled_from([b"v", b"swarm", b"peer", b"x"]),
        st.none() | st.binary(max_size=50) | st.sampled_from(list(TXT.values())),
    ),
    st.lists(st.text(max_size=20) | st.ip_addresses().map(str), max_size=8),
    st.none() | st.integers(),
)
def test_nothing_that_is_heard_raises(txt: Any, hosts: list[str], port: int | None) -> None:
    node = hear(txt, hosts, port)
    if node is not None:
        assert 1 <= len(node.addresses) <= MAX_ADDRESSES
        assert not any(address.is_loopback for address in node.addresses)


def test_the_key_of_the_swarm_is_not_told() -> None:
    assert set(properties(PEER, SWARM)) == {"v", "swarm", "peer"}


def test_loopback_has_no_neighbours() -> None:
    assert lan_interfaces("127.0.0.1") == []
    assert lan_interfaces("127.3.2.1") == []
    assert lan_interfaces("localhost") == []
    assert lan_interfaces("10.1.2.3") == ["10.1.2.3"]
    assert not any(host.startswith("127.") for host in lan_interfaces("0.0.0.0"))


def test_a_flood_of_names_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """A thousand names at once cost a few lookups; a bad one ends nothing."""
    asked: list[str] = []
    let_go = asyncio.Event()

    class Info:
        def __init__(self, _type: str, name: str) -> None:
            self.name = name

        async def async_request(self, _zeroconf: object, _timeout: float) -> bool:
            asked.append(self.name)
            await let_go.wait()
            raise ValueError("bytes of a stranger")

    async def main() -> None:
        async def never(_node: LanNode) -> None:
            raise AssertionError("nobody was heard")

        monkeypatch.setattr(neighbours, "AsyncServiceInfo", Info)
        found = Neighbours([], [SWARM], never)
        found._mdns = SimpleNamespace(zeroconf=None)  # type: ignore[assignment]
        async with found._owner:
            for number in range(1000):
                found._changed(None, "", f"n{number}", ServiceStateChange.Added)  # type: ignore[arg-type]
            await asyncio.sleep(0.01)
            assert len(asked) == MAX_ASKED
            let_go.set()
            await asyncio.sleep(0.01)
            found._changed(None, "", "later", ServiceStateChange.Added)  # type: ignore[arg-type]
            await asyncio.sleep(0.01)
            assert asked[-1] == "later"

    asyncio.run(main())
