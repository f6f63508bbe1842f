"""Addresses of the DHT: which may be sent to, how contacts travel, and which belong together. Pure.

One socket speaks one family. A dual-stack socket would gossip `::ffff:a.b.c.d`, which nobody else
can reach, so on an IPv4 socket contacts have 26 bytes, on an IPv6 socket 38.
"""

from __future__ import annotations

import functools
import ipaddress
import struct
from collections.abc import Iterable

from swarmd.identity import PEER_ID_BYTES, PeerId

__all__ = ["NODE_BYTES", "family_of", "ip_group", "is_sendable", "pack_nodes", "unpack_nodes"]

NODE_BYTES = {4: PEER_ID_BYTES + 4 + 2, 6: PEER_ID_BYTES + 16 + 2}
"""Bytes of a contact in a reply (id, packed IP, port), for each IP version."""

_IP_BYTES = {4: 4, 6: 16}
_GROUP_BITS = {4: 24, 6: 48}


@functools.lru_cache(maxsize=4096)
def family_of(host: str) -> int | None:
    """4 or 6 for the IP literal of one machine that a datagram can reach, else None.

    Link-local IPv6 addresses mean nothing without the name of an interface, and IPv4 ones written
    as IPv6 nothing on our sockets: both are refused.
    """
    try:
        ip = ipaddress.ip_address(host)
    except ValueError:
        return None
    if ip.is_unspecified or ip.is_multicast:
        return None
    if isinstance(ip, ipaddress.IPv4Address):
        return None if ip.packed == b"\xff\xff\xff\xff" else 4
    if ip.is_link_local or ip.ipv4_mapped is not None or ip.scope_id is not None:
        return None
    return 6


@functools.lru_cache(maxsize=4096)
def ip_group(host: str) -> bytes | None:
    """The /24 or /48 of a public address; None for those of a LAN, a machine or a carrier's NAT.

    One operator has a whole group as cheaply as one address of it. None: not limited.
    """
    try:
        ip = ipaddress.ip_address(host)
    except ValueError:
        return None
    return ip.packed[: _GROUP_BITS[ip.version] // 8] if ip.is_global else None


def is_sendable(host: object, port: object, version: int | None = None) -> bool:
    """Whether a datagram may go there: an IP literal (of `version`, if given), a port in 1..65535.

    Must be asked before every `sendto`: asyncio closes the socket for good when `sendto` raises
    anything but OSError, and it resolves host names by blocking.
    """
    if type(host) is not str or type(port) is not int or not 1 <= port <= 65535:
        return False
    family = family_of(host)
    return family is not None and version in (None, family)


def pack_nodes(nodes: Iterable[tuple[bytes, str, int]]) -> bytes:
    """Contacts, one after another. They must be sendable and of one family."""
    return b"".join(
        node_id + ipaddress.ip_address(host).packed + struct.pack("!H", port)
        for node_id, host, port in nodes
    )


def unpack_nodes(
    data: object, limit: int, version: int = 4
) -> list[tuple[PeerId, str, int]] | None:
    """At most `limit` contacts, without those that are not sendable; None for wrong bytes."""
    size = NODE_BYTES[version]
    if type(data) is not bytes or len(data) % size or len(data) > limit * size:
        return None
    nodes = []
    end_of_ip = PEER_ID_BYTES + _IP_BYTES[version]
    for at in range(0, len(data), size):
        node = data[at : at + size]
        host = str(ipaddress.ip_address(node[PEER_ID_BYTES:end_of_ip]))
        (port,) = struct.unpack("!H", node[end_of_ip:])
        if is_sendable(host, port, version):
            nodes.append((PeerId(node[:PEER_ID_BYTES]), host, port))
    return nodes
