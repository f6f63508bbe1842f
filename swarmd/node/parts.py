"""What a node consists of so far, for those in its process who look at it or work with it."""

from __future__ import annotations

from dataclasses import dataclass

from swarmd.dht.directory import Directory
from swarmd.node.announced import Announced
from swarmd.node.sessions import SessionServer
from swarmd.wire.pool import Pool

__all__ = ["NodeParts"]


@dataclass(slots=True)
class NodeParts:
    """None is what is not there yet. What is there stays when the node has left, closed."""

    directory: Directory | None = None
    pool: Pool | None = None
    announced: Announced | None = None
    server: SessionServer | None = None
    """There as soon as the node serves."""

    def joining(self, directory: Directory, pool: Pool, announced: Announced) -> None:
        """The node is about to join a swarm by these."""
        self.directory, self.pool, self.announced = directory, pool, announced
