"""What a relay has granted: reservations, and the streams that run under each. Pure.

========== =================================== ==============================================
state      leaves by                           meaning
========== =================================== ==============================================
(none)     `reserve` -> held                   the node is not relayed here
held       `release` -> (none)                 the node's control link is open
a stream:
(none)     `call` -> called                    a client wants the node; the node has a ticket
called     `answer` -> passing                 the node dialled back and gave the ticket
called     `expire`, `release` -> (none)       it did not, in time; or it left
passing    `end`, `release` -> (none)          bytes go both ways
========== =================================== ==============================================

A ticket is 16 random bytes that are told to the relayed node alone, over its own encrypted link,
and is good once. Everything is bounded: reservations, streams of each, calls that wait.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass, field

from swarmd.errors import Busy
from swarmd.identity import PeerId
from swarmd.rates import Bucket

__all__ = ["Call", "Ledger", "RelayLimits"]


@dataclass(frozen=True, slots=True)
class RelayLimits:
    """What one relay grants, each with its reason. Times in seconds."""

    reservations: int = 16
    """Relaying costs bandwidth twice; a node that helps a few need not carry a swarm."""
    streams: int = 16
    """Of one relayed node: a client needs one for each session."""
    bytes_per_second: float = 4 << 20
    """Of one relayed node, both directions together: some hundred decode steps a second."""
    burst_bytes: float = 32 << 20
    """What may pass at once, such as a prefill."""
    call_timeout: float = 5.0
    """For the relayed node to dial back."""
    idle_timeout: float = 330.0
    """A stream on which nothing passes; a little more than nodes grant their sessions."""


@dataclass(frozen=True, slots=True, eq=False)
class Call:
    """A client that waits for a relayed node; `waiter` is whatever the shell keeps of it."""

    peer_id: PeerId
    ticket: bytes
    waiter: Hashable
    since: float


@dataclass(slots=True, eq=False)
class _Reservation:
    link: Hashable
    bucket: Bucket
    calls: dict[bytes, Call] = field(default_factory=dict)
    streams: set[Hashable] = field(default_factory=set)


class Ledger:
    """The reservations of one relay. `new_ticket` makes random tickets."""

    def __init__(self, limits: RelayLimits, new_ticket: Callable[[], bytes]) -> None:
        self.limits = limits
        self._new_ticket = new_ticket
        self._held: dict[PeerId, _Reservation] = {}

    @property
    def relayed(self) -> tuple[PeerId, ...]:
        """The nodes that hold a reservation."""
        return tuple(self._held)

    @property
    def streams(self) -> int:
        """Streams that pass now."""
        return sum(len(held.streams) for held in self._held.values())

    def reserve(self, peer_id: PeerId, link: Hashable, now: float) -> Hashable | None:
        """Grant a reservation; its control link is `link`. Returns the link that the same node
        held before, which is to be closed. Raises Busy."""
        before = self._held.get(peer_id)
        if before is None and len(self._held) >= self.limits.reservations:
            raise Busy("this relay has no room for another node", retry_after=60.0)
        bucket = Bucket(self.limits.bytes_per_second, self.limits.burst_bytes, now)
        if before is None:
            self._held[peer_id] = _Reservation(link, bucket)
            return None
        old, before.link = before.link, link
        return old

    def release(self, peer_id: PeerId, link: Hashable) -> list[Hashable]:
        """The control link is gone. Returns the waiters and streams to be ended; none if the node
        holds its reservation over another link by now."""
        held = self._held.get(peer_id)
        if held is None or held.link != link:
            return []
        del self._held[peer_id]
        return [*(call.waiter for call in held.calls.values()), *held.streams]

    def call(self, peer_id: PeerId, waiter: Hashable, now: float) -> tuple[Hashable, Call]:
        """A client wants a relayed node. Returns the control link to tell, and the call.

        Raises Busy when the node has too many streams; KeyError when it is not relayed here.
        """
        held = self._held[peer_id]
        if len(held.calls) + len(held.streams) >= self.limits.streams:
            raise Busy("too many streams to this node pass through this relay", retry_after=5.0)
        call = Call(peer_id, self._new_ticket(), waiter, now)
        held.calls[call.ticket] = call
        return held.link, call

    def answer(self, ticket: bytes, stream: Hashable, now: float) -> tuple[Call, Bucket] | None:
        """The relayed node dialled back. Returns whom to join and by which rate; None for a ticket
        that is unknown, used or too old."""
        for held in self._held.values():
            call = held.calls.pop(ticket, None)
            if call is None:
                continue
            if now - call.since > self.limits.call_timeout:
                return None
            held.streams.add(stream)
            return call, held.bucket
        return None

    def end(self, peer_id: PeerId, stream: Hashable) -> None:
        """A stream ended. Idempotent."""
        held = self._held.get(peer_id)
        if held is not None:
            held.streams.discard(stream)

    def expire(self, now: float) -> list[Hashable]:
        """Forget calls that were not answered in time; returns their waiters, to be ended."""
        late: list[Hashable] = []
        for held in self._held.values():
            for call in list(held.calls.values()):
                if now - call.since > self.limits.call_timeout:
                    del held.calls[call.ticket]
                    late.append(call.waiter)
        return late

    def forget(self, call: Call) -> None:
        """The client of a call hung up. Idempotent."""
        held = self._held.get(call.peer_id)
        if held is not None:
            held.calls.pop(call.ticket, None)
