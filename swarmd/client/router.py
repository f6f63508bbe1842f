"""What a client knows of the swarm: the view, its own measurements, bans; and the choice of chains.

The pure parts decide (:mod:`swarmd.routing`); this object feeds them with what was seen.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import random
from collections.abc import Awaitable, Callable, Sequence, Set
from dataclasses import dataclass, replace

from swarmd.blocks import Span
from swarmd.clock import Clock, SystemClock
from swarmd.errors import (
    DeadlineExceeded,
    DhtError,
    NoRoute,
    PeerFailure,
    RemoteError,
    UnknownSession,
)
from swarmd.identity import PeerId
from swarmd.peers import QUANTIZATIONS, Arithmetic, ModelId, PeerInfo
from swarmd.routing.candidates import Candidate, candidates
from swarmd.routing.chain import Chain, Hop
from swarmd.routing.cost import CostModel, Costs, Measurements, Mode
from swarmd.routing.dijkstra import best_chain, find_chain
from swarmd.routing.edges import Edges, Route
from swarmd.routing.health import Deadlines, Health, RttTable
from swarmd.routing.probe import probe_rtts
from swarmd.routing.query import NOBODY, Between, RouteQuery, mixings
from swarmd.routing.view import View

__all__ = ["Router", "RouterConfig"]

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class RouterConfig:
    """Times in seconds."""

    refresh_after: float = 60.0
    """A view older than this is fetched anew before a chain is chosen."""
    refresh_at_most_every: float = 2.0
    """While a session waits for somebody to serve blocks that nobody holds."""
    urgent_refresh: float = 1.0
    """At most so long for that fetch while a token waits; then the old view must do."""
    probe_peers: int = 64
    """How many peers without a measured RTT are pinged after a fetch."""
    busy_pause: float = 2.0
    """How long a peer is left alone that is Busy and gives no retry-after."""
    shortest_pause: float = 0.1
    """A peer cannot make a session ask in a tight loop."""
    longest_pause: float = 5.0
    """A peer cannot make a session wait longer than this at a time."""


class Router:
    """Chains for one model. `fetch` reads the announcements; `ping` measures one peer's RTT.

    `quantization` is one of CHAIN_QUANTIZATIONS in :mod:`swarmd.routing.query`. `route`: whether
    hops forward to one another: where that is cheaper (`auto`), wherever they can, or not at all.
    """

    def __init__(
        self,
        fetch: Callable[[], Awaitable[Sequence[PeerInfo]]],
        ping: Callable[[PeerInfo], Awaitable[float]],
        *,
        model_id: ModelId,
        model_name: str,
        n_blocks: int,
        bytes_per_token: int,
        quantization: str = "auto",
        route: Route = "auto",
        config: RouterConfig | None = None,
        clock: Clock | None = None,
        rng: random.Random | None = None,
    ) -> None:
        self.config = config or RouterConfig()
        self.clock = clock or SystemClock()
        self.health = Health()
        self.deadlines = Deadlines()
        self.rtts = RttTable()
        self.view = View.of((), n_blocks, model_id=model_id, model_name=model_name)
        self.quantization = quantization
        self.route = route
        self.edges = Edges()
        self._fetch = fetch
        self._ping = ping
        self._rng = rng or random.Random()
        self._cost_model = CostModel(bytes_per_token=bytes_per_token)
        self._bandwidth: dict[PeerId, float] = {}
        self._step_us: dict[PeerId, float] = {}
        self._prefill_us: dict[PeerId, float] = {}
        self._fetched_at: float | None = None
        self._fetching = asyncio.Lock()
        self.moving = asyncio.Lock()
        """Held by the session that moves to another chain: one at a time, so that the others see
        by its steps what the new chain is worth, and do not all run there."""
        self._failed_sequence: dict[PeerId, int] = {}

    async def refresh(self, *, newer_than: float | None = None, probe: bool = True) -> None:
        """Fetch the announcements if what is known is old, and measure the RTT to new peers.

        `newer_than`: fetch unless a fetch began at or after that time (monotonic seconds;
        default: `refresh_after` seconds ago). Who asks while a fetch is under way waits for it.
        """
        if newer_than is None:
            newer_than = self.clock.monotonic() - self.config.refresh_after
        async with self._fetching:
            if self._fetched_at is not None and self._fetched_at >= newer_than:
                return
            began = self.clock.monotonic()
            peers = await self._fetch()
            self._fetched_at = began
            self.view = self.view.renewed(peers, self.clock.wall())
        if probe:
            await self._probe_new()

    async def _probe_new(self) -> None:
        banned = self.health.banned(self.clock.monotonic())
        unknown = [
            peer
            for peer in self.view.routable
            if self.rtts.get(peer.peer_id) is None and peer.peer_id not in banned
        ]
        self._rng.shuffle(unknown)
        await self.probe(unknown[: self.config.probe_peers])

    async def probe(self, peers: Sequence[PeerInfo]) -> None:
        """Measure the RTT to peers, which leaves a connection to each in the pool."""
        by_id = {peer.peer_id: peer for peer in peers}
        for peer_id, result in (await probe_rtts(peers, self._ping)).items():
            if isinstance(result, float):
                self.rtts.observe(peer_id, result)
            else:
                self.observe_failure(by_id[peer_id], result)
                log.info("peer %s does not answer a ping: %s", peer_id.short, result)

    def choose(
        self,
        span: Span | None = None,
        *,
        arithmetic: Arithmetic | None = None,
        mixed: bool | None = None,
        kv_needed: int = 0,
        without: Set[PeerId] = frozenset(),
        pardoned: Set[PeerId] = frozenset(),
        jitter: bool = True,
        between: Between = NOBODY,
    ) -> Chain:
        """The cheapest chain over `span` (default: all blocks) of peers that compute in
        `arithmetic` (default: the one that is cheapest); if `mixed`, in its dtype and with any
        quantization (default: what this router's `quantization` prefers). With `jitter` clients
        spread over chains that cost nearly the same. Part of a chain is priced `between` the hops
        before and after it.

        Never takes peers of `without`; takes banned ones only if they are `pardoned`. Raises
        NoRoute.
        """
        query = self._query(span or Span(0, self.view.n_blocks), kv_needed)
        rng = self._rng if jitter else None
        query = replace(
            query,
            banned=(query.banned - pardoned) | without,
            rng=rng,
            previous=between.previous,
            next=between.next,
        )
        return self._search(query, arithmetic, mixed)

    def candidates(
        self, *, tokens: int = 1, kv_needed: int = 0, mixed: bool | None = None
    ) -> list[Candidate]:
        """The chain over all blocks that is best for `tokens` positions at a time, without jitter,
        and those that it is chosen over. Raises NoRoute."""
        query = replace(self._query(Span(0, self.view.n_blocks), kv_needed), tokens=tokens)
        return candidates(lambda one: self._search(one, None, mixed), self.costs, query)

    @property
    def mode(self) -> Mode:
        """How chains are priced."""
        return "hub" if self.route == "hub" else "ring"

    @property
    def costs(self) -> Costs:
        """Prices by what was measured so far."""
        return Costs(self._cost_model, self._measurements())

    def _query(self, span: Span, kv_needed: int) -> RouteQuery:
        now = self.clock.monotonic()
        return RouteQuery(
            start=span.start,
            end=span.end,
            banned=self.health.banned(now),
            avoid=self.health.avoid(now),
            kv_needed=kv_needed,
            wall=self.clock.wall(),
            mode=self.mode,
        )

    def _search(
        self, query: RouteQuery, arithmetic: Arithmetic | None, mixed: bool | None
    ) -> Chain:
        mixed = mixings(self.quantization)[0] if mixed is None else mixed
        costs, view = self.costs, self.view
        if self.quantization in QUANTIZATIONS:
            view = view.with_quantization(self.quantization)
        try:
            if arithmetic is None:
                return best_chain(view, costs, query, mixed=mixed)
            if mixed:
                return find_chain(view.with_dtype(arithmetic.dtype), costs, query)
            return find_chain(view.with_arithmetic(arithmetic), costs, query)
        except NoRoute as error:
            others = len(self.view.routable) - len(view.routable)
            if not others:
                raise
            raise NoRoute(
                f"{error}; --quantization {self.quantization} leaves out {others} live "
                f"peer{'' if others == 1 else 's'} with other weights",
                missing=error.missing,
            ) from error

    async def choose_fresh(
        self,
        span: Span | None = None,
        *,
        arithmetic: Arithmetic | None = None,
        kv_needed: int = 0,
        without: Callable[[], Set[PeerId]] = frozenset,
        spent: Callable[[], Set[PeerId]] = frozenset,
        urgent: bool = False,
        wait: float = 0.0,
        mixing: bool = True,
        between: Between = NOBODY,
        on_waiting: Callable[[NoRoute], None] | None = None,
    ) -> Chain:
        """`choose`; where there is no chain, look again, for up to `wait` seconds more.

        A chain that mixes quantizations is taken, if it may be at all (`mixing`, and the router's
        `quantization`), where there is none of one, not even after the pardon.
        NoRoute is raised only after a fetch that began with this call, and after each banned
        peer was pardoned once: a ban is a guess, and worth nothing where nobody else is left.
        `spent` are those that had their pardon; one that announced itself anew since it failed
        has it again. `urgent`: a token waits for it, so spend little time on a fresh view.
        """
        asked = self.clock.monotonic()
        give_up = asked + wait
        told = False
        ways = mixings(self.quantization) if mixing else (False,)

        def choose(mixed: bool = ways[0], pardoned: Set[PeerId] = frozenset()) -> Chain:
            return self.choose(
                span,
                arithmetic=arithmetic,
                mixed=mixed,
                kv_needed=kv_needed,
                without=without(),
                pardoned=pardoned,
                between=between,
            )

        if urgent:
            with contextlib.suppress(TimeoutError, DhtError):
                async with asyncio.timeout(self.config.urgent_refresh):
                    await self.refresh(probe=False)
        else:
            await self.refresh()
        while True:
            with contextlib.suppress(NoRoute):
                return choose()
            await self._refresh_if_possible(
                max(asked, self.clock.monotonic() - self.config.refresh_at_most_every)
            )
            *rather, last = itertools.product(ways, (frozenset(), self._pardoned(spent())))
            for mixed, pardoned in rather:
                with contextlib.suppress(NoRoute):
                    return choose(mixed=mixed, pardoned=pardoned)
            try:
                return choose(mixed=last[0], pardoned=last[1])
            except NoRoute as error:
                if self.clock.monotonic() >= give_up:
                    raise
                if on_waiting is not None and not told:
                    on_waiting(error)
                    told = True
            await asyncio.sleep(0.5)

    async def _refresh_if_possible(self, newer_than: float) -> None:
        try:
            await self.refresh(newer_than=newer_than, probe=False)
        except DhtError as error:
            log.warning("the announcements cannot be read now: %s", error)

    def _pardoned(self, spent: Set[PeerId]) -> frozenset[PeerId]:
        """The banned peers that may be tried all the same."""
        banned = self.health.banned(self.clock.monotonic())
        return frozenset(
            peer.peer_id
            for peer in self.view.routable
            if peer.peer_id in banned
            and not self.health.is_convicted(peer.peer_id)
            and (
                peer.peer_id not in spent
                or peer.sequence > self._failed_sequence.get(peer.peer_id, peer.sequence)
            )
        )

    async def second_opinions(
        self, span: Span, arithmetic: Arithmetic, without: Set[PeerId]
    ) -> tuple[PeerInfo, ...]:
        """Peers that can run all of `span` in `arithmetic`, in random order, so that nobody can
        make itself the one that is asked; those that asked for a pause come last."""
        now = self.clock.monotonic()
        await self._refresh_if_possible(now - self.config.refresh_after)
        out, avoid = self.health.banned(now) | without, self.health.avoid(now)
        found = [
            peer
            for peer in self.view.routable
            if peer.span.covers(span) and peer.arithmetic == arithmetic and peer.peer_id not in out
        ]
        self._rng.shuffle(found)
        return tuple(sorted(found, key=lambda peer: peer.peer_id in avoid))

    def convict(self, peer_id: PeerId) -> None:
        """The peer was proven to give wrong outputs: no success and no pardon lifts its ban."""
        self.health.convict(peer_id)

    def banned(self, chain: Chain) -> frozenset[PeerId]:
        """The peers of a chain that are banned, and in it by pardon."""
        return self.health.banned(self.clock.monotonic()) & set(chain.peer_ids)

    # ---- what a session reports --------------------------------------------------------------

    def observe_step(
        self,
        peer: PeerInfo,
        *,
        tokens: int,
        blocks: int,
        seconds: float,
        compute_seconds: float,
        queue_seconds: float,
        wire_bytes: int,
        source: PeerInfo | None = None,
    ) -> None:
        """A step succeeded: the peer is healthy, and this is how fast it and its link are.

        Of one that `source` fed to it, `seconds` are from the coming of that one's answer to this
        one's: they say nothing of the link.
        """
        self.health.succeeded(peer.peer_id)
        self.deadlines.observe(peer.peer_id, tokens, blocks, seconds)
        # The shares are the peer's claim, their sum is our clock's: what it calls waiting is priced
        # as its work, and what it leaves out as its link, so that no claim hides any time.
        busy = min(seconds, compute_seconds + queue_seconds)
        if source is not None:
            busy = max(busy, seconds - self._fed_way(source, peer))
        link = seconds - busy
        if tokens == 1:
            self._step_us[peer.peer_id] = _smoothed(
                self._step_us.get(peer.peer_id), 1e6 * busy / blocks
            )
            if source is None:
                self.rtts.observe(peer.peer_id, link)
            return
        rtt = self.rtts.get(peer.peer_id) or 0.0
        if source is None and wire_bytes > 1 << 18 and link > rtt:
            self._bandwidth[peer.peer_id] = _smoothed(
                self._bandwidth.get(peer.peer_id), wire_bytes / (link - rtt)
            )
        rest = max(0.0, seconds - rtt - wire_bytes / self.bandwidth(peer))
        rest = rest if source is None else busy
        self._prefill_us[peer.peer_id] = _smoothed(
            self._prefill_us.get(peer.peer_id), 1e6 * rest / (tokens * blocks)
        )

    def observe_failure(self, peer: PeerInfo, error: PeerFailure | RemoteError) -> None:
        """A peer failed or refused. Only what blames the peer bans it."""
        now = self.clock.monotonic()
        if error.blames_peer:
            self.health.failed(peer.peer_id, now)
            still = self.health.banned(now)
            self._failed_sequence = {
                peer_id: sequence
                for peer_id, sequence in self._failed_sequence.items()
                if peer_id in still
            } | {peer.peer_id: peer.sequence}
        elif error.transient:
            asked_for = error.retry_after if isinstance(error, RemoteError) else None
            pause = asked_for or self.config.busy_pause
            if isinstance(error, UnknownSession):  # all that it takes is to open another one
                pause = 0.0
            self.health.busy(peer.peer_id, now + max(pause, self.config.shortest_pause))
        if error.blames_peer or isinstance(error, DeadlineExceeded):
            self.deadlines.timed_out(peer.peer_id)

    def _fed_way(self, source: PeerInfo, peer: PeerInfo) -> float:
        """Seconds by which an answer of `peer` comes later than the one of `source` that fed it,
        apart from what the peer does."""
        edge = self.costs.edge_rtt(source, peer.peer_id) or 0.0
        ways = [self.rtts.get(one.peer_id) or 0.0 for one in (peer, source)]
        return max(0.0, edge + ways[0] - ways[1]) / 2

    def observe_edge(self, source: PeerInfo, target: PeerInfo, seconds: float) -> None:
        """A link from hop to hop was made; `source` says that a round trip takes so long."""
        self.edges.measured(source.peer_id, target.peer_id, seconds)

    def edge_failed(self, source: PeerInfo, target: PeerInfo) -> None:
        """A link from hop to hop could not be made, or broke: nobody is blamed."""
        self.edges.failed(source.peer_id, target.peer_id, self.clock.monotonic())

    def wants_edge(self, source: PeerInfo, target: PeerInfo) -> bool:
        """Whether a link between these hops should be tried, or used."""
        if self.route == "hub" or self.edges.is_bad(
            source.peer_id, target.peer_id, self.clock.monotonic()
        ):
            return False
        return self.route == "ring" or self.costs.forwards(source, target.peer_id)

    def step_seconds(self, hop: Hop) -> float:
        """Seconds that one token takes at a hop, link included: measured over the last steps, or
        as announced where nothing is."""
        peer = hop.peer.peer_id
        block_us = self._step_us.get(peer, float(hop.peer.decode_us))
        return (self.rtts.get(peer) or 0.0) + 1e-6 * block_us * len(hop.span)

    def pause_before(self, chain: Chain) -> float:
        """Seconds until all peers of `chain` that asked to be left alone may be asked again."""
        pause = self.health.pause_left(chain.peer_ids, self.clock.monotonic())
        return min(self.config.longest_pause, pause)

    def bandwidth(self, peer: PeerInfo) -> float:
        """Bytes per second to a peer: measured, or a default (memory speed on this machine)."""
        default = 1e9 if peer.address.is_loopback else self._cost_model.default_bandwidth
        return self._bandwidth.get(peer.peer_id, default)

    def _measurements(self) -> Measurements:
        return Measurements(
            client_rtt=self.rtts.snapshot(),
            bandwidth=dict(self._bandwidth),
            step_us=dict(self._step_us),
            prefill_us=dict(self._prefill_us),
            edge_rtt=self.edges.rtts(self.clock.monotonic()),
        )


def _smoothed(known: float | None, sample: float, weight: float = 0.2) -> float:
    return sample if known is None else known + weight * (sample - known)
