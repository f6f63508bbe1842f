"""Talking to one router: its description, and the actions of WANIPConnection or WANPPPConnection.

The router's answers are hostile input. Requests go to its own address only and follow no redirect;
an answer has at most 256 KiB, a router at most 24 requests and 10 s for its description; XML is
parsed without entities (by the library, with `defusedxml`). No text of the router is passed on.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

import aiohttp
from async_upnp_client.client import UpnpAction, UpnpRequester, UpnpService
from async_upnp_client.client_factory import UpnpFactory
from async_upnp_client.const import HttpRequest, HttpResponse
from async_upnp_client.exceptions import UpnpActionError

from swarmd.errors import GatewayError, GatewayRefused
from swarmd.upnp.discovery import Responder
from swarmd.upnp.mapping import Protocol, is_of_the_internet

__all__ = ["Gateway", "RouterRequester"]

MAX_BODY = 256 << 10
"""Bytes of one answer; honest descriptions have up to 40 KiB."""
MAX_REQUESTS = 24
"""For one description; honest routers have about eight services."""
REQUEST_SECONDS = 5.0
OPEN_SECONDS = 10.0
SERVICES = (
    "urn:schemas-upnp-org:service:WANIPConnection:2",
    "urn:schemas-upnp-org:service:WANIPConnection:1",
    "urn:schemas-upnp-org:service:WANPPPConnection:1",
)
DESCRIPTION = "swarmd"


class RouterRequester(UpnpRequester):
    """HTTP to one address, within the limits above. Raises GatewayError."""

    def __init__(self, host: str) -> None:
        self._host = host
        self._left = MAX_REQUESTS

    def begin(self) -> None:
        """A new piece of work has all the requests again."""
        self._left = MAX_REQUESTS

    async def async_http_request(self, http_request: HttpRequest) -> HttpResponse:
        """The library's hook: one request, its answer whole."""
        url = http_request.url
        try:
            parts = urlsplit(url)
            wrong = parts.scheme != "http" or parts.hostname != self._host
        except ValueError:
            wrong = True
        if wrong:
            raise GatewayError(f"the router at {self._host} names an address that is not its own")
        self._left -= 1
        if self._left < 0:
            raise GatewayError(f"the router at {self._host} has a description without end")
        try:
            async with asyncio.timeout(REQUEST_SECONDS):
                return await self._request(http_request)
        except TimeoutError as error:
            raise GatewayError(f"the router at {self._host} does not answer in time") from error
        except (aiohttp.ClientError, OSError, ValueError) as error:
            raise GatewayError(
                f"the router at {self._host} gave no answer of use ({type(error).__name__})"
            ) from error

    async def _request(self, request: HttpRequest) -> HttpResponse:
        headers = {"Connection": "close", "Accept-Encoding": "identity", **request.headers}
        async with aiohttp.ClientSession(auto_decompress=False) as session:
            async with session.request(
                request.method,
                request.url,
                headers=headers,
                data=request.body,
                allow_redirects=False,
            ) as response:
                body = b""
                while piece := await response.content.read(MAX_BODY + 1 - len(body)):
                    body += piece
                    if len(body) > MAX_BODY:
                        raise GatewayError(f"the router at {self._host} sends too much")
                return HttpResponse(
                    response.status, dict(response.headers), body.decode("utf-8", "replace")
                )


