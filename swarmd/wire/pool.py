"""Idle connections kept for the next session, so that a session starts without a handshake."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Hashable
from dataclasses import dataclass
from typing import Generic, TypeVar

from swarmd.clock import Clock, SystemClock
from swarmd.identity import PeerId
from swarmd.peers import Address
from swarmd.wire.protocol import State
from swarmd.wire.transport import Greeted, Greeting, dial

__all__ = ["IdleList", "Pool"]

MAX_IDLE_PER_PEER = 4
IDLE_SECONDS = 60.0

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


@dataclass(frozen=True, slots=True)
class _Idle(Generic[V]):
    value: V
    since: float


class IdleList(Generic[K, V]):
    """Which idle things to keep. Pure: `put` and `expire` return what the caller is to close."""

    def __init__(self, *, per_key: int = MAX_IDLE_PER_PEER, seconds: float = IDLE_SECONDS) -> None:
        self._per_key = per_key
        self._seconds = seconds
        self._idle: defaultdict[K, list[_Idle[V]]] = defaultdict(list)

    def __len__(self) -> int:
        return sum(map(len, self._idle.values()))

    def take(self, key: K) -> V | None:
        """The idle thing that was used last, or None."""
        waiting = self._idle.get(key)
        if not waiting:
            return None
        newest = waiting.pop()
        if not waiting:
            del self._idle[key]
        return newest.value

    def put(self, key: K, value: V, now: float) -> list[V]:
        """Keep `value`; the oldest beyond the limit is returned."""
        waiting = self._idle[key]
        waiting.append(_Idle(value, now))
        surplus = waiting[: -self._per_key]
        del waiting[: -self._per_key]
        return [idle.value for idle in surplus]

    def expire(self, now: float) -> list[V]:
        """Forget and return all that have been idle for too long."""
        old: list[V] = []
        for key in list(self._idle):
            keep = [idle for idle in self._idle[key] if now - idle.since < self._seconds]
            old += [i.value for i in self._idle[key] if now - i.since >= self._seconds]
            if keep:
                self._idle[key] = keep
            else:
                del self._idle[key]
        return old

    def clear(self) -> list[V]:
        """Forget and return everything."""
        values = [idle.value for waiting in self._idle.values() for idle in waiting]
        self._idle.clear()
        return values


class Pool:
    """Greeted connections by peer. `async with Pool(greeting) as pool:`."""

    def __init__(
        self, greeting: Greeting, *, clock: Clock | None = None, dial_timeout: float = 5.0
    ) -> None:
        self._greeting = greeting
        self._clock = clock or SystemClock()
        self._dial_timeout = dial_timeout
        self._idle: IdleList[PeerId, Greeted] = IdleList()
        self._left = False

    async def __aenter__(self) -> Pool:
        return self

    async def __aexit__(self, *_exc: object) -> None:
        self._left = True  # what is released from now on is dropped
        closing = [greeted.connection.close() for greeted in self._idle.clear()]
        await asyncio.gather(*closing, return_exceptions=True)

    async def acquire(self, peer_id: PeerId, address: Address) -> Greeted:
        """An idle connection to the peer, or a new one. Raises what `dial` raises."""
        self._drop_expired()
        while (greeted := self._idle.take(peer_id)) is not None:
            if greeted.connection.is_usable and greeted.connection.state is State.IDLE:
                return greeted
            greeted.connection.abort()
        return await dial(address, self._greeting, expected=peer_id, timeout=self._dial_timeout)

    def release(self, greeted: Greeted) -> None:
        """Give a connection back. One that is not idle and clean is dropped, as are all
        after the pool was left."""
        connection = greeted.connection
        if self._left or not connection.is_usable or connection.state is not State.IDLE:
            connection.abort()
            return
        for surplus in self._idle.put(greeted.peer_id, greeted, self._clock.monotonic()):
            surplus.connection.abort()
        self._drop_expired()

    def _drop_expired(self) -> None:
        for greeted in self._idle.expire(self._clock.monotonic()):
            greeted.connection.abort()
