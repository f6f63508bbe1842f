"""Where this user's other programs on this machine find a node."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Iterator
from pathlib import Path

from swarmd.dht.peers_file import PeersFile
from swarmd.errors import StateError
from swarmd.identity import PeerId
from swarmd.peers import Address
from swarmd.running import RunningNode, noted
from swarmd.state import StateFolder
from swarmd.swarm_key import KeyRing

__all__ = ["Whereabouts"]

log = logging.getLogger(__name__)


class Whereabouts:
    """A node's own entry in the state folder: in the peers file of its swarm, and as a note while
    it runs. Each is a convenience: the node serves without it."""

    def __init__(self, state: StateFolder, keys: KeyRing, key_file: Path | None) -> None:
        self._state = state
        self._keys = keys
        self._key_file = key_file

    def peers_file(self) -> PeersFile:
        """That of the swarm. Raises StateError."""
        return PeersFile(self._state.peers_file(self._keys))

    async def remember(self, peer_id: PeerId, address: Address) -> None:
        """Clients and daemons find the node without `--peer`."""
        with contextlib.suppress(StateError):
            await self.peers_file().async_record([(peer_id, address, time.time())])

    async def forget(self, peer_id: PeerId) -> None:
        """The node is gone. Once begun, the thread ends its work also if the caller is
        cancelled."""
        with contextlib.suppress(StateError):
            await self.peers_file().async_forget([peer_id])

    @contextlib.contextmanager
    def noted(self, peer_id: PeerId, address: Address) -> Iterator[None]:
        """`swarmd invite` finds the node meanwhile."""
        node = RunningNode(peer_id, address, self._keys.current.swarm_id, self._key_file)
        with contextlib.ExitStack() as stack:
            try:
                stack.enter_context(noted(self._state.path, node))
            except StateError as error:
                log.warning("%s", error)
            yield
