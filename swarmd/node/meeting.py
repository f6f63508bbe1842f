"""How a node finds others at its start, and goes on finding them on the local network."""

from __future__ import annotations

import asyncio
import contextlib
import logging

from swarmd.config import DaemonConfig
from swarmd.dht.directory import Directory
from swarmd.dht.peers_file import PeersFile
from swarmd.errors import BootstrapFailed
from swarmd.lan.neighbours import listening
from swarmd.lan.service import LanNode
from swarmd.peers import Address

__all__ = ["Meeting"]

log = logging.getLogger(__name__)

LAN_WAIT = 2.0
"""Seconds in which a node of the local network must be met before we start a swarm of our own."""


class Meeting:
    """Joins `directory` to the swarm. While its block lasts, the node is announced on the local
    network, unless it is bound to loopback or `config.lan` is off.

    A node that was told by `config.peers` whom to join is announced and does not look around.
    """

    def __init__(self, config: DaemonConfig, directory: Directory, peers_file: PeersFile) -> None:
        self._config = config
        self._directory = directory
        self._peers_file = peers_file
        self._met = asyncio.Event()
        self._listens = False
        self._stack = contextlib.AsyncExitStack()

    async def __aenter__(self) -> Meeting:
        config = self._config
        if not config.lan:
            return self
        ids = [key.swarm_id for key in config.keys.accepted]
        neighbours = await self._stack.enter_async_context(
            listening(config.host, ids, self._meet, own=self._directory.peer_id)
        )
        if neighbours is not None:
            try:
                await neighbours.announce(self._directory.address.port)
            except BaseException:
                await self._stack.aclose()
                raise
            if not config.peers:
                neighbours.browse()
                self._listens = True
        return self

    async def __aexit__(self, *_exc: object) -> None:
        await self._stack.aclose()

    async def join(self, own: Address) -> None:
        """Contact the swarm: the given peers must answer, remembered ones and those of the local
        network may. `own` is where others dial this node. Raises BootstrapFailed."""
        config, directory = self._config, self._directory
        if config.peers:
            found = await directory.bootstrap(config.peers, expected=config.expected)
            log.info("joined the swarm through %d contacts", found)
            return
        known = await self._peers_file.async_load()
        remembered = [address for _, address, _ in known if address != own]
        with contextlib.suppress(BootstrapFailed):
            if await directory.bootstrap(remembered, timeout=2.0):
                log.info("joined the swarm through peers remembered on this machine")
                return
        if self._listens:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(LAN_WAIT):
                    await self._met.wait()
                return
        log.info("no peer is known: this node starts a swarm")

    async def _meet(self, node: LanNode) -> None:
        known = {peer_id for peer_id, _ in self._directory.contacts()}
        if node.peer_id in known:
            self._met.set()
        elif await self._directory.meet(node.addresses):
            log.info("met peer %s on the local network", node.peer_id.short)
            self._met.set()
