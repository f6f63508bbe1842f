"""How much one session takes before it gives up: what each failure of a peer counts as. Pure.

A step may fail at many peers before it succeeds. What a failure counts as follows from the
properties of its class alone (:mod:`swarmd.errors`):

========== ============================= ======================== =============================
counts as  which failures                the peer, in this        the step ends when
                                         session
========== ============================= ======================== =============================
pause      transient refusals: busy,     stays; asked again       they went on for longer than
           deadline_exceeded,            later                    `patience` seconds
           unknown_session
loss       what blames the peer: lost    banned by the router;    there are more than
           connections, missed           one more try where       `max_losses`
           deadlines, bad output         nobody else is left
loss       lasting refusals: it left, or left out for a while     there are more than
           has other blocks or weights                            `max_losses`
doubt      a refusal that is not         left out for a while     a second peer refuses alike
           retryable; an output that is
           not finite
========== ============================= ======================== =============================

A doubt is how one faulty or lying peer is told from a faulty request: the peer is replaced, and
only a second one that says the same is believed. Where the blocks are held by nobody else, the
refusal that was remembered is the reason to give, not the missing blocks.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable

from swarmd.errors import NotFinite, PeerFailure, RemoteError
from swarmd.identity import PeerId

__all__ = ["Losses", "Verdict"]


AGAIN = 2.0
"""Seconds after which a session that waits tries a banned peer again; doubled each time. Where
nobody else is left there is nothing better to do, and it may be well."""


class Verdict(enum.Enum):
    """What a session does after a failure."""

    GO_ON = "look for a replacement"
    BELIEVE = "two peers refuse alike: raise what they say"
    TOO_MANY = "too many hops are lost in one step"
    TOO_LONG = "refused as busy for too long"


class Losses:
    """The failures of one session. `now` is handed in, in monotonic seconds."""

    def __init__(
        self, *, max_losses: int = 16, patience: float = 30.0, left_out: float = 60.0
    ) -> None:
        """`patience` and `left_out` (how long a peer that refuses is not asked again): seconds."""
        self._max_losses = max_losses
        self._patience = patience
        self._left_out_for = left_out
        self._left_out: dict[PeerId, float] = {}
        self.begin()

    def begin(self) -> None:
        """A new step: count from zero. Who was left out stays so."""
        self.losses = 0
        self._busy_since: float | None = None
        self._doubts: dict[type[Exception], PeerId] = {}
        self._spent: dict[PeerId, tuple[int, float]] = {}
        self._refusal: PeerFailure | RemoteError | None = None

    def failed(self, peer_id: PeerId, error: PeerFailure | RemoteError, now: float) -> Verdict:
        """A peer failed or refused; returns what follows from it."""
        if error.transient:
            if self._busy_since is None:
                self._busy_since = now
            return Verdict.TOO_LONG if now - self._busy_since > self._patience else Verdict.GO_ON
        if not error.blames_peer or isinstance(error, NotFinite):
            self._left_out[peer_id] = now + self._left_out_for
            self._refusal = error
        if not error.retryable or isinstance(error, NotFinite):
            first = self._doubts.setdefault(type(error), peer_id)
            if first != peer_id:
                return Verdict.BELIEVE
        self.losses += 1
        return Verdict.TOO_MANY if self.losses > self._max_losses else Verdict.GO_ON

    def left_out(self, now: float) -> frozenset[PeerId]:
        """The peers that this session does not ask now."""
        return frozenset(peer_id for peer_id, until in self._left_out.items() if now < until)

    def spent(self, now: float | None = None) -> frozenset[PeerId]:
        """The banned peers that had their second try in this step. With `now`, as a session that
        waits sees it: without those whose pause since the last try is over."""
        return frozenset(
            peer_id for peer_id, (_, until) in self._spent.items() if now is None or now < until
        )

    def spend(self, peer_ids: Iterable[PeerId], now: float) -> None:
        """Banned peers are tried once more, since nobody else holds their blocks; and again after a
        pause, which doubles."""
        for peer_id in peer_ids:
            tries, _ = self._spent.get(peer_id, (0, 0.0))
            self._spent[peer_id] = (tries + 1, now + AGAIN * 2**tries)

    @property
    def refusal(self) -> PeerFailure | RemoteError | None:
        """The last refusal in this step by a peer that is left out since."""
        return self._refusal
