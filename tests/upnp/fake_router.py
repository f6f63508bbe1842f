"""A router for tests: SSDP, a description and SOAP, with the faults of real ones and of liars.

Run as a program inside a network namespace it prints each mapping that it adds or deletes.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import socket
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from xml.sax.saxutils import escape

from aiohttp import web

WAN_IP = "urn:schemas-upnp-org:service:WANIPConnection"
Key = tuple[str, int]


@dataclass
class FakeRouter:
    """What it says of itself, and what it was asked. `on_change` is told each change of `mapped`:
    (protocol, outside port) to (inside host, inside port, lease)."""

    outside: str = "1.2.3.4"
    version: int = 1
    taken: set[Key] = field(default_factory=set)
    permanent_only: bool = False
    refuses: int | None = None
    location_host: str | None = None
    location_scheme: str = "http"
    control_url: str = "/control"
    redirect: str | None = None
    description_bytes: int = 0
    raw_description: str | None = None
    services: int = 1
    slow: float = 0.0
    garbled_ssdp: bool = False
    on_change: Callable[[], None] = lambda: None
    mapped: dict[Key, tuple[str, int, int]] = field(default_factory=dict)
    calls: list[str] = field(default_factory=list)
    fetched: list[str] = field(default_factory=list)
    host: str = "127.0.0.1"
    http_port: int = 0
    ssdp_port: int = 0

    @contextlib.asynccontextmanager
    async def running(self, host: str = "127.0.0.1", group: str = "") -> AsyncIterator[FakeRouter]:
        """Serve at `host`; SSDP at a free port there, or at port 1900 of a multicast `group`."""
        self.host = host
        app = web.Application()
        app.router.add_route("*", "/{name:.*}", self._answer)
        runner = web.AppRunner(app, access_log=None, handler_cancellation=True)
        await runner.setup()
        try:
            site = web.TCPSite(runner, host, 0)
            await site.start()
            self.http_port = runner.addresses[0][1]
            sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.bind((group or host, 1900 if group else 0))
            if group:
                membership = socket.inet_aton(group) + socket.inet_aton(host)
                sock.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, membership)
            answers = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            answers.bind((host, 0))
            self.ssdp_port = sock.getsockname()[1]
            loop = asyncio.get_running_loop()
            transport, _ = await loop.create_datagram_endpoint(
                lambda: _Ssdp(self, sock if not group else answers), sock=sock
            )
            try:
                yield self
            finally:
                transport.close()
                answers.close()
                await asyncio.sleep(0)
        finally:
            await runner.cleanup()

    def ssdp_answer(self, target: str) -> bytes:
        if self.garbled_ssdp:
            return b"HTTP/1.1 200 OK\r\nST:\xff\xfe\r\n\x00: x\r\nLOCATION http\r\n\r\n"
        host = self.location_host or self.host
        return (
            f"HTTP/1.1 200 OK\r\nST: {target}\r\nUSN: uuid:1::{target}\r\n"
            f"LOCATION: {self.location_scheme}://{host}:{self.http_port}/device.xml\r\n\r\n"
        ).encode()

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        self.fetched.append(request.path)
        if self.redirect:
            raise web.HTTPFound(self.redirect)
        if self.slow:
            await asyncio.sleep(self.slow)
        if request.path == "/device.xml":
            return web.Response(text=self._description(), content_type="text/xml")
        if request.path == "/scpd.xml":
            return web.Response(text=_scpd(self.version), content_type="text/xml")
        if request.path == "/control":
            return self._act(await request.text())
        raise web.HTTPNotFound

    def _description(self) -> str:
        if self.raw_description is not None:
            return self.raw_description
        kind = f"{WAN_IP}:{self.version}"
        service = "".join(
            f"<service><serviceType>{kind if not n else f'urn:x:service:y:{n}'}</serviceType>"
            f"<serviceId>urn:upnp-org:serviceId:{n}</serviceId><SCPDURL>/scpd.xml</SCPDURL>"
            f"<controlURL>{self.control_url}</controlURL><eventSubURL>/e</eventSubURL></service>"
            for n in range(self.services)
        )
        return (
            '<?xml version="1.0"?><root xmlns="urn:schemas-upnp-org:device-1-0"><device>'
            "<deviceType>urn:schemas-upnp-org:device:InternetGatewayDevice:1</deviceType>"
            f"<UDN>uuid:1</UDN><modelDescription>{'x' * self.description_bytes}</modelDescription>"
            "<deviceList><device><deviceType>urn:schemas-upnp-org:device:WANConnectionDevice:1"
            f"</deviceType><UDN>uuid:2</UDN><serviceList>{service}</serviceList></device>"
            "</deviceList></device></root>"
        )

    def _act(self, body: str) -> web.Response:
        name = re.search(r"<u:(\w+) ", body)
        assert name is not None, body
        action = name[1]
        given = dict(re.findall(r"<(New\w+)>([^<]*)</New\w+>", body))
        self.calls.append(action)
        if action == "GetExternalIPAddress":
            return self._said(action, NewExternalIPAddress=self.outside)
        key = (given["NewProtocol"], int(given["NewExternalPort"]))
        if action == "DeletePortMapping":
            if self.mapped.pop(key, None) is None:
                return self._fault(714)
            self.on_change()
            return self._said(action)
        lease = int(given["NewLeaseDuration"])
        if self.refuses is not None:
            return self._fault(self.refuses)
        if self.permanent_only and lease:
            return self._fault(725)
        if key in self.taken:
            if action == "AddPortMapping":
                return self._fault(718)
            key = (key[0], 45678)
        self.mapped[key] = (given["NewInternalClient"], int(given["NewInternalPort"]), lease)
        self.on_change()
        if action == "AddAnyPortMapping":
            return self._said(action, NewReservedPort=key[1])
        return self._said(action)

    def _said(self, action: str, **out: object) -> web.Response:
        values = "".join(f"<{k}>{escape(str(v))}</{k}>" for k, v in out.items())
        answer = f'<u:{action}Response xmlns:u="{WAN_IP}:{self.version}">{values}'
        return _envelope(f"{answer}</u:{action}Response>", 200)

    def _fault(self, code: int) -> web.Response:
        return _envelope(
            "<s:Fault><faultcode>s:Client</faultcode><faultstring>UPnPError</faultstring><detail>"
            f'<UPnPError xmlns="urn:schemas-upnp-org:control-1-0"><errorCode>{code}</errorCode>'
            "<errorDescription>no</errorDescription></UPnPError></detail></s:Fault>",
            500,
        )


class _Ssdp(asyncio.DatagramProtocol):
    def __init__(self, router: FakeRouter, sock: socket.socket) -> None:
        self._router, self._sock = router, sock

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        target = re.search(rb"ST:\s*(\S+:InternetGatewayDevice:1)\r\n", data)
        if target is not None and data.startswith(b"M-SEARCH"):
            self._sock.sendto(self._router.ssdp_answer(target[1].decode()), addr)


def _envelope(body: str, status: int) -> web.Response:
    text = (
        '<?xml version="1.0"?><s:Envelope xmlns:s="http://schemas.xmlsoap.org/soap/envelope/" '
        's:encodingStyle="http://schemas.xmlsoap.org/soap/encoding/">'
        f"<s:Body>{body}</s:Body></s:Envelope>"
    )
    return web.Response(text=text, status=status, content_type="text/xml")


def _scpd(version: int) -> str:
    mapping = [
        ("NewRemoteHost", "string"), ("NewExternalPort", "ui2"), ("NewProtocol", "string"),
        ("NewInternalPort", "ui2"), ("NewInternalClient", "string"), ("NewEnabled", "boolean"),
        ("NewPortMappingDescription", "string"), ("NewLeaseDuration", "ui4"),
    ]  # fmt: skip
    types = {**dict(mapping), "NewExternalIPAddress": "string", "NewReservedPort": "ui2"}
    inside = [name for name, _ in mapping]
    actions = {
        "GetExternalIPAddress": ([], ["NewExternalIPAddress"]),
        "AddPortMapping": (inside, []),
        "DeletePortMapping": (["NewRemoteHost", "NewExternalPort", "NewProtocol"], []),
    }
    if version == 2:
        actions["AddAnyPortMapping"] = (inside, ["NewReservedPort"])
    text = '<?xml version="1.0"?><scpd xmlns="urn:schemas-upnp-org:service-1-0"><actionList>'
    for action, directions in actions.items():
        text += f"<action><name>{action}</name><argumentList>"
        for direction, names in zip(("in", "out"), directions, strict=True):
            for name in names:
                text += (
                    f"<argument><name>{name}</name><direction>{direction}</direction>"
                    f"<relatedStateVariable>{name}</relatedStateVariable></argument>"
                )
        text += "</argumentList></action>"
    text += "</actionList><serviceStateTable>"
    for name, kind in types.items():
        text += (
            f'<stateVariable sendEvents="no"><name>{name}</name><dataType>{kind}</dataType>'
            "</stateVariable>"
        )
    return text + "</serviceStateTable></scpd>"
