"""What a client knows of the swarm: the view, its own measurements, bans; and the choice of chains.

The pure parts decide (:mod:`swarmd.routing`); this object feeds them with what was seen.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from swarmd.blocks import Span
from swarmd.clock import Clock, SystemClock
from swarmd.errors import NoRoute, PeerFailure, RemoteError
from swarmd.identity import PeerId
from swarmd.peers import ModelId, PeerInfo
from swarmd.routing.chain import Chain
from swarmd.routing.cost import CostModel, Costs, Measurements
from swarmd.routing.dijkstra import best_chain, find_chain
from swarmd.routing.health import Deadlines, Health, RttTable
from swarmd.routing.probe import probe_rtts
from swarmd.routing.view import View

__all__ = ["Router", "RouterConfig"]

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class RouterConfig:
    """Times in seconds."""

    refresh_after: float = 60.0
    """A view older than this is fetched anew before a chain is chosen."""
    refresh_at_most_every: float = 2.0
    """A burst of failures costs one fetch."""
    probe_peers: int = 64
    """How many peers without a measured RTT are pinged after a fetch."""
    busy_pause: float = 2.0
    """How long a peer is left alone that is Busy and gives no retry-after."""
    longest_pause: float = 5.0
    """A peer cannot make a session wait longer than this at a time."""


class Router:
    """Chains for one model. `fetch` reads the announcements; `ping` measures one peer's RTT."""

    def __init__(
        self,
        fetch: Callable[[], Awaitable[Sequence[PeerInfo]]],
        ping: Callable[[PeerInfo], Awaitable[float]],
        *,
        model_id: ModelId,
        model_name: str,
        n_blocks: int,
        bytes_per_token: int,
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
        self._fetch = fetch
        self._ping = ping
        self._rng = rng or random.Random()
        self._cost_model = CostModel(bytes_per_token=bytes_per_token)
        self._bandwidth: dict[PeerId, float] = {}
        self._step_us: dict[PeerId, float] = {}
        self._fetched_at: float | None = None

    async def refresh(self, *, force: bool = False) -> None:
        """Fetch the announcements if they are old (`force`: unless they are very fresh), and
        measure the RTT to peers that are new. A peer that does not answer is banned."""
        now = self.clock.monotonic()
        limit = self.config.refresh_at_most_every if force else self.config.refresh_after
        if self._fetched_at is not None and now - self._fetched_at < limit:
            return
        self._fetched_at = now
        peers = await self._fetch()
        self.view = View.of(
            peers,
            self.view.n_blocks,
            model_id=self.view.model_id,
            model_name=self.view.model_name,
        )
        banned = self.health.banned(now)
        unknown = [
            peer
            for peer in self.view.routable
            if self.rtts.get(peer.peer_id) is None and peer.peer_id not in banned
        ]
        self._rng.shuffle(unknown)
        measured = await probe_rtts(unknown[: self.config.probe_peers], self._ping)
        for peer_id, seconds in measured.items():
            if seconds is None:
                self.health.failed(peer_id, self.clock.monotonic())
                log.info("peer %s does not answer; left out for now", peer_id.short)
            else:
                self.rtts.observe(peer_id, seconds)

    def choose(
        self,
        span: Span | None = None,
        *,
        dtype: str | None = None,
        kv_needed: int = 0,
    ) -> Chain:
        """The cheapest chain over `span` (default: all blocks) of peers that compute in `dtype`
        (default: the dtype that is cheapest). Raises NoRoute."""
        now = self.clock.monotonic()
        span = span or Span(0, self.view.n_blocks)
        choose = best_chain if dtype is None else find_chain
        return choose(
            self.view if dtype is None else self.view.with_dtype(dtype),
            Costs(self._cost_model, self._measurements()),
            start=span.start,
            end=span.end,
            banned=self.health.banned(now),
            avoid=self.health.avoid(now),
            kv_needed=kv_needed,
            rng=self._rng,
            wall=self.clock.wall(),
        )

    async def choose_fresh(
        self,
        span: Span | None = None,
        *,
        dtype: str | None = None,
        kv_needed: int = 0,
        wait: float = 0.0,
        on_waiting: Callable[[NoRoute], None] | None = None,
    ) -> Chain:
        """`choose`; where there is no chain, look again, for up to `wait` seconds more.

        At least one fetch is made before NoRoute is raised.
        """
        give_up = self.clock.monotonic() + wait
        told = False
        await self.refresh()
        while True:
            try:
                return self.choose(span, dtype=dtype, kv_needed=kv_needed)
            except NoRoute:
                await self.refresh(force=True)
            try:
                return self.choose(span, dtype=dtype, kv_needed=kv_needed)
            except NoRoute as error:
                if self.clock.monotonic() >= give_up:
                    raise
                if on_waiting is not None and not told:
                    on_waiting(error)
                    told = True
            await asyncio.sleep(0.5)

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
    ) -> None:
        """A step succeeded: the peer is healthy, and this is how fast it and its link are."""
        self.health.succeeded(peer.peer_id)
        self.deadlines.observe(peer.peer_id, tokens, blocks, seconds)
        link = max(0.0, seconds - compute_seconds - queue_seconds)
        if tokens == 1:
            self._step_us[peer.peer_id] = _smoothed(
                self._step_us.get(peer.peer_id), 1e6 * compute_seconds / blocks
            )
            self.rtts.observe(peer.peer_id, link)
        elif wire_bytes > 1 << 18:
            transfer = link - (self.rtts.get(peer.peer_id) or 0.0)
            if transfer > 0:
                self._bandwidth[peer.peer_id] = _smoothed(
                    self._bandwidth.get(peer.peer_id), wire_bytes / transfer
                )

    def observe_failure(self, peer: PeerInfo, error: PeerFailure | RemoteError) -> None:
        """A peer failed or refused. Only what blames the peer bans it."""
        now = self.clock.monotonic()
        if error.blames_peer:
            self.health.failed(peer.peer_id, now)
            self.deadlines.timed_out(peer.peer_id)
        else:
            retry_after = error.retry_after if isinstance(error, RemoteError) else None
            pause = self.config.busy_pause if retry_after is None else retry_after
            self.health.busy(peer.peer_id, now + pause)

    def pause_before(self, chain: Chain) -> float:
        """Seconds until the peers of `chain` that asked to be left alone may be asked again."""
        now = self.clock.monotonic()
        if not self.health.avoid(now).intersection(chain.peer_ids):
            return 0.0
        release = self.health.next_release(now)
        return min(self.config.longest_pause, 0.0 if release is None else release - now)

    def bandwidth(self, peer: PeerInfo) -> float:
        """Bytes per second to a peer: measured, or a default (memory speed on this machine)."""
        default = 1e9 if peer.address.is_loopback else self._cost_model.default_bandwidth
        return self._bandwidth.get(peer.peer_id, default)

    def _measurements(self) -> Measurements:
        return Measurements(
            client_rtt=self.rtts.snapshot(),
            bandwidth=dict(self._bandwidth),
            step_us=dict(self._step_us),
        )


def _smoothed(known: float | None, sample: float, weight: float = 0.2) -> float:
    return sample if known is None else known + weight * (sample - known)
