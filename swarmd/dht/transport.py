"""A datagram transport whose `sendto` never raises and never resolves a name."""

from __future__ import annotations

import asyncio
from collections import Counter

from swarmd.dht.addresses import is_sendable
from swarmd.dht.envelope import Drop

__all__ = ["GuardedTransport", "Traffic"]


class Traffic:
    """What went through a socket, and what was dropped and why."""

    def __init__(self) -> None:
        self.datagrams_in = 0
        self.datagrams_out = 0
        self.bytes_in = 0
        self.bytes_out = 0
        self.drops: Counter[Drop] = Counter()

    def drop(self, reason: Drop) -> None:
        self.drops[reason] += 1


class GuardedTransport:
    """Wraps asyncio's or uvloop's transport, and checks each address before it is used.

    asyncio closes a UDP transport for good when `sendto` raises anything but OSError, so one
    gossiped contact with port 70000 would deafen the node.
    """

    def __init__(
        self, transport: asyncio.DatagramTransport, traffic: Traffic, version: int = 4
    ) -> None:
        """`version` of the Internet Protocol, 4 or 6: addresses of the other are not sendable."""
        self._transport = transport
        self._traffic = traffic
        self._version = version

    def sendto(self, data: bytes, address: tuple[object, object]) -> bool:
        """Send, and say whether the datagram was handed to the socket."""
        if self._transport.is_closing():
            self._traffic.drop(Drop.CLOSED)
            return False
        if len(address) != 2 or not is_sendable(*address, self._version):
            self._traffic.drop(Drop.UNSENDABLE)
            return False
        try:
            self._transport.sendto(data, address)
        except Exception:  # no address that passes the check raises; still, nobody may deafen us
            self._traffic.drop(Drop.UNSENDABLE)
            return False
        self._traffic.datagrams_out += 1
        self._traffic.bytes_out += len(data)
        return True

    def is_closing(self) -> bool:
        return self._transport.is_closing()

    def close(self) -> None:
        self._transport.close()

    def abort(self) -> None:
        self._transport.abort()
