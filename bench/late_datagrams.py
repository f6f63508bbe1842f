"""An emulated wide-area network for nodes of one process: delays and losses of datagrams.

The datagrams still go through real sockets on loopback; what a node sends is only handed to its
socket later, or not at all.
"""

from __future__ import annotations

import asyncio
import random
from dataclasses import dataclass

from swarmd.dht.directory import Directory
from swarmd.dht.transport import GuardedTransport

__all__ = ["Wan"]


@dataclass(frozen=True, slots=True)
class Wan:
    """One-way delays in seconds, uniform between two bounds, and the share of datagrams lost."""

    least: float = 0.010
    most: float = 0.060
    loss: float = 0.01

    def apply(self, node: Directory, rng: random.Random) -> None:
        """From now on, all that `node` sends is late or lost. The node must be open."""
        assert node._server is not None
        protocol = node._server.protocol
        protocol.transport = _Late(protocol.transport, self, rng)


class _Late:
    """A GuardedTransport with a `sendto` that takes its time."""

    def __init__(self, inner: GuardedTransport, wan: Wan, rng: random.Random) -> None:
        self._inner = inner
        self._wan = wan
        self._rng = rng

    def sendto(self, data: bytes, address: tuple[object, object]) -> bool:
        if self._rng.random() >= self._wan.loss:
            delay = self._rng.uniform(self._wan.least, self._wan.most)
            asyncio.get_running_loop().call_later(delay, self._inner.sendto, data, address)
        return not self._inner.is_closing()

    def is_closing(self) -> bool:
        return self._inner.is_closing()

    def close(self) -> None:
        self._inner.close()

    def abort(self) -> None:
        self._inner.abort()
