"""One generation's way through the swarm: a chain of hops that outlives each of its peers.

The replay machine (:mod:`swarmd.routing.replay`) says which hop runs which positions; this object
carries that out over connections and puts replacements in the place of hops that fail. The input of
every hop is kept (:mod:`swarmd.client.boundaries`), so that only the lost span is run again.

Each hop's link is read by a task, which puts what comes into one inbox. A step sends what the
machine says, takes what comes, and looks after who is late (:mod:`swarmd.routing.waits`) until its
positions have left the last hop. Copies of a ring that come later wait for the next step.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable

from swarmd.client.boundaries import Boundaries
from swarmd.client.hop_link import HopEvent, HopLink, HopOutput, Refused
from swarmd.client.inbox import Inbox
from swarmd.client.repair import Repair, all_of, neighbours
from swarmd.client.ring_links import RingLinks
from swarmd.client.router import Router
from swarmd.client.session_config import Recovery, SessionConfig, SessionStatistics
from swarmd.client.spares import Spares
from swarmd.client.spot_checks import SpotChecks
from swarmd.errors import BadOutput, OutputWithdrawn, PeerFailure, PeerTimeout, RemoteError
from swarmd.routing.chain import Chain, Hop
from swarmd.routing.chunks import SIZES, chunk_size, paces
from swarmd.routing.replay import Due, OutOfOrder, Replay, Run
from swarmd.routing.waits import Alarm, Waits
from swarmd.tasks import TaskOwner
from swarmd.wire.messages import Linked, Unlinked
from swarmd.wire.pool import Pool
from swarmd.wire.tensors import ITEM_BYTES, TensorMeta, choose_codec

__all__ = ["ChainSession", "Recovery", "SessionConfig", "SessionStatistics"]

log = logging.getLogger(__name__)


class ChainSession:
    """A session over all blocks. `async with session:`, then `open_links`, then steps.

    `step` cuts back to a position and appends, like every step of the protocol, so it can be
    repeated. Not for concurrent steps; what the next one will probably be may be put in `ahead`.
    """

    def __init__(
        self,
        router: Router,
        pool: Pool,
        chain: Chain,
        *,
        hidden_size: int,
        max_length: int,
        config: SessionConfig | None = None,
        on_story: Callable[[str], None] | None = None,
    ) -> None:
        self.config = config or SessionConfig()
        self.max_length = max_length
        self.statistics = SessionStatistics()
        self.dtype = chain.hops[0].peer.dtype
        if self.config.checks.fraction > 0 and len(chain.quantizations) > 1:
            raise ValueError("spot checks need a chain of one quantization")
        if self.config.checks.fraction > 0 and self.config.codec == "int8":
            raise ValueError("spot checks cannot tell a lie from what int8 rounds away")
        self._router = router
        self._pool = pool
        self._hidden_size = hidden_size
        self._machine = Replay([hop.span for hop in chain.hops])
        self._hops = {
            key: hop for (key, _), hop in zip(self._machine.hops, chain.hops, strict=True)
        }
        checked = self.config.checks.fraction > 0
        self._bounds = Boundaries(
            hidden_size * ITEM_BYTES[self.dtype], list(self._hops), keeps_final=checked
        )
        self._links: dict[int, HopLink] = {}
        self._waits = Waits(self._allowed)
        self._owner = TaskOwner("chain")
        self._inbox = Inbox(self._owner)
        self._story: list[str] = []
        self._on_story = on_story
        self._repair = Repair(
            router, pool, self.config,
            max_length=max_length, mixing=not checked, tell=self._tell, story=self._story,
        )  # fmt: skip
        # A hop that is to be checked gets its inputs from here: else who feeds it something other
        # than what it shows to us would have it convicted.
        self._ring = None if checked else RingLinks(router, self._machine)
        self._spares = Spares(
            router, pool, self._owner, self._machine, self._hops, self._bounds.inputs,
            standby=self.config.standby, codec=self.config.codec,
            dtype=self.dtype, hidden_size=hidden_size,
            max_length=max_length, open_timeout=self.config.open_timeout, tell=self._tell,
        )  # fmt: skip
        self._lost_since: dict[int, tuple[float, str]] = {}
        self.checks = self._new_checks() if checked else None
        self.went_on = False
        """Whether the last step's positions had been put in ahead: so its time is no whole trip."""

    def _new_checks(self) -> SpotChecks:
        checks = SpotChecks(
            self.config.checks, self._router, self._pool, self._owner,
            arithmetic=self.chain[0].peer.arithmetic,
            hidden_size=self._hidden_size, max_length=self.max_length,
            chunk_tokens=self.config.chunk_tokens or SIZES[-1],
            open_timeout=self.config.open_timeout, tell=self._tell,
        )  # fmt: skip
        boundaries = [*self._bounds.inputs.values(), self._bounds.final]
        hops = zip(self._machine.hops, boundaries[:-1], boundaries[1:], strict=True)
        for (key, span), before, after in hops:
            checks.watch(key, span, before, after, 0)
        return checks

    @property
    def chain(self) -> tuple[Hop, ...]:
        """The hops as they are now."""
        return tuple(self._hops[key] for key, _ in self._machine.hops)

    @property
    def story(self) -> tuple[str, ...]:
        """What went wrong so far, in order."""
        return tuple(self._story)

    def stand_by(self, wanted: bool) -> None:
        """Whether from now on a second peer for each hop is to hold a ready cache."""
        self._spares.standby = wanted

    def inputs(self, start: int, end: int) -> bytes:
        """The hidden states that entered the chain at positions `[start, end)`: raw bytes, also
        during a step. Raises IndexError for positions that no step had."""
        return self._bounds.inputs[self._first].read(start, end)

    @property
    def _first(self) -> int:
        return self._machine.hops[0][0]

    def stage_seconds(self, tokens: int) -> float:
        """How long the slowest hop computes for a step of so many positions, as far as is known."""
        return max(self._router.costs.run(h.peer, len(h.span), tokens) for h in self.chain)

    async def boundaries(self, start: int, end: int) -> tuple[tuple[int, bytes], ...]:
        """The hidden states that entered each hop at positions `[start, end)` of what is complete:
        the hop's first block, and raw bytes. Waits for what a ring's hops have still to tell, and
        raises what a step raises. Not during a step. Raises IndexError."""
        if end > self._machine.arrived(self._first):
            raise IndexError(f"positions {start}:{end} were not all run")
        self._repair.begin()
        await self._carry_out(start, lambda: self._machine.all_arrived(end))
        hops = self._machine.hops
        inputs = self._bounds.inputs
        return tuple((span.start, inputs[key].read(start, end)) for key, span in hops)

    async def __aenter__(self) -> ChainSession:
        await self._owner.__aenter__()
        return self

    async def __aexit__(self, *exc: object) -> None:
        closed = False
        try:
            await self._owner.close()
            if self.checks is not None:
                await self.checks.close()
            closing = [link.close() for link in self._links.values()]
            closing.append(self._spares.close())
            await asyncio.gather(*closing, return_exceptions=True)
            closed = True
        finally:
            self._spares.abort()
            for link in self._links.values():
                if exc[0] is not None or not closed:
                    link.abort()
            self._links.clear()

    async def open_links(self) -> None:
        """Connect to all hops at once, before the first step. A hop that fails is replaced."""
        self._repair.begin()

        async def open_one(key: int, hop: Hop) -> None:
            try:
                self._joined(key, await self._repair.open(hop))
            except (PeerFailure, RemoteError) as error:
                self._failed(key, error)

        hops = [one for one in self._hops.items() if one[0] not in self._links]
        await all_of(open_one(key, hop) for key, hop in hops)
        for key in self._machine.lost_hops:
            await self._replace(key, 0)
        self._ask_for_links()
        self._spares.start()

    async def wait_for_links(self, seconds: float) -> bool:
        """Wait until the hops have answered whether they forward to one another, `seconds` at most;
        a step need not wait for that. Returns whether all of them do. Not during a step."""
        if self._ring is None:
            return False
        try:
            async with asyncio.timeout(seconds):
                while self._ring.is_waiting:
                    await self._inbox.wait(None)
                    for came in self._inbox.take():
                        self._take(*came)
        except TimeoutError:
            return False
        return all(self._machine.is_linked(key) for key, _ in self._machine.hops[:-1])

    async def step(self, start: int, data: bytes, tokens: int) -> bytes:
        """Run `tokens` positions from `start` on; `data` is their hidden states as raw bytes.

        Returns the hidden states after the last block, for the same positions. Survives the loss
        of any hop, and a cancel: the step may then be repeated. Raises NoRoute when blocks are
        held by nobody, ReplayExhausted when hops are lost faster than they can be replaced, the
        refusal when two peers refuse the same, ValueError when `start` lies beyond what earlier
        steps returned, and OutputWithdrawn when spot checks found a lie before `start`.
        """
        self._withdraw(start)
        if len(data) != tokens * self._bounds.position_bytes:
            raise ValueError(f"{len(data)} bytes for {tokens} positions")
        if len(self._links) < len(self._hops) - len(self._machine.lost_hops):
            await self.open_links()
        self._repair.begin()
        began = time.perf_counter()
        self.went_on = self._go_on(start, data, tokens)
        if not self.went_on:
            self._begin(start, data, tokens)
        self._send_all()
        await self._carry_out(start, lambda: self._machine.complete)
        self._spares.feed()
        if tokens == 1 and not self.went_on:
            self.statistics.decode_steps += 1
            self.statistics.decode_seconds += time.perf_counter() - began
        return self._bounds.take_output(start, tokens)

    def ahead(self, start: int, data: bytes, tokens: int) -> bool:
        """Put in positions that the next steps will probably ask for, so that they travel behind
        those under way. A step that begins where the one before ended, with these very bytes, goes
        on with them; any other one cuts them back. May be called during a step.

        Returns False, and does nothing, if they do not begin where all that was put in ends, or
        are too many.
        """
        first = self._bounds.inputs[self._first]
        if start != len(first) or start + tokens > self.max_length or not self._machine.target:
            return False
        if tokens < 1 or len(data) != tokens * self._bounds.position_bytes:
            raise ValueError(f"{len(data)} bytes for {tokens} positions")
        self._machine.extend(tokens)
        first.append(data)
        self._inbox.wake()
        return True

    def _begin(self, start: int, data: bytes, tokens: int) -> None:
        """Cut everything back to the start of a step, and put its positions in."""
        self._cut_into_chunks(tokens)
        self._machine.begin(start, tokens)
        self._bounds.begin(self._first, start, data)
        self._spares.cut(start)
        if self.checks is not None:
            self.checks.cut(start)

    def _go_on(self, start: int, data: bytes, tokens: int) -> bool:
        """Go on with what was put in ahead, if it is what this step wants."""
        if start != self._machine.target or not self._machine.complete:
            return False
        held = self._bounds.holds(self._first, start, data)
        if 0 < held < tokens:
            self._machine.extend(tokens - held)
            self._bounds.inputs[self._first].append(data[held * self._bounds.position_bytes :])
        if held:
            self._machine.resume(tokens)
        return held > 0

    async def settle(self, end: int | None = None) -> None:
        """Wait for the spot checks of outputs at positions before `end` (default: of all). Raises
        OutputWithdrawn when one of them found a lie; then steps from there, and another `settle`,
        have to follow."""
        if self.checks is not None:
            if end is not None:  # what was put in ahead of an answer's end is none of it
                self.checks.cut(end)
            await self.checks.settle()
        self._withdraw(self.max_length)

    def _withdraw(self, start: int) -> None:
        """Lose the hops that were proven to lie. Raises OutputWithdrawn for one before it."""
        if self.checks is None:
            return
        for key, hop in self._hops.items():
            if hop.peer.peer_id in self.checks.convicted and key not in self._machine.lost_hops:
                self._lose(key, "its outputs were wrong")
        lie = self.checks.lie_at
        if lie is not None and lie < start:
            raise OutputWithdrawn(lie)

    # ---- a step -------------------------------------------------------------------------------

    async def _carry_out(self, position: int, done: Callable[[], bool]) -> None:
        while not done():
            for key in self._machine.lost_hops:
                await self._replace(key, position)
            self._send_all()
            if not self._machine.lost_hops:
                await self._next()
                for came in self._inbox.take():
                    self._take(*came)

    async def _next(self) -> None:
        """Wait until something comes, or somebody is late."""
        now = time.monotonic()  # uvloop's own clock has milliseconds
        alarm = self._waits.update(self._machine.due(), now)
        if not await self._inbox.wait(None if alarm is None else alarm - now):
            for due, what in self._waits.alarms(time.monotonic()):
                self._late(due, what)

    def _cut_into_chunks(self, tokens: int) -> None:
        """Choose the size of chunks for so many positions, by what was measured so far."""
        if self.config.chunk_tokens is not None:
            self._machine.chunk_tokens = self.config.chunk_tokens
        elif tokens > SIZES[0]:
            hops = paces(self.chain, self._router.costs)
            self._machine.chunk_tokens = chunk_size(hops, tokens)

    def _allowed(self, due: Due) -> float:
        """Seconds that a hop may take for a run."""
        hop = self._hops[due.hop]
        return self._router.deadlines.deadline(
            hop.peer.peer_id, due.tokens, len(hop.span), hop.peer
        )

    def _late(self, due: Due, what: Alarm) -> None:
        hop, peer_id = self._hops[due.hop], self._hops[due.hop].peer.peer_id
        seconds = f"within {self._waits.allowed(due.hop, due.number):.1f} s"
        if what is Alarm.HOP:
            late = f"{peer_id.short} at {hop.peer.address}: no answer {seconds}"
            self._failed(due.hop, PeerTimeout(late, peer=peer_id))
        elif what is Alarm.LINK:
            self._unlink_before(due.hop, f"nothing came from it {seconds}")
        else:
            try:
                self._links[due.hop].ping()
            except PeerFailure as error:
                self._failed(due.hop, error)

    def _unlink_before(self, key: int, reason: str) -> None:
        if self._ring is not None:
            self._ring.broken(self._before(key), self._hops, reason)

    def _before(self, key: int) -> int:
        keys = [key for key, _ in self._machine.hops]
        return keys[keys.index(key) - 1]

    def _send_all(self) -> None:
        for run in self._machine.runnable():
            self._send(run)

    def _send(self, run: Run) -> None:
        """Send positions to a hop, and have the others on their path expected to answer."""
        tokens, hop = run.end - run.start, self._hops[run.hop]
        link = self._links.get(run.hop)
        if link is None:  # lost while this was said
            return
        path = [self._allowed(Due(key, run.number, tokens, False)) for key in run.path]
        data = self._bounds.inputs[run.hop].read(run.start, run.end)
        meta = TensorMeta(self.dtype, (1, tokens, self._hidden_size))
        codec = choose_codec(len(data), self._router.bandwidth(hop.peer), self.config.codec)
        try:
            link.post(
                run.number,
                run.start,
                data,
                meta,
                codec=codec,
                deadline=sum(path) * self._machine.under_way(run.hop),
                forward=len(path) - 1,
            )
        except (PeerFailure, RemoteError) as error:
            self._failed(run.hop, error)
            return
        self.statistics.codecs[codec] += 1
        for key in run.path[1:]:
            self._links[key].expect(run.number, meta)

    def _take(
        self, key: int, link: HopLink, event: HopEvent | PeerFailure | RemoteError, at: float
    ) -> None:
        if self._links.get(key) is not link:
            return  # of a hop that was replaced since
        self._waits.heard(key)
        if isinstance(event, HopOutput):
            self._keep(key, event, at)
        elif isinstance(event, Refused):
            fed = self._machine.expected(key, event.number)
            if fed and not event.error.transient:  # perhaps for what the hop before gave it
                self._unlink_before(key, str(event.error))
            elif fed is not None:
                self._failed(key, event.error)
        elif isinstance(event, Linked | Unlinked):
            if self._ring is not None:
                self._ring.answered(key, self._hops, event)
        elif isinstance(event, PeerFailure | RemoteError):
            self._failed(key, event)

    def _keep(self, key: int, output: HopOutput, at: float) -> None:
        """Keep what is new of an output."""
        hop = self._hops[key]
        try:
            keep = self._machine.finished(key, output.number)
        except OutOfOrder as error:
            self._failed(key, BadOutput(f"{hop.peer.peer_id.short}: {error}"))
            return
        if keep is None:
            return
        since = self._waits.since(key, output.number)
        if since is not None and not keep.behind:
            self._router.observe_step(
                hop.peer,
                tokens=keep.tokens,
                blocks=len(hop.span),
                seconds=at - since,
                compute_seconds=output.compute_seconds,
                queue_seconds=output.queue_seconds,
                wire_bytes=output.wire_bytes,
                source=self._hops[self._before(key)].peer if keep.fed else None,
            )
        self.statistics.wire_bytes += output.wire_bytes
        if keep.tokens == 1:
            self.statistics.decode_bytes += output.wire_bytes
            self.statistics.compute_seconds += output.compute_seconds
            self.statistics.queue_seconds += output.queue_seconds
        self.statistics.forwarded += keep.fed
        self.statistics.replayed_positions += keep.start - keep.first
        if keep.start < keep.end:
            self._bounds.keep(keep, output.data)
            if self.checks is not None:
                self.checks.produced(key, keep.start, keep.end, hop.peer.peer_id)

    # ---- hops that come and go ----------------------------------------------------------------

    def _joined(self, key: int, link: HopLink) -> None:
        """A hop is open: read what it says."""
        self._links[key] = link
        self._inbox.read(key, link)

    def _lose(self, key: int, reason: str) -> bool:
        """A hop is gone. False if that was known."""
        link = self._links.pop(key, None)
        if link is not None:
            link.abort()
        self._inbox.leave(key)
        if self._ring is not None:
            self._ring.lost(key)
        if key not in self._hops or key in self._machine.lost_hops:
            return False
        self._machine.lost(key)
        self._lost_since[key] = (time.perf_counter(), reason)
        return True

    def _failed(self, key: int, error: PeerFailure | RemoteError) -> None:
        """A hop failed: mark it as lost, and remember why. Raises what ends the session."""
        idle = key in self._links and not self._machine.under_way(key)
        if idle and self._links[key].rested and isinstance(error, PeerFailure):
            error = self._links[key].ended_idle()
        if self._lose(key, str(error)):
            self._tell(f"{self._hops[key]} lost: {error}")
            self._repair.count(self._hops[key], error)

    async def _replace(self, key: int, position: int) -> None:
        """Put replacements in the place of a lost hop. Raises NoRoute, ReplayExhausted."""
        lost = self._hops[key]
        since, reason = self._lost_since.pop(key, (time.perf_counter(), "the step was cancelled"))
        standby = await self._spares.take(key)
        if standby is None:
            between = neighbours(self._machine, self._hops, key)
            chain, links = await self._repair.replacement(lost, between)
        else:
            chain, links = Chain((standby.hop,), 0.0), [standby.link]
        held = 0 if standby is None else standby.shadow.cached
        del self._hops[key]
        keys = self._machine.replace(key, [hop.span for hop in chain.hops], cached=held)
        for new, hop, link in zip(keys, chain.hops, links, strict=True):
            self._hops[new] = hop
            self._joined(new, link)
        history = self._bounds.replace(key, keys)
        self._cut_into_chunks(len(history))
        if self.checks is not None:
            by = [(new, hop.span) for new, hop in zip(keys, chain.hops, strict=True)]
            self.checks.replaced(key, by, [self._bounds.inputs[new] for new in keys])
        recovery = Recovery(lost, chain.hops, reason, position, time.perf_counter() - since)
        self.statistics.recoveries.append(recovery)
        self._tell(f"replaced by {chain.describe()}, {len(history) - held} positions to replay")
        before, now = lost.peer.quantization, " and ".join(chain.quantizations)
        if now != before:
            self._tell(f"quantization {now}, before {before}: the answer may differ from here on")
        self._ask_for_links()

    def _ask_for_links(self) -> None:
        if self._ring is not None:
            self._ring.ask(self._hops, self._links)

    def _tell(self, line: str) -> None:
        self._story.append(line)
        log.info("%s", line)
        if self._on_story is not None:
            self._on_story(line)
