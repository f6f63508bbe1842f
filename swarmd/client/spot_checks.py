"""Spot checks of a session's hops: other peers run drawn outputs again, beside the answer.

The machine of :mod:`swarmd.routing.verification` decides; this object opens sessions at verifiers,
feeds them the inputs that the session keeps for replay anyway, and compares. Each segment has at
most one task, one verifier that is kept for later checks, and one chunk under way.
"""

from __future__ import annotations

import asyncio
import hashlib
import secrets
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field

from swarmd.blocks import Span
from swarmd.client.agreement import Comparison, compare, tolerance_of
from swarmd.client.evidence import Evidence
from swarmd.client.router import Router
from swarmd.client.second_opinion import SecondOpinion
from swarmd.errors import PeerFailure, RemoteError, StateError, UnknownSession
from swarmd.identity import PeerId
from swarmd.peers import Arithmetic, PeerInfo
from swarmd.routing.history import History
from swarmd.routing.verification import Check, Draw, State, Verdict, Verification
from swarmd.tasks import TaskOwner
from swarmd.wire.pool import Pool
from swarmd.wire.tensors import ITEM_BYTES

__all__ = ["CheckConfig", "CheckStatistics", "Checked", "SpotChecks"]


@dataclass(frozen=True, slots=True)
class CheckConfig:
    """What is checked, and how much work that may be."""

    fraction: float = 0.0
    """The share of positions whose outputs are drawn for a check, at each hop; 0 is off."""
    seed: bytes | None = None
    """Makes the draws repeatable; None takes a secret, so that no peer can foretell them."""
    tries: int = 3
    """Verifiers that are tried for one opinion before the check is skipped."""
    at_once: int = 4
    """Chunks that verifiers run for one session at the same time."""
    keep: Callable[[Evidence], Awaitable[None]] | None = None
    """Called with each settled or unsettled dispute; may raise StateError."""
    own: frozenset[PeerId] = frozenset()
    """Nodes of the user's own, on this machine: asked before others, and right in a
    dispute with another's."""


@dataclass(slots=True)
class CheckStatistics:
    """What was checked. `positions` were compared, once for each hop that gave them;
    `largest_difference` is that of those that agreed; `skipped` counts by reason."""

    checks: int = 0
    positions: int = 0
    disputes: int = 0
    largest_difference: float = 0.0
    skipped: Counter[str] = field(default_factory=Counter)
    evidence: list[Evidence] = field(default_factory=list)
    waited_seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class Checked:
    """A span's outputs before `verified` have been verified."""

    span: Span
    verified: int


@dataclass(slots=True)
class _Segment:
    span: Span
    inputs: History
    outputs: History
    machine: Verification
    verifier: SecondOpinion | None = None
    worker: asyncio.Task[None] | None = None


