"""Finding routers by SSDP (UPnP Device Architecture 2.0, section 1.3), in the local subnet only."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import logging
import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Interface
from urllib.parse import urlsplit

import ifaddr
from async_upnp_client.ssdp import build_ssdp_search_packet, decode_ssdp_packet

__all__ = ["SSDP", "Responder", "discover", "local_interfaces", "location_of"]

log = logging.getLogger(__name__)

SSDP = ("239.255.255.250", 1900)
TARGETS = (
    "urn:schemas-upnp-org:device:InternetGatewayDevice:1",
    "urn:schemas-upnp-org:device:InternetGatewayDevice:2",
)
"""A router of version 2 should answer to 1 as well; some do not."""
SEARCH_SECONDS = 2.0
"""For the answers to a search; asked to wait one second at most, routers answer in less."""
REPEAT_SECONDS = 0.7
"""After which the search is sent once more: datagrams are lost."""
SETTLE_SECONDS = 0.2
"""After the first answer, so that a second router has its chance."""
MAX_DATAGRAM = 2048
"""Bytes; honest answers have about 400, and the library remembers the last 512 it decoded."""
MAX_LOCATION = 512
MAX_RESPONDERS = 4


@dataclass(frozen=True, slots=True)
class Responder:
    """A device that says it is a router: its description's URL, at its own address `host`, and
    the address `own` at which this machine stands in the same subnet."""

    location: str
    host: str
    own: str


def local_interfaces(hosts: Sequence[str]) -> list[IPv4Interface]:
    """The subnets in which this machine has these IPv4 addresses; others are left out."""
    return [
        IPv4Interface(f"{ip.ip}/{ip.network_prefix}")
        for adapter in ifaddr.get_adapters()
        for ip in adapter.ips
        if isinstance(ip.ip, str) and ip.ip in hosts
    ]


def location_of(url: str | None, responder: str, interface: IPv4Interface) -> str | None:
    """The description's URL if it may be fetched, else None: plain HTTP at the literal address
    from which the answer came, in our subnet and not our own. So nobody has us talk to others."""
    if not url or len(url) > MAX_LOCATION:
        return None
    try:
        parts = urlsplit(url)
        port = parts.port
        ip = ipaddress.IPv4Address(responder)
    except ValueError:
        return None
    if parts.scheme != "http" or parts.hostname != responder or parts.username is not None:
        return None
    if ip not in interface.network or ip.is_multicast or port == 0:
        return None
    return url


async def discover(
    interfaces: Sequence[IPv4Interface], *, ssdp: tuple[str, int] = SSDP
) -> list[Responder]:
    """Routers that answer, the first four. Empty after two seconds of silence, and where the
    network allows no multicast. Only the given interfaces are spoken from."""
    found: dict[Responder, None] = {}
    heard = asyncio.Event()

    def hear(responder: Responder) -> None:
        if len(found) < MAX_RESPONDERS:
            found[responder] = None
            heard.set()

    async with contextlib.AsyncExitStack() as stack:
        transports = []
        for interface in interfaces:
            try:
                transport = await _listen(interface, hear, ssdp)
            except OSError as error:
                log.debug("no search for a router from %s: %s", interface.ip, error)
                continue
            stack.callback(transport.close)
            transports.append(transport)
        if not transports:
            return []
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(SEARCH_SECONDS):
                _search(transports, ssdp)
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(REPEAT_SECONDS):
                        await heard.wait()
                if not heard.is_set():
                    _search(transports, ssdp)
                await heard.wait()
                await asyncio.sleep(SETTLE_SECONDS)
    return list(found)


def _search(transports: Sequence[asyncio.DatagramTransport], ssdp: tuple[str, int]) -> None:
    for transport in transports:
        for target in TARGETS:
            transport.sendto(build_ssdp_search_packet(ssdp, 1, target), ssdp)


async def _listen(
    interface: IPv4Interface, hear: Callable[[Responder], None], ssdp: tuple[str, int]
) -> asyncio.DatagramTransport:
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    try:
        sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, interface.ip.packed)
        sock.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_TTL, 2)
        sock.bind((str(interface.ip), 0))
        transport, _ = await asyncio.get_running_loop().create_datagram_endpoint(
            lambda: _Search(interface, hear),
            sock=sock,
        )
    except BaseException:
        sock.close()
        raise
    return transport


class _Search(asyncio.DatagramProtocol):
    """Hears the answers to one interface's search."""

    def __init__(self, interface: IPv4Interface, hear: Callable[[Responder], None]) -> None:
        self._interface = interface
        self._hear = hear

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        if len(data) > MAX_DATAGRAM or not data.startswith(b"HTTP/1.1 200 OK"):
            return
        try:
            _, headers = decode_ssdp_packet(data, None, addr)
            kind, url = headers.get("st", ""), headers.get("location")
        except Exception as error:  # a stranger's bytes in the library's hands
            log.debug("an answer to the search for a router was of no use: %r", error)
            return
        if kind not in TARGETS:
            return
        location = location_of(url, addr[0], self._interface)
        if location is None:
            log.debug("a device at %s names a description that is not its own", addr[0])
            return
        self._hear(Responder(location, addr[0], str(self._interface.ip)))

    def error_received(self, exc: Exception) -> None:
        log.debug("search for a router: %s", exc)