class Gateway:
    """A router that maps ports. :meth:`open` makes one; every call is one request.

    `host` is its address, `own` ours beside it, `outside` its address of the other side.
    """

    def __init__(
        self, responder: Responder, service: UpnpService, requester: RouterRequester, outside: str
    ) -> None:
        self.host = responder.host
        self.outside = outside
        self._own = responder.own
        self._service = service
        self._requester = requester

    @classmethod
    async def open(cls, responder: Responder) -> Gateway:
        """Fetch the description, and choose the service that has an outside address. Raises
        GatewayError."""
        requester = RouterRequester(responder.host)
        # Not strict: many routers describe themselves wrongly, and what we read we check.
        factory = UpnpFactory(requester, non_strict=True)
        try:
            async with asyncio.timeout(OPEN_SECONDS):
                device = await factory.async_create_device(responder.location)
                services = {service.service_type: service for service in device.all_services}
                found = [
                    cls(responder, services[kind], requester, "")
                    for kind in SERVICES
                    if kind in services
                ]
                if not found:
                    raise GatewayError(f"the router at {responder.host} maps no ports")
                return await _connected(found)
        except GatewayError:
            raise
        except TimeoutError as error:
            raise GatewayError(f"the router at {responder.host} does not answer in time") from error
        except Exception as error:  # a stranger's description in the library's hands
            raise GatewayError(
                f"the description of the router at {responder.host} is of no use "
                f"({type(error).__name__})"
            ) from error

    async def outside_address(self) -> str:
        """The router's address of the other side, an IPv4 literal. Raises GatewayError."""
        answer = await self._call("GetExternalIPAddress")
        address = answer.get("NewExternalIPAddress")
        if not isinstance(address, str) or not _is_ipv4(address):
            raise GatewayError(f"the router at {self.host} has no outside address")
        return address

    async def add(
        self, protocol: Protocol, outside: int, inside: int, lease: int, *, any: bool = False
    ) -> int:
        """Have `outside` forwarded to our port `inside` for `lease` seconds; renews what is there.
        With `any`, a router of version 2 may choose another port. Returns the outside port.
        Raises GatewayRefused, GatewayError."""
        arguments = {
            "NewRemoteHost": "",
            "NewExternalPort": outside,
            "NewProtocol": protocol.value,
            "NewInternalPort": inside,
            "NewInternalClient": self._own,
            "NewEnabled": True,
            "NewPortMappingDescription": DESCRIPTION,
            "NewLeaseDuration": lease,
        }
        if not (any and self._service.has_action("AddAnyPortMapping")):
            await self._call("AddPortMapping", **arguments)
            return outside
        answer = await self._call("AddAnyPortMapping", **arguments)
        port = answer.get("NewReservedPort")
        if not isinstance(port, int) or not 1 <= port <= 65535:
            raise GatewayError(f"the router at {self.host} chose a port that is none")
        return port

    async def delete(self, protocol: Protocol, outside: int) -> None:
        """Take a mapping back. Raises GatewayRefused, GatewayError."""
        await self._call(
            "DeletePortMapping",
            NewRemoteHost="",
            NewExternalPort=outside,
            NewProtocol=protocol.value,
        )

    async def _call(self, name: str, **arguments: Any) -> Mapping[str, Any]:
        self._requester.begin()
        try:
            action: UpnpAction = self._service.action(name)
            return await action.async_call(**arguments)
        except GatewayError:
            raise
        except UpnpActionError as error:
            code = error.error_code
            raise GatewayRefused(
                f"the router at {self.host} refused {name}: {code}",
                code=code if isinstance(code, int) else 0,
            ) from error
        except Exception as error:  # a stranger's answer in the library's hands
            raise GatewayError(
                f"the router at {self.host} gave no answer of use to {name} "
                f"({type(error).__name__})"
            ) from error


async def _connected(found: list[Gateway]) -> Gateway:
    """The service with an address of the internet, else one with any: routers describe services
    that lead nowhere. Raises GatewayError."""
    failure = None
    usable = []
    for gateway in found:
        try:
            gateway.outside = await gateway.outside_address()
        except GatewayError as error:
            failure = error
            continue
        usable.append(gateway)
        if is_of_the_internet(gateway.outside):
            return gateway
    if not usable:
        assert failure is not None
        raise failure
    return usable[0]


def _is_ipv4(text: str) -> bool:
    parts = text.split(".")
    return len(parts) == 4 and all(
        part.isascii() and part.isdigit() and len(part) < 4 and int(part) < 256 for part in parts
    )
