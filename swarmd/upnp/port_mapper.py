"""The thin half of :mod:`swarmd.upnp.mapping`: carries its instructions out."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
from collections.abc import Awaitable, Callable, Sequence
from ipaddress import IPv4Interface

from swarmd.errors import GatewayError, GatewayRefused
from swarmd.peers import Address
from swarmd.upnp.discovery import SSDP, discover
from swarmd.upnp.gateway import Gateway
from swarmd.upnp.mapping import Add, Check, Delete, Discover, Done, Mapping, State, Wait

__all__ = ["PortMapper"]

log = logging.getLogger(__name__)

DROP_SECONDS = 5.0
"""To take mappings back when the node leaves; a router that is silent gets no more."""


class PortMapper:
    """Keeps a port of the local router forwarded to ours, where the router does that.

    `run` is a service; when it was cancelled, `drop` takes back what is left at the router.
    """

    def __init__(
        self,
        port: int,
        interfaces: Sequence[IPv4Interface],
        check: Callable[[Address], Awaitable[bool]],
        on_change: Callable[[Address | None], Awaitable[object]],
        *,
        rng: random.Random,
        ssdp: tuple[str, int] = SSDP,
    ) -> None:
        """`check` has others dial an address of ours. `on_change` is told the address at which
        that worked, or None when it does no more, and once when the first try came to nothing."""
        self._inside = port
        self._interfaces = interfaces
        self._check = check
        self._on_change = on_change
        self._ssdp = ssdp
        self._mapping = Mapping(port, rng=rng)
        self._gateway: Gateway | None = None
        self._told: Address | bool | None = False
        self._woken = asyncio.Event()

    async def run(self) -> None:
        """Ends only by cancel or a bug."""
        while not isinstance(self._mapping.instruction, Done):
            await self._tell()
            await self._act()

    async def drop(self) -> None:
        """Take back what the router forwards, within five seconds. Call it when `run` has ended."""
        self._mapping.drop()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(DROP_SECONDS):
                while not isinstance(self._mapping.instruction, Done):
                    await self._act()
                return
        log.info("the router did not take its mapping back in time")

    def shaken(self) -> None:
        """Others cannot dial the outside address any more: see whether the router forgot it."""
        self._mapping.shaken()
        self._woken.set()

    async def _tell(self) -> None:
        mapping = self._mapping
        if mapping.state not in (State.MAPPED, State.IDLE):
            return
        outside = None if mapping.outside is None else Address(*mapping.outside)
        if outside == self._told:
            return
        self._told = outside
        if outside is not None:
            log.info(
                "the router forwards %s to this node, and others can dial it there%s",
                outside,
                "; the router knows no leases: a killed node leaves that mapping behind"
                if mapping.permanent
                else "",
            )
        elif mapping.why:
            log.info("no port of the router leads to this node: %s", mapping.why)
        await self._on_change(outside)

    async def _act(self) -> None:
        mapping = self._mapping
        try:
            match mapping.instruction:
                case Discover():
                    self._gateway = await self._find()
                    mapping.found(self._gateway.outside)
                case Add(protocol, port, lease, any):
                    assert self._gateway is not None
                    mapping.granted(
                        await self._gateway.add(protocol, port, self._inside, lease, any=any)
                    )
                case Delete(protocol, port):
                    assert self._gateway is not None
                    await self._gateway.delete(protocol, port)
                    mapping.deleted()
                case Check(host, port):
                    mapping.answered(await self._check(Address(host, port)))
                case Wait(seconds):
                    await self._wait(seconds)
        except GatewayRefused as error:
            log.debug("%s", error)
            if isinstance(mapping.instruction, Add):
                mapping.refused(error.code)
            else:
                mapping.failed(str(error))
        except GatewayError as error:
            log.debug("%s", error)
            mapping.failed(str(error))

    async def _wait(self, seconds: float) -> None:
        self._woken.clear()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._woken.wait()
                return
        self._mapping.timer()

    async def _find(self) -> Gateway:
        """The first router that maps ports to an address of the internet, else any that maps.
        Raises GatewayError."""
        responders = await discover(self._interfaces, ssdp=self._ssdp)
        failure = GatewayError("")  # nothing to say: most networks have no such router
        for responder in responders:
            try:
                return await Gateway.open(responder)
            except GatewayError as error:
                log.debug("%s", error)
                failure = error
        raise failure
