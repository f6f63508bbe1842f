"""A router as a program: NAT in user space between a TUN device's packets, and the fake UPnP.

`python -m tests.upnp.nat_router LAN-ADDRESS OUTSIDE-ADDRESS JSON` within the router's namespace;
JSON are fields of FakeRouter. Each state of its mappings is one line of JSON on stdout. Like most
home routers it drops what comes in unasked, and gives outgoing streams ports of its own choice.
"""

from __future__ import annotations

import asyncio
import fcntl
import ipaddress
import itertools
import json
import os
import struct
import sys
from collections.abc import Callable

from tests.upnp.fake_router import FakeRouter

TCP, UDP = 6, 17
CHECKSUM_AT = {TCP: 16, UDP: 6}
End = tuple[int, int]
"""IPv4 address as a number, and port."""


class Nat:
    """Translates IPv4 packets; None drops one. `forwarded` gives what UPnP mapped."""

    def __init__(self, outside: str, forwarded: Callable[[int, int], End | None]) -> None:
        self._outside = int(ipaddress.IPv4Address(outside))
        self._forwarded = forwarded
        self._ports = itertools.count(50000)
        self._out: dict[tuple[int, End, End], int] = {}
        self._back: dict[tuple[int, int, End], End] = {}
        self._chosen: dict[tuple[int, End], int] = {}

    def translate(self, packet: bytes) -> bytes | None:
        length = 4 * (packet[0] & 15)
        protocol = packet[9]
        if packet[0] >> 4 != 4 or protocol not in CHECKSUM_AT or len(packet) < length + 8:
            return None
        source, target = struct.unpack_from("!II", packet, 12)
        from_port, to_port = struct.unpack_from("!HH", packet, length)
        if target == self._outside:
            remote = (source, from_port)
            inside = self._back.get((protocol, to_port, remote))
            if inside is None:
                inside = self._forwarded(protocol, to_port)
                if inside is None:
                    return None
                self._remember(protocol, inside, remote, to_port)
            return rewritten(packet, remote, inside)
        inside, remote = (source, from_port), (target, to_port)
        port = self._out.get((protocol, inside, remote))
        if port is None:
            port = self._chosen.setdefault((protocol, inside), next(self._ports))
            self._remember(protocol, inside, remote, port)
        return rewritten(packet, (self._outside, port), remote)

    def _remember(self, protocol: int, inside: End, remote: End, port: int) -> None:
        self._out[protocol, inside, remote] = port
        self._back[protocol, port, remote] = inside


def rewritten(packet: bytes, source: End, target: End) -> bytes:
    """The packet with other ends, and checksums (RFC 791, RFC 793, RFC 768) to match."""
    length, protocol = 4 * (packet[0] & 15), packet[9]
    new = bytearray(packet)
    struct.pack_into("!H", new, 10, 0)
    struct.pack_into("!II", new, 12, source[0], target[0])
    struct.pack_into("!HH", new, length, source[1], target[1])
    struct.pack_into("!H", new, 10, checksum(bytes(new[:length])))
    at = length + CHECKSUM_AT[protocol]
    struct.pack_into("!H", new, at, 0)
    body = bytes(new[length:])
    pseudo = struct.pack("!IIBBH", source[0], target[0], 0, protocol, len(body))
    struct.pack_into("!H", new, at, checksum(pseudo + body))
    return bytes(new)


def checksum(data: bytes) -> int:
    if len(data) % 2:
        data += b"\0"
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def open_tun(name: str) -> int:
    tun = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    fcntl.ioctl(tun, 0x400454CA, struct.pack("16sH22x", name.encode(), 0x0001 | 0x1000))
    return tun


async def main(lan: str, outside: str, faults: str) -> None:
    fields = {"outside": outside, **json.loads(faults)}
    fields["taken"] = {(protocol, port) for protocol, port in fields.get("taken", [])}
    router = FakeRouter(**fields)

    def forwarded(protocol: int, port: int) -> End | None:
        found = router.mapped.get(("TCP" if protocol == TCP else "UDP", port))
        return None if found is None else (int(ipaddress.IPv4Address(found[0])), found[1])

    def say() -> None:
        print(json.dumps([[*key, *value] for key, value in router.mapped.items()]), flush=True)

    router.on_change = say
    nat, tun = Nat(outside, forwarded), open_tun("tun0")

    def pass_on() -> None:
        packet = nat.translate(os.read(tun, 65536))
        if packet is not None:
            os.write(tun, packet)

    asyncio.get_running_loop().add_reader(tun, pass_on)
    async with router.running(lan, group="239.255.255.250"):
        print("ready", flush=True)
        await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
