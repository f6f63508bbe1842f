"""How a node names itself on the local network, and what is believed of others there. Pure.

DNS-based service discovery (RFC 6763) over multicast DNS (RFC 6762)::

    instance   <40 hex digits of the peer id>._swarmd._udp.local.
    SRV        the UDP port of the node's DHT
    A          its IPv4 addresses on this network
    TXT        v = protocol version, swarm = swarm id in hex, peer = peer id in hex

Anybody on the network can answer anything. So an announcement is a hint where to ask, no more:
the DHT's own ping proves who answers there, and by which key.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from swarmd.identity import PEER_ID_BYTES, PeerId
from swarmd.peers import Address

__all__ = ["MAX_ADDRESSES", "SERVICE_TYPE", "VERSION", "LanNode", "heard", "properties", "usable"]

SERVICE_TYPE = "_swarmd._udp.local."
VERSION = "1"
MAX_ADDRESSES = 4
"""Addresses taken of one node: a machine has a cable, a radio, and little more."""
SWARM_ID_BYTES = 16


@dataclass(frozen=True, slots=True)
class LanNode:
    """A node as it was heard of: nothing of it is proven."""

    peer_id: PeerId
    addresses: tuple[Address, ...]


def properties(peer_id: PeerId, swarm_id: bytes) -> dict[str, str]:
    """The TXT record of a node."""
    return {"v": VERSION, "swarm": swarm_id.hex(), "peer": peer_id.hex()}


def heard(
    txt: Mapping[bytes, bytes | None],
    addresses: Iterable[str],
    port: int | None,
    *,
    swarm_ids: Iterable[bytes],
    own: PeerId | None,
) -> LanNode | None:
    """The node behind an answer, or None: another swarm, another version, ourselves, nonsense.

    `addresses` are IP literals; those that are no ordinary IPv4 address of another machine on the
    network are passed over. `own` is None for a client.
    """
    if txt.get(b"v") != VERSION.encode() or port is None or not 1 <= port <= 65535:
        return None
    swarm_id = _hex(txt.get(b"swarm"), SWARM_ID_BYTES)
    peer = _hex(txt.get(b"peer"), PEER_ID_BYTES)
    if swarm_id is None or swarm_id not in set(swarm_ids) or peer is None or peer == own:
        return None
    found = dict.fromkeys(Address(host, port) for host in addresses if usable(host))
    return LanNode(PeerId(peer), tuple(found)[:MAX_ADDRESSES]) if found else None


def usable(host: str) -> bool:
    """Whether an IP literal may be a node of a local network: IPv4, and neither loopback nor
    multicast nor a wildcard. (A public address is fine: some networks have no others.)"""
    try:
        ip = ipaddress.ip_address(host)
    except ValueError:
        return False
    special = ip.is_loopback or ip.is_multicast or ip.is_unspecified or ip.is_reserved
    return ip.version == 4 and not special


def _hex(value: bytes | None, length: int) -> bytes | None:
    if value is None or len(value) != 2 * length:
        return None
    try:
        return bytes.fromhex(value.decode("ascii"))
    except ValueError:
        return None
