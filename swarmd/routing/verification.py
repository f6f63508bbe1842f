"""The machine of spot checks: how far a span's outputs are verified, and who lied. Pure.

One machine watches one *segment*: the outputs of a span, position by position, with the peer that
gave each. Some positions are drawn at random. When one is, a second peer runs the segment's kept
inputs, and everything up to that position is compared: it has to run all of them anyway, to have
the attention cache. So what is verified is always a prefix, `[0, verified)`. Where the two differ
first, a third peer decides about that one position.

========== ============================== ========= ============================================
state      leaves by                      next      meaning
========== ============================== ========= ============================================
idle       `begin`, if a position at or   second    nothing under way
           after `verified` was drawn
second     `agreed` to the end            idle      a second peer runs `[verified, end)`
second     `differed`                     third     ... and had something else at one position
second     `skipped`: no peer could       idle      the next draw tries again, from `verified` on
third      `judged`: with the hop         idle      the verifier lied; another one checks again
third      `judged`: with both            idle      the two differ by rounding
third      `judged`: with the verifier    lied      the hop lied; its outputs from there are void
third      `judged`: with none            unsettled three opinions
third      `skipped`: no third peer       unsettled two opinions
lied       `cut` at or before the lie     idle      waits for the session to go back
unsettled  `cut` at or before it          idle      no more checks of this segment
any        `cut` before what is under way idle      its ticket is void
========== ============================== ========= ============================================

Two of three decide, so two that lie alike convict an honest third: that is the limit of it.
"""

from __future__ import annotations

import enum
import hashlib
import itertools
from dataclasses import dataclass

from swarmd.blocks import Span
from swarmd.identity import PeerId

__all__ = ["Check", "Draw", "State", "Verdict", "Verification"]


class State(enum.Enum):
    IDLE = "idle"
    SECOND = "second"
    THIRD = "third"
    LIED = "lied"
    UNSETTLED = "unsettled"


class Verdict(enum.Enum):
    """What a third opinion, or its absence, makes of a dispute."""

    HOP_LIED = "hop lied"
    VERIFIER_LIED = "verifier lied"
    ROUNDING = "rounding"
    UNSETTLED = "unsettled"


@dataclass(frozen=True, slots=True)
class Draw:
    """Which positions are checked: each with probability `fraction`. The same `seed` draws the
    same ones, whatever the order in which outputs come; nobody without it can foretell them."""

    fraction: float
    seed: bytes

    def takes(self, span: Span, start: int, end: int) -> bool:
        """Whether one of the positions `[start, end)` of a span's outputs is drawn."""
        return self.fraction > 0 and any(
            self._share(span, position) < self.fraction for position in range(start, end)
        )

    def _share(self, span: Span, position: int) -> float:
        text = f"{span.start}:{span.end}@{position}".encode()
        digest = hashlib.blake2b(text, key=self.seed[:64], digest_size=7).digest()
        return int.from_bytes(digest, "big") / (1 << 56)


@dataclass(frozen=True, slots=True)
class Check:
    """Instruction: let a second peer run up to `end`, and compare the positions `[start, end)`."""

    ticket: int
    start: int
    end: int


class Verification:
    """The machine of one segment."""

    def __init__(self, verified: int = 0) -> None:
        """`verified`: positions before it are not this segment's to check."""
        self.state = State.IDLE
        self.verified = verified
        self.at = 0
        """Where the dispute is, or the lie; meaningful in the last three states."""
        self._wanted = verified
        self._end = verified
        self._ticket = -1
        self._tickets = itertools.count()
        self._produced: list[tuple[int, int, PeerId]] = []

    @property
    def producers(self) -> frozenset[PeerId]:
        """All peers whose outputs stand in this segment."""
        return frozenset(peer_id for _, _, peer_id in self._produced)

    def producer(self, position: int) -> PeerId:
        """Who gave the output at a position. Raises LookupError if nobody did."""
        for start, end, peer_id in self._produced:
            if start <= position < end:
                return peer_id
        raise LookupError(f"nobody gave position {position}")

    def valid(self, ticket: int) -> bool:
        """Whether what was begun under this ticket still counts."""
        return ticket == self._ticket and self.state in (State.SECOND, State.THIRD)

    def produced(self, start: int, end: int, peer_id: PeerId, *, drawn: bool) -> None:
        """Outputs `[start, end)` came from a peer; `drawn`: they are to be checked."""
        last = self._produced[-1] if self._produced else None
        if last is not None and last[1] == start and last[2] == peer_id:
            self._produced[-1] = (last[0], end, peer_id)
        else:
            self._produced.append((start, end, peer_id))
        if drawn:
            self._wanted = max(self._wanted, end)

    def begin(self) -> Check | None:
        """The next check, if one is wanted and none is under way."""
        if self.state is not State.IDLE or self._wanted <= self.verified:
            return None
        self.state, self._ticket = State.SECOND, next(self._tickets)
        self._end = self._wanted
        return Check(self._ticket, self.verified, self._end)

    def agreed(self, ticket: int, upto: int) -> None:
        """The second peer has the same for all positions before `upto`."""
        if self.valid(ticket) and self.state is State.SECOND:
            self.verified = max(self.verified, min(upto, self._end))
            if self.verified == self._end:
                self.state = State.IDLE

    def differed(self, ticket: int, position: int) -> bool:
        """The second peer has something else at `position`, and the same before it. False if
        the check is void."""
        if not self.valid(ticket) or self.state is not State.SECOND:
            return False
        self.verified, self.at = position, position
        self.state = State.THIRD
        return True

    def judged(self, ticket: int, *, with_hop: bool, with_second: bool) -> Verdict | None:
        """A third peer's output agrees with these. None if the check is void."""
        if not self.valid(ticket) or self.state is not State.THIRD:
            return None
        if with_hop and with_second:
            self.state, self.verified = State.IDLE, self.at + 1
            return Verdict.ROUNDING
        if with_hop:
            self.state = State.IDLE
            return Verdict.VERIFIER_LIED
        self.state = State.LIED if with_second else State.UNSETTLED
        return Verdict.HOP_LIED if with_second else Verdict.UNSETTLED

    def skipped(self, ticket: int) -> Verdict | None:
        """No peer could say. Returns UNSETTLED where a dispute stays open."""
        if not self.valid(ticket):
            return None
        if self.state is State.THIRD:
            self.state = State.UNSETTLED
            return Verdict.UNSETTLED
        self.state, self._wanted = State.IDLE, self.verified
        return None

    def cut(self, start: int) -> None:
        """The session goes back: everything from position `start` on is forgotten."""
        if self.state in (State.LIED, State.UNSETTLED):
            void = start <= self.at
        else:
            void = start < self._end
        if void:
            self.state, self._ticket = State.IDLE, -1
        self.verified = min(self.verified, start)
        self._wanted = min(self._wanted, start)
        self._produced = [
            (a, min(b, start), peer_id) for a, b, peer_id in self._produced if a < start
        ]
