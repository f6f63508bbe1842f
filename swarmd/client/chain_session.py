"""One generation's way through the swarm: a chain of hops that outlives each of its peers.

The replay machine (:mod:`swarmd.routing.replay`) says which hop runs which positions; this object
carries that out over connections and puts replacements in the place of hops that fail. What is
kept for it here is the input of every hop, so that only the lost span is run again.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Coroutine, Iterable, Sequence
from typing import Any

from swarmd.client.hop_link import HopLink
from swarmd.client.router import Router
from swarmd.client.session_config import Recovery, SessionConfig, SessionStatistics
from swarmd.client.spot_checks import SpotChecks
from swarmd.errors import NoRoute, OutputWithdrawn, PeerFailure, RemoteError, ReplayExhausted
from swarmd.routing.chain import Chain, Hop
from swarmd.routing.history import History
from swarmd.routing.losses import Losses, Verdict
from swarmd.routing.replay import Replay, Run
from swarmd.tasks import TaskOwner
from swarmd.wire.pool import Pool
from swarmd.wire.tensors import ITEM_BYTES, TensorMeta, choose_codec

__all__ = ["ChainSession", "Recovery", "SessionConfig", "SessionStatistics"]

log = logging.getLogger(__name__)


class ChainSession:
    """A session over all blocks. `async with session:`, then `open_links`, then steps.

    `step` cuts back to a position and appends, like every step of the protocol, so it can be
    repeated. Not for concurrent steps.
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
        self._router = router
        self._pool = pool
        self._hidden_size = hidden_size
        self._position_bytes = hidden_size * ITEM_BYTES[self.dtype]
        self._machine = Replay(
            [hop.span for hop in chain.hops], chunk_tokens=self.config.chunk_tokens
        )
        self._hops = {
            key: hop for (key, _), hop in zip(self._machine.hops, chain.hops, strict=True)
        }
        self._inputs = {key: History(self._position_bytes) for key in self._hops}
        self._links: dict[int, HopLink] = {}
        self._output = bytearray()
        self._owner = TaskOwner("chain")
        self._story: list[str] = []
        self._on_story = on_story
        self._losses = Losses(
            max_losses=self.config.max_losses,
            patience=max(self.config.busy_patience, self.config.wait),
        )
        self._lost_since: dict[int, tuple[float, str]] = {}
        self._final = History(self._position_bytes)  # only kept for spot checks
        self.checks = self._new_checks() if self.config.checks.fraction > 0 else None

    def _new_checks(self) -> SpotChecks:
        checks = SpotChecks(
            self.config.checks, self._router, self._pool, self._owner,
            arithmetic=self.chain[0].peer.arithmetic,
            hidden_size=self._hidden_size, max_length=self.max_length,
            chunk_tokens=self.config.chunk_tokens, open_timeout=self.config.open_timeout,
            tell=self._tell,
        )  # fmt: skip
        boundaries = [*self._inputs.values(), self._final]
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

    def boundaries(self, start: int, end: int) -> tuple[tuple[int, bytes], ...]:
        """The hidden states that entered each hop at positions `[start, end)` of what is complete:
        the hop's first block, and raw bytes. Raises IndexError."""
        hops = self._machine.hops
        return tuple((span.start, self._inputs[key].read(start, end)) for key, span in hops)

    async def __aenter__(self) -> ChainSession:
        await self._owner.__aenter__()
        return self

    async def __aexit__(self, *exc: object) -> None:
        try:
            await self._owner.close()
            if self.checks is not None:
                await self.checks.close()
            closing = [link.close() for link in self._links.values()]
            await asyncio.gather(*closing, return_exceptions=True)
        finally:
            for link in self._links.values():
                if exc[0] is not None:
                    link.abort()
            self._links.clear()

    async def step(self, start: int, data: bytes, tokens: int) -> bytes:
        """Run `tokens` positions from `start` on; `data` is their hidden states as raw bytes.

        Returns the hidden states after the last block, for the same positions. Survives the loss
        of any hop, and a cancel: the step may then be repeated. Raises NoRoute when blocks are
        held by nobody, ReplayExhausted when hops are lost faster than they can be replaced, the
        refusal when two peers refuse the same, ValueError when `start` lies beyond what earlier
        steps returned, and OutputWithdrawn when spot checks found a lie before `start`.
        """
        self._withdraw(start)
        if len(data) != tokens * self._position_bytes:
            raise ValueError(f"{len(data)} bytes for {tokens} positions")
        self._machine.begin(start, tokens)
        for history in self._inputs.values():
            history.cut(start)
        self._final.cut(start)
        if self.checks is not None:
            self.checks.cut(start)
        self._output.clear()
        self._inputs[self._machine.hops[0][0]].append(data)
        self._losses.begin()
        began = time.perf_counter()
        await self._carry_out(start)
        if tokens == 1:
            self.statistics.decode_steps += 1
            self.statistics.decode_seconds += time.perf_counter() - began
        return bytes(self._output)

    async def settle(self) -> None:
        """Wait for the spot checks that are under way. Raises OutputWithdrawn when one of them
        found a lie; then steps from there, and another `settle`, have to follow."""
        if self.checks is not None:
            await self.checks.settle()
        self._withdraw(self.max_length)

    def _withdraw(self, start: int) -> None:
        """Lose the hops that were proven to lie. Raises OutputWithdrawn for one before it."""
        if self.checks is None:
            return
        for key, hop in self._hops.items():
            if hop.peer.peer_id in self.checks.convicted and key not in self._machine.lost_hops:
                self._drop(key)
                self._machine.lost(key)
                self._lost_since[key] = (time.perf_counter(), "its outputs were wrong")
        lie = self.checks.lie_at
        if lie is not None and lie < start:
            raise OutputWithdrawn(lie)

    async def _carry_out(self, position: int) -> None:
        under_way: dict[asyncio.Task[None], int] = {}
        try:
            while not self._machine.complete:
                for key in self._machine.lost_hops:
                    await self._replace(key, position)
                runs = self._machine.runnable()
                if len(runs) == 1 and not under_way:
                    await self._run(runs[0])  # a decode step needs no task
                    continue
                for run in runs:
                    task = self._owner.spawn(self._run(run), name=f"hop {run.hop}", errors="log")
                    under_way[task] = run.hop
                done, _ = await asyncio.wait(under_way, return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    del under_way[task]
                    task.result()
        finally:
            for task in under_way:
                task.cancel()
            if under_way:
                await asyncio.wait(under_way)

    async def _run(self, run: Run) -> None:
        """Run positions on a hop; a failure that may be mended marks the hop as lost."""
        hop = self._hops[run.hop]
        tokens = run.end - run.start
        try:
            link = self._links.get(run.hop)
            if link is None:
                link = await self._open(run.hop, hop)
            data = self._inputs[run.hop].read(run.start, run.end)
            meta = TensorMeta(self.dtype, (1, tokens, self._hidden_size))
            output = await link.step(
                run.start,
                data,
                meta,
                codec=choose_codec(len(data), self._router.bandwidth(hop.peer)),
                deadline=self._router.deadlines.deadline(
                    hop.peer.peer_id, tokens, len(hop.span), hop.peer
                ),
            )
        except (PeerFailure, RemoteError) as error:
            self._failed(run.hop, error)
            return
        except asyncio.CancelledError:  # what the peer has cached is unknown now
            self._drop(run.hop)
            self._machine.lost(run.hop)
            raise
        self._router.observe_step(
            hop.peer,
            tokens=tokens,
            blocks=len(hop.span),
            seconds=output.seconds,
            compute_seconds=output.compute_seconds,
            queue_seconds=output.queue_seconds,
            wire_bytes=output.wire_bytes,
        )
        keep = self._machine.finished(run)
        if keep is None:
            return
        self.statistics.wire_bytes += output.wire_bytes
        if tokens == 1:
            self.statistics.compute_seconds += output.compute_seconds
            self.statistics.queue_seconds += output.queue_seconds
        self.statistics.replayed_positions += keep.start - run.start
        if keep.start < keep.end:
            offset = (keep.start - run.start) * self._position_bytes
            new = memoryview(output.data)[offset:]
            if keep.after is None:
                self._output += new
                if self.checks is not None:
                    self._final.append(new)
            else:
                self._inputs[keep.after].append(new)
            if self.checks is not None:
                self.checks.produced(run.hop, keep.start, keep.end, hop.peer.peer_id)

    async def _open(self, key: int, hop: Hop) -> HopLink:
        link = await self._dial(hop)
        if self._hops.get(key) is not hop:  # replaced meanwhile
            link.abort()
            raise PeerFailure(f"{hop} was replaced meanwhile", peer=hop.peer.peer_id)
        self._links[key] = link
        return link

    def _drop(self, key: int) -> None:
        link = self._links.pop(key, None)
        if link is not None:
            link.abort()

    def _failed(self, key: int, error: PeerFailure | RemoteError) -> None:
        """A hop failed: mark it as lost, and remember why. Raises what ends the session."""
        self._drop(key)
        hop = self._hops.get(key)
        if hop is None or not self._machine.lost(key):
            return
        self._lost_since[key] = (time.perf_counter(), str(error))
        self._tell(f"{hop} lost: {error}")
        self._count(hop, error)

    def _count(self, hop: Hop, error: PeerFailure | RemoteError) -> None:
        """One more failure in this step. Raises ReplayExhausted, or what two peers agree on."""
        self._router.observe_failure(hop.peer, error)
        verdict = self._losses.failed(hop.peer.peer_id, error, self._router.clock.monotonic())
        if verdict is Verdict.BELIEVE:
            raise error
        if verdict is not Verdict.GO_ON:
            raise ReplayExhausted(f"gave up: {verdict.value}:", story=self._story) from error

    async def _replace(self, key: int, position: int) -> None:
        """Find and open replacements for a lost hop. Raises NoRoute, ReplayExhausted."""
        lost = self._hops[key]
        since, reason = self._lost_since.pop(key, (time.perf_counter(), "the step was cancelled"))
        while True:
            chain = await self._find_replacement(lost)
            try:
                links = await self._open_all(chain.hops)
            except _OpeningFailed as failure:
                self._tell(f"{failure.hop} did not open: {failure.error}")
                self._count(failure.hop, failure.error)
                continue
            break
        history = self._inputs.pop(key)
        del self._hops[key]
        keys = self._machine.replace(key, [hop.span for hop in chain.hops])
        for new, hop, link in zip(keys, chain.hops, links, strict=True):
            self._hops[new] = hop
            self._links[new] = link
            self._inputs[new] = History(self._position_bytes)
        self._inputs[keys[0]] = history
        if self.checks is not None:
            by = [(new, hop.span) for new, hop in zip(keys, chain.hops, strict=True)]
            self.checks.replaced(key, by, [self._inputs[new] for new in keys])
        recovery = Recovery(lost, chain.hops, reason, position, time.perf_counter() - since)
        self.statistics.recoveries.append(recovery)
        self._tell(f"replaced by {chain.describe()}, {len(history)} positions to replay")
        before, now = lost.peer.quantization, " and ".join(chain.quantizations)
        if now != before:
            self._tell(f"quantization {now}, before {before}: the answer may differ from here on")

    async def _find_replacement(self, lost: Hop) -> Chain:
        def tell_waiting(error: NoRoute) -> None:
            self._tell(f"waiting up to {self.config.wait:g} s: {error}")

        try:
            chain = await self._router.choose_fresh(
                lost.span,
                arithmetic=lost.peer.arithmetic,
                kv_needed=self.max_length,
                without=lambda: self._losses.left_out(self._router.clock.monotonic()),
                spent=self._losses.spent,
                urgent=True,
                wait=self.config.wait,
                mixing=self.checks is None,
                on_waiting=tell_waiting,
            )
        except NoRoute as error:
            if self._losses.refusal is not None:  # the blocks are there; this is the reason
                raise self._losses.refusal from error
            raise
        self._losses.spend(self._router.banned(chain))
        pause = self._router.pause_before(chain)
        if pause > 0:  # nobody else holds these blocks: come back when the peer said
            self._tell(f"{chain.describe()} is busy; trying again in {pause:.1f} s")
            await asyncio.sleep(pause)
        return chain

    async def open_links(self) -> None:
        """Connect to all hops at once, before the first step. A hop that fails is replaced."""
        hops = list(self._hops.items())
        self._losses.begin()

        async def open_one(key: int, hop: Hop) -> None:
            try:
                await self._open(key, hop)
            except (PeerFailure, RemoteError) as error:
                self._failed(key, error)

        await _all(open_one(key, hop) for key, hop in hops)
        for key in self._machine.lost_hops:
            await self._replace(key, 0)

    async def _dial(self, hop: Hop) -> HopLink:
        return await HopLink.open(
            hop.peer,
            hop.span,
            self._pool,
            max_length=self.max_length,
            timeout=self.config.open_timeout,
        )

    async def _open_all(self, hops: Sequence[Hop]) -> list[HopLink]:
        """Links to all of `hops`, or to none. Raises _OpeningFailed."""
        opened: dict[int, HopLink] = {}

        async def dial(index: int, hop: Hop) -> None:
            try:
                opened[index] = await self._dial(hop)
            except (PeerFailure, RemoteError) as error:
                raise _OpeningFailed(hop, error) from error

        try:
            await _all(dial(index, hop) for index, hop in enumerate(hops))
        except BaseException:
            for link in opened.values():
                link.abort()
            raise
        return [opened[index] for index in range(len(hops))]

    def _tell(self, line: str) -> None:
        self._story.append(line)
        log.info("%s", line)
        if self._on_story is not None:
            self._on_story(line)


async def _all(works: Iterable[Coroutine[Any, Any, None]]) -> None:
    """Run all to their end; then raise the first error."""
    for result in await asyncio.gather(*works, return_exceptions=True):
        if isinstance(result, BaseException):
            raise result


class _OpeningFailed(Exception):
    def __init__(self, hop: Hop, error: PeerFailure | RemoteError) -> None:
        super().__init__(str(error))
        self.hop = hop
        self.error = error
