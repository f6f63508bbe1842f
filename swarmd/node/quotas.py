"""What each client may take of a node: a pure ledger, which is handed the time.

==================  ==========================  ==================================================
what is taken       until                       beyond the limit
==================  ==========================  ==================================================
a handshake         it is earned back in time   Busy, and the connection ends
a connection        it ends                     Busy, and it ends; where the whole node is full,
                                                the oldest one without `hello` makes room
a session           it is closed                Busy; the connection goes on
a step, its bytes   it is answered              Busy; the session goes on
bandwidth           it is earned back in time   a delay in seconds, which the caller waits out
==================  ==========================  ==================================================

A client is known by *keys*: its address and, once proven, its peer id. What is taken counts under
each, and is granted only if each has room. A name without anything taken is not remembered, and of
rates the most recent ones only, so memory is bounded whoever calls.
"""

from __future__ import annotations

from collections import Counter, OrderedDict

from swarmd.errors import Busy
from swarmd.identity import PeerId
from swarmd.node.limits import SessionLimits
from swarmd.rates import Key, Rates, address_key

__all__ = ["Guest", "Holdings", "Quotas"]


class Holdings:
    """Things of one kind that clients hold, each client at most `limit`."""

    def __init__(self, name: str, limit: int) -> None:
        self.name = name
        self.limit = limit
        self._held: Counter[Key] = Counter()

    def __len__(self) -> int:
        """Keys under which something is held."""
        return len(self._held)

    def held(self, key: Key) -> int:
        return self._held.get(key, 0)

    def take(self, keys: tuple[Key, ...]) -> None:
        """Count one under each key. Raises Busy, and counts nothing, if one has no room."""
        if any(self.held(key) >= self.limit for key in keys):
            raise Busy(f"{self.limit} {self.name} for each client are in use", retry_after=1.0)
        self._held.update(keys)

    def give_back(self, keys: tuple[Key, ...]) -> None:
        for key in keys:
            if self._held[key] <= 1:
                del self._held[key]
            else:
                self._held[key] -= 1


class Quotas:
    """All that clients hold of one node. `admit` is the door, a `Guest` what came through it."""

    def __init__(self, limits: SessionLimits) -> None:
        self.limits = limits
        self.connections = Holdings("connections", limits.client_connections)
        self.sessions = Holdings("sessions", limits.client_sessions)
        self.steps = Holdings("steps", limits.client_steps)
        self.handshakes = Rates(limits.handshakes, float(limits.client_connections))
        self.bytes_in = Rates(limits.bandwidth_in, limits.bandwidth_in)
        self.bytes_out = Rates(limits.bandwidth_out, limits.bandwidth_out)
        self.payload_bytes = 0
        self.open_connections = 0
        self._half_open: OrderedDict[Guest, None] = OrderedDict()

    @property
    def half_open(self) -> int:
        """Connections that have not said hello."""
        return len(self._half_open)

    def admit(self, host: str, now: float) -> tuple[Guest, Guest | None]:
        """A guest for a new connection from `host`, and one without `hello` that is to be closed
        because it took the last place. Raises Busy, and holds nothing."""
        key = address_key(host, loopback=self.limits.limit_loopback)
        keys = () if key is None else (key,)
        if wait := self.handshakes.admit(keys, now):
            raise Busy("too many new connections from one address", retry_after=max(1.0, wait))
        evicted = None
        if self.open_connections >= self.limits.connections:
            evicted = next(iter(self._half_open), None)
            if evicted is None:
                raise Busy("too many connections", retry_after=5.0)
        self.connections.take(keys)
        if evicted is not None:
            evicted.leave()
        guest = Guest(self, keys)
        self.open_connections += 1
        self._half_open[guest] = None
        return guest, evicted


class Guest:
    """One connection, and what it holds: at its end `leave` gives all of it back."""

    def __init__(self, quotas: Quotas, keys: tuple[Key, ...]) -> None:
        self._quotas = quotas
        self._keys = keys
        self._session = False
        self._steps: list[int] = []
        self._present = True

    @property
    def client(self) -> Key | None:
        """Who shares the engine and the cache fairly: the peer if proven, else the address; None
        where no limit holds."""
        return self._keys[-1] if self._keys else None

    @property
    def keys(self) -> tuple[Key, ...]:
        return self._keys

    def greeted(self, peer_id: PeerId | None) -> None:
        """It has said hello; `peer_id` only if the link proved it. Raises Busy. From an address
        that is exempt no peer is limited either."""
        self._quotas._half_open.pop(self, None)
        if peer_id is not None and self._present and self._keys:
            key: Key = ("peer", peer_id)
            self._quotas.connections.take((key,))
            self._keys = (*self._keys, key)

    def open_session(self) -> None:
        """Raises Busy."""
        self._quotas.sessions.take(self._keys)
        self._session = True

    def close_session(self) -> None:
        """Give back the session and all its steps. Idempotent."""
        if self._session:
            self._session = False
            self._quotas.sessions.give_back(self._keys)
        while self._steps:
            self.step_done()

    def take_step(self, n_bytes: int, unread: int = 0) -> None:
        """A step with `n_bytes` of payload, beside `unread` bytes that no session has taken. Raises
        Busy, and holds nothing."""
        quotas = self._quotas
        if quotas.payload_bytes + unread + n_bytes > quotas.limits.payload_bytes:
            raise Busy("too many bytes of steps wait in this node", retry_after=1.0)
        quotas.steps.take(self._keys)
        quotas.payload_bytes += n_bytes
        self._steps.append(n_bytes)

    def step_done(self) -> None:
        """The oldest step was answered."""
        if self._steps:
            self._quotas.payload_bytes -= self._steps.pop(0)
            self._quotas.steps.give_back(self._keys)

    def received(self, n_bytes: int, now: float) -> float:
        """Seconds for which to read no more."""
        return self._quotas.bytes_in.spend(self._keys, n_bytes, now) if n_bytes else 0.0

    def sent(self, n_bytes: int, now: float) -> float:
        """Seconds for which to send no more."""
        return self._quotas.bytes_out.spend(self._keys, n_bytes, now) if n_bytes else 0.0

    def leave(self) -> None:
        """Give back everything. Idempotent."""
        if not self._present:
            return
        self._present = False
        self.close_session()
        self._quotas._half_open.pop(self, None)
        self._quotas.connections.give_back(self._keys)
        self._quotas.open_connections -= 1
