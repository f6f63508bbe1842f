"""Announcing a node on the local network, and hearing of others: multicast DNS by `zeroconf`.

Nothing is sent where the node is bound to loopback, nor out of a loopback interface.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence

import ifaddr
from zeroconf import IPVersion, ServiceStateChange, Zeroconf
from zeroconf.asyncio import AsyncServiceBrowser, AsyncServiceInfo, AsyncZeroconf

from swarmd.identity import PeerId
from swarmd.lan.service import SERVICE_TYPE, LanNode, heard, properties, usable
from swarmd.peers import Address
from swarmd.tasks import TaskOwner

__all__ = ["Neighbours", "find_neighbours", "lan_interfaces", "listening"]

log = logging.getLogger(__name__)

MAX_ASKED = 16
"""Names that are being looked up at a time; more that turn up meanwhile are passed over."""
MAX_KNOWN = 256
"""Nodes that are remembered so as to hand each on once; beyond it we begin anew."""
ASK_TIMEOUT = 2.0
"""Seconds for the addresses of one name."""
MAX_INTERFACES = 8
"""Interfaces that are used at most: machines with containers have hundreds."""

OnNode = Callable[[LanNode], Awaitable[object]]


def lan_interfaces(host: str) -> list[str]:
    """The IPv4 addresses of this machine from which a node at `host` speaks to its network.

    Empty for a node on loopback. A wildcard stands for every interface but loopback.
    """
    if host not in ("0.0.0.0", "::", ""):
        return [host] if usable(host) else []
    found = [
        ip.ip
        for adapter in ifaddr.get_adapters()
        for ip in adapter.ips
        if isinstance(ip.ip, str) and usable(ip.ip)
    ]
    return list(dict.fromkeys(found))[:MAX_INTERFACES]


class Neighbours:
    """Hears of nodes while its block lasts, and announces one where `announce` was called.

    Each node that is heard of is handed to `on_node` once, in a task of its own; its failure is
    one warning. Raises OSError on entry where the network allows no multicast.
    """

    def __init__(
        self,
        interfaces: Sequence[str],
        swarm_ids: Sequence[bytes],
        on_node: OnNode,
        *,
        own: PeerId | None = None,
    ) -> None:
        self._interfaces = list(interfaces)
        self._swarm_ids = tuple(swarm_ids)
        self._on_node = on_node
        self._own = own
        self._owner = TaskOwner("lan")
        self._known: set[LanNode] = set()
        self._asked: set[str] = set()

    async def __aenter__(self) -> Neighbours:
        async with contextlib.AsyncExitStack() as stack:
            self._mdns = AsyncZeroconf(interfaces=self._interfaces, ip_version=IPVersion.V4Only)
            stack.push_async_callback(self._mdns.async_close)
            await self._mdns.zeroconf.async_wait_for_start()
            await stack.enter_async_context(self._owner)
            self._stack = stack.pop_all()
        return self

    async def __aexit__(self, *_exc: object) -> None:
        await self._owner.close()
        await self._stack.aclose()

    async def announce(self, port: int) -> None:
        """Say that the node `own` listens at `port`, until the block is left."""
        assert self._own is not None
        info = AsyncServiceInfo(
            SERVICE_TYPE,
            f"{self._own}.{SERVICE_TYPE}",
            addresses=[socket.inet_aton(host) for host in self._interfaces],
            port=port,
            properties=properties(self._own, self._swarm_ids[0]),
            server=f"swarmd-{self._own.short}.local.",
        )
        # The name is a hash of our key: there is nobody to ask whether it is taken.
        await self._mdns.async_register_service(info, cooperating_responders=True)

    def browse(self) -> None:
        """Look for others, from now on."""
        # It belongs to the instance, which ends it when it is closed.
        AsyncServiceBrowser(self._mdns.zeroconf, SERVICE_TYPE, handlers=[self._changed])

    def _changed(
        self, zeroconf: Zeroconf, service_type: str, name: str, state_change: ServiceStateChange
    ) -> None:
        if state_change is ServiceStateChange.Removed or name in self._asked:
            return
        if len(self._asked) >= MAX_ASKED:
            log.debug("too many names on the local network; one was passed over")
            return
        self._asked.add(name)
        with contextlib.suppress(RuntimeError):  # we are closing
            self._owner.spawn(self._ask(name), name="ask", errors="log")

    async def _ask(self, name: str) -> None:
        try:
            info = AsyncServiceInfo(SERVICE_TYPE, name)
            if not await info.async_request(self._mdns.zeroconf, 1000 * ASK_TIMEOUT):
                return
            node = heard(
                info.properties,
                info.parsed_addresses(IPVersion.V4Only),
                info.port,
                swarm_ids=self._swarm_ids,
                own=self._own,
            )
        except Exception as error:  # a stranger's bytes in the library's hands
            log.debug("an answer on the local network was of no use: %r", error)
            return
        finally:
            self._asked.discard(name)
        if node is None or node in self._known:
            return
        if len(self._known) >= MAX_KNOWN:
            self._known.clear()
        self._known.add(node)
        await self._on_node(node)


async def find_neighbours(swarm_ids: Sequence[bytes], timeout: float = 2.0) -> list[Address]:
    """Where nodes of these swarms are heard of on the local network, within `timeout` seconds.

    Returns 0.2 s after the first, so that a second one has its chance. Empty where the machine has
    no network but loopback.
    """
    found: list[LanNode] = []
    first = asyncio.Event()

    async def on_node(node: LanNode) -> None:
        found.append(node)
        first.set()

    async with listening("0.0.0.0", swarm_ids, on_node) as neighbours:
        if neighbours is not None:
            neighbours.browse()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(timeout):
                    await first.wait()
                    await asyncio.sleep(0.2)
    return list(dict.fromkeys(address for node in found for address in node.addresses))


@contextlib.asynccontextmanager
async def listening(
    host: str, swarm_ids: Sequence[bytes], on_node: OnNode, *, own: PeerId | None = None
) -> AsyncIterator[Neighbours | None]:
    """Neighbours of a node that is bound to `host`; None, with a line in the log, where that is
    loopback or the network allows no multicast: a node serves without them."""
    interfaces = lan_interfaces(host)
    async with contextlib.AsyncExitStack() as stack:
        neighbours = None
        if interfaces:
            try:
                neighbours = await stack.enter_async_context(
                    Neighbours(interfaces, swarm_ids, on_node, own=own)
                )
            except OSError as error:
                log.info("no discovery on the local network: %s", error.strerror or error)
        yield neighbours