class SpotChecks:
    """The checks of one session. Its owner calls `produced`, `replaced` and `cut`."""

    def __init__(
        self,
        config: CheckConfig,
        router: Router,
        pool: Pool,
        owner: TaskOwner,
        *,
        arithmetic: Arithmetic,
        hidden_size: int,
        max_length: int,
        chunk_tokens: int,
        open_timeout: float,
        tell: Callable[[str], None],
    ) -> None:
        self.statistics = CheckStatistics()
        self.convicted: set[PeerId] = set()
        self._config = config
        self._draw = Draw(config.fraction, config.seed or secrets.token_bytes(32))
        self._router = router
        self._pool = pool
        self._owner = owner
        self._arithmetic = arithmetic
        self._dtype = dtype = arithmetic.dtype
        self._tolerance = tolerance_of(arithmetic)
        self._hidden_size = hidden_size
        self._row = hidden_size * ITEM_BYTES[dtype]
        self._max_length = max_length
        self._chunk_tokens = chunk_tokens
        self._open_timeout = open_timeout
        self._tell = tell
        self._slots = asyncio.Semaphore(config.at_once)
        self._segments: dict[int, _Segment] = {}
        self._departed: list[_Segment] = []

    # ---- what the session tells ---------------------------------------------------------------

    def watch(self, hop: int, span: Span, inputs: History, outputs: History, since: int) -> None:
        """A hop of this key gives the outputs of `span` from position `since` on."""
        self._segments[hop] = _Segment(span, inputs, outputs, Verification(since))

    def produced(self, hop: int, start: int, end: int, peer_id: PeerId) -> None:
        """The positions `[start, end)` of a hop's outputs are in their history now."""
        segment = self._segments[hop]
        drawn = self._draw.takes(segment.span, start, end)
        segment.machine.produced(start, end, peer_id, drawn=drawn)
        if drawn and (segment.worker is None or segment.worker.done()):
            segment.worker = self._owner.spawn(
                self._work(segment), name=f"check {segment.span}", errors="log"
            )

    def replaced(self, hop: int, by: Sequence[tuple[int, Span]], inputs: Sequence[History]) -> None:
        """Hops of these keys stand in the place of a lost one; `inputs` are theirs.

        What the lost hop gave stays its own: it is checked over its span to the end.
        """
        old = self._segments.pop(hop)
        if len(by) == 1:
            self._segments[by[0][0]] = old
            return
        for one in self._departed:
            if not _at_work(one):
                self._forget(one, one.verifier)
        self._departed = [one for one in self._departed if _at_work(one)] + [old]
        outputs = [*inputs[1:], old.outputs]
        for (key, span), before, after in zip(by, inputs, outputs, strict=True):
            self.watch(key, span, before, after, len(after))

    def cut(self, start: int) -> None:
        """The session went back to position `start`."""
        for segment in self._all():
            segment.machine.cut(start)
            if segment.verifier is not None:
                segment.verifier.cut(start)

    @property
    def lie_at(self) -> int | None:
        """The first position whose outputs are a proven lie and still stand."""
        lies = [s.machine.at for s in self._all() if s.machine.state is State.LIED]
        return min(lies, default=None)

    @property
    def checked(self) -> tuple[Checked, ...]:
        """How far each span of the chain is verified now."""
        found = [Checked(s.span, s.machine.verified) for s in self._segments.values()]
        return tuple(sorted(found, key=lambda one: one.span))

    async def settle(self) -> None:
        """Wait until no check is under way. Each waits for peers within their deadlines."""
        began = time.perf_counter()
        while workers := [s.worker for s in self._all() if s.worker and not s.worker.done()]:
            await asyncio.wait(workers)
        self.statistics.waited_seconds += time.perf_counter() - began

    async def close(self) -> None:
        """Close the verifiers' sessions; the tasks are the owner's."""
        verifiers = [s.verifier for s in self._all() if s.verifier is not None]
        await asyncio.gather(*(one.close() for one in verifiers), return_exceptions=True)

    def _all(self) -> list[_Segment]:
        return [*self._segments.values(), *self._departed]

    # ---- a check ------------------------------------------------------------------------------

    async def _work(self, segment: _Segment) -> None:
        while (check := segment.machine.begin()) is not None:
            reason: str | None = "failed"
            try:
                reason = await self._second(segment, check)
            finally:  # a check that came to no end must not stay under way
                if segment.machine.valid(check.ticket):
                    self.statistics.skipped[reason or "failed"] += 1
                    segment.machine.skipped(check.ticket)

    async def _second(self, segment: _Segment, check: Check) -> str | None:
        """Compare with a second peer. None when that was done, else why not."""
        without = set(segment.machine.producers)
        known, segment.verifier = segment.verifier, None
        if known is not None and known.peer.peer_id in without:  # it serves this hop now
            known.abort()
            known = None

        async def use(verifier: SecondOpinion) -> None:
            segment.verifier = verifier
            await self._compare(segment, check, verifier)

        return await self._ask(segment, without, use, known)

    async def _ask(
        self,
        segment: _Segment,
        without: set[PeerId],
        use: Callable[[SecondOpinion], Awaitable[None]],
        known: SecondOpinion | None = None,
    ) -> str | None:
        """Let a peer do `use`, first `known`; where one fails, another one that is not among
        `without`. None when it was done, else why it was not."""
        reason = "no other peer"
        for _ in range(self._config.tries):
            opinion, known = known, None
            peer = opinion.peer if opinion else await self._candidate(segment, without)
            if peer is None:
                break
            without.add(peer.peer_id)
            try:
                if opinion is None:
                    opinion = await SecondOpinion.open(
                        peer, segment.span, self._pool, self._router,
                        max_length=self._max_length, timeout=self._open_timeout,
                    )  # fmt: skip
                await use(opinion)
            except (PeerFailure, RemoteError) as error:
                reason = error.code if isinstance(error, RemoteError) else type(error).__name__
                self._router.observe_failure(peer, error)
                self._forget(segment, opinion)
                if isinstance(error, UnknownSession):  # it waited too long: open it anew
                    without.discard(peer.peer_id)
            except BaseException:
                self._forget(segment, opinion)
                raise
            else:
                return None
        return reason

    async def _candidate(self, segment: _Segment, without: set[PeerId]) -> PeerInfo | None:
        without |= self.convicted
        found = await self._router.second_opinions(segment.span, self._arithmetic, without)
        own = [peer for peer in found if peer.peer_id in self._config.own]
        return next(iter((*own, *found)), None)

    def _forget(self, segment: _Segment, opinion: SecondOpinion | None) -> None:
        if opinion is not None:
            opinion.abort()
        if segment.verifier is opinion:
            segment.verifier = None

    async def _advance(
        self, segment: _Segment, opinion: SecondOpinion, end: int
    ) -> tuple[int, bytearray]:
        async with self._slots:
            return await opinion.advance(
                segment.inputs, end,
                chunk_tokens=self._chunk_tokens, dtype=self._dtype, hidden_size=self._hidden_size,
            )  # fmt: skip

    async def _compare(self, segment: _Segment, check: Check, verifier: SecondOpinion) -> None:
        machine = segment.machine
        verifier.cut(check.start)
        while verifier.fed < check.end:
            if not machine.valid(check.ticket):
                return
            position, data = await self._advance(segment, verifier, check.end)
            if not machine.valid(check.ticket):
                return
            end, first = verifier.fed, max(position, check.start)
            if first >= end:
                continue
            theirs = bytes(memoryview(data)[(first - position) * self._row :])
            result = self._differ(segment.outputs.read(first, end), theirs)
            if result.first is not None:
                at = result.first * self._row
                self.statistics.positions += result.first + 1
                self.statistics.disputes += 1
                machine.differed(check.ticket, first + result.first)
                await self._dispute(segment, check, verifier, theirs[at : at + self._row])
                return
            self.statistics.positions += end - first
            largest = max(self.statistics.largest_difference, result.largest)
            self.statistics.largest_difference = largest
            machine.agreed(check.ticket, end)
        self.statistics.checks += 1

    # ---- a dispute ----------------------------------------------------------------------------

    async def _dispute(
        self, segment: _Segment, check: Check, second: SecondOpinion, second_row: bytes
    ) -> None:
        """The hop and `second` differ at `machine.at`: let a third peer decide, unless one of the
        two is the user's own."""
        machine, at = segment.machine, segment.machine.at
        hop_row = segment.outputs.read(at, at + 1)
        hop = machine.producer(at)
        opinions = [(hop, hop_row), (second.peer.peer_id, second_row)]
        difference = self._differ(hop_row, second_row).largest
        evidence: Evidence | None = None

        def close_case(verdict: Verdict | None) -> None:  # at once: the session may go on meanwhile
            nonlocal evidence
            if verdict is None or verdict is Verdict.ROUNDING:
                return
            liars = {Verdict.HOP_LIED: hop, Verdict.VERIFIER_LIED: second.peer.peer_id}
            evidence = Evidence(
                verdict=verdict,
                liar=liars.get(verdict),
                span=segment.span,
                position=at,
                end=check.end,
                dtype=self._dtype,
                difference=difference,
                tolerance=self._tolerance,
                opinions=tuple((who, hashlib.sha256(row).hexdigest()) for who, row in opinions),
                model_id=self._router.view.model_id.hex(),
                wall=self._router.clock.wall(),
            )
            self._pronounce(evidence)

        async def use(third: SecondOpinion) -> None:
            row = b""
            while third.fed <= at:
                position, data = await self._advance(segment, third, at + 1)
                if not machine.valid(check.ticket):
                    third.abort()
                    return
                row = bytes(memoryview(data)[(at - position) * self._row :])
            opinions.append((third.peer.peer_id, row))
            verdict = machine.judged(
                check.ticket,
                with_hop=self._differ(hop_row, row).first is None,
                with_second=self._differ(second_row, row).first is None,
            )
            close_case(verdict)
            if verdict is Verdict.VERIFIER_LIED:  # the third one goes on in its place
                second.abort()
                segment.verifier = third
            else:
                await third.close()

        without = {*machine.producers, second.peer.peer_id}
        own = self._config.own & {hop, second.peer.peer_id}
        if len(own) == 1:
            verdict = machine.judged(check.ticket, with_hop=hop in own, with_second=hop not in own)
            close_case(verdict)
            if verdict is Verdict.VERIFIER_LIED:
                self._forget(segment, second)
        elif await self._ask(segment, without, use) is not None:
            close_case(machine.skipped(check.ticket))
        if evidence is not None and self._config.keep is not None:
            try:
                await self._config.keep(evidence)
            except StateError as error:
                self._tell(f"the evidence is not kept: {error}")

    def _pronounce(self, evidence: Evidence) -> None:
        self.statistics.evidence.append(evidence)
        who, span, at = evidence.liar, evidence.span, evidence.position
        if who is not None:
            self.convicted.add(who)
            self._router.convict(who)
            own = len(evidence.opinions) == 2
            says = "a node of your own says so" if own else "two other peers agree on that"
            self._tell(
                f"{span} via {who.short}: its outputs are wrong from position {at} on; {says}; it "
                "is left out from now on"
            )
        else:
            names = " and ".join(peer.short for peer, _ in evidence.opinions)
            self._tell(
                f"WARNING: {names} differ about {span} at position {at}, and nobody settles it; "
                "the answer may be wrong from there on"
            )

    def _differ(self, a: bytes, b: bytes) -> Comparison:
        return compare(
            a, b, dtype=self._dtype, hidden_size=self._hidden_size, tolerance=self._tolerance
        )


def _at_work(segment: _Segment) -> bool:
    return segment.machine.state is not State.IDLE or (
        segment.worker is not None and not segment.worker.done()
    )
