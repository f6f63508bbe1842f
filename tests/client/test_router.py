"""What a client believes of the swarm, when it looks again, and whom it tries all the same."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import pytest

from swarmd.blocks import Span
from swarmd.client.router import Router, RouterConfig
from swarmd.errors import (
    Busy,
    ConnectionLost,
    DeadlineExceeded,
    DhtError,
    NoRoute,
    PeerFailure,
    RemoteError,
    UnknownSession,
)
from swarmd.identity import PeerId
from swarmd.peers import Address, ModelId, PeerInfo, PeerState
from swarmd.routing.cost import CostModel, Costs
from swarmd.routing.query import Between
from tests.conftest import Runner

MODEL = ModelId(b"m" * 16)


def peer(number: int, start: int = 0, end: int = 4, *, sequence: int = 1) -> PeerInfo:
    return PeerInfo(
        peer_id=PeerId(number.to_bytes(20, "big")),
        address=Address("127.0.0.1", 1000 + number),
        model_id=MODEL,
        model_name="m",
        n_blocks=4,
        span=Span(start, end),
        state=PeerState.ONLINE,
        decode_us=1000,
        prefill_us=100,
        kv_free=1000,
        dtype="float32",
        sequence=sequence,
    )


@dataclass
class Swarm:
    """What the DHT says now, what pings find, and a clock that stands still unless it is moved."""

    peers: Sequence[PeerInfo] = ()
    pings: dict[PeerId, PeerFailure | RemoteError] = field(default_factory=dict)
    fetches: int = 0
    now: float = 1000.0
    dht_fails: bool = False
    fetch_seconds: float = 0.0

    def monotonic(self) -> float:
        return self.now

    def wall(self) -> float:
        return self.now

    async def fetch(self) -> Sequence[PeerInfo]:
        self.fetches += 1
        await asyncio.sleep(self.fetch_seconds)
        if self.dht_fails:
            raise DhtError("no answer")
        return self.peers

    async def ping(self, peer: PeerInfo) -> float:
        if peer.peer_id in self.pings:
            raise self.pings[peer.peer_id]
        return 0.001

    def router(self, config: RouterConfig | None = None) -> Router:
        return Router(
            self.fetch,
            self.ping,
            model_id=MODEL,
            model_name="m",
            n_blocks=4,
            bytes_per_token=4,
            clock=self,
            rng=random.Random(1),
            config=config,
        )


def test_a_replacement_is_looked_for_in_the_present_view_first(run_async: Runner) -> None:
    async def work() -> None:
        swarm = Swarm([peer(1), peer(2)])
        router = swarm.router()
        chain = await router.choose_fresh()
        router.observe_failure(chain.hops[0].peer, ConnectionLost("gone"))
        other = await router.choose_fresh(urgent=True)
        assert other.peer_ids != chain.peer_ids
        assert swarm.fetches == 1

    run_async(work())


def test_a_replacement_in_a_ring_is_near_those_before_and_after_it(run_async: Runner) -> None:
    """Two spares are alike for the client; one of them is a neighbour of the hops that are left."""
    before, near, far, after = peer(1, 0, 2), peer(3, 2, 3), peer(2, 2, 3), peer(4, 3, 4)
    before = replace(before, rtts={near.peer_id: 0.002, far.peer_id: 0.3})
    near, far = (
        replace(one, rtts={after.peer_id: seconds}) for one, seconds in ((near, 0.002), (far, 0.3))
    )
    swarm = Swarm([before, near, far, after])

    async def work() -> None:
        router = swarm.router()
        await router.refresh(probe=False)
        for one in swarm.peers:
            router.rtts.observe(one.peer_id, 0.1)
        alone = router.choose(Span(2, 3), jitter=False)
        between = Between(before.peer_id, after.peer_id)
        found = router.choose(Span(2, 3), jitter=False, between=between)
        assert [chain.hops[0].peer for chain in (alone, found)] == [far, near]
        lost = Between(PeerId(bytes(20)), None)  # who is gone is no neighbour
        assert router.choose(Span(2, 3), jitter=False, between=lost).cost == alone.cost

    run_async(work())


def test_no_route_is_never_said_of_an_old_view(run_async: Runner) -> None:
    """The spare was announced after the last fetch, a moment ago."""

    async def work() -> None:
        swarm = Swarm([peer(1)])
        router = swarm.router()
        (hop,) = (await router.choose_fresh()).hops
        router.observe_failure(hop.peer, ConnectionLost("gone"))
        swarm.now += 0.001
        swarm.peers = [peer(1), peer(2)]
        (other,) = (await router.choose_fresh(urgent=True)).hops
        assert other.peer.peer_id == peer(2).peer_id
        assert swarm.fetches == 2

    run_async(work())


def test_the_only_holder_is_tried_once_more_although_it_is_banned(run_async: Runner) -> None:
    async def work() -> None:
        swarm = Swarm([peer(1, 0, 2), peer(2, 2, 4)])
        router = swarm.router()
        await router.refresh()
        router.observe_failure(peer(2, 2, 4), ConnectionLost("reset"))
        chain = await router.choose_fresh(Span(2, 4), urgent=True)
        assert router.banned(chain) == {peer(2).peer_id}
        with pytest.raises(NoRoute, match=r"2:4.*1 banned"):
            await router.choose_fresh(Span(2, 4), spent=lambda: router.banned(chain))
        swarm.peers = [peer(1, 0, 2), peer(2, 2, 4, sequence=2)]  # it lives: it announced again
        swarm.now += 1
        assert await router.choose_fresh(Span(2, 4), spent=lambda: router.banned(chain))

    run_async(work())


def test_who_is_left_out_is_not_taken_by_pardon(run_async: Runner) -> None:
    async def work() -> None:
        router = Swarm([peer(1)]).router()
        with pytest.raises(NoRoute):
            await router.choose_fresh(without=lambda: {peer(1).peer_id})

    run_async(work())


def test_who_is_busy_at_a_ping_is_not_banned(run_async: Runner) -> None:
    async def work() -> None:
        swarm = Swarm([peer(1), peer(2)])
        swarm.pings = {
            peer(1).peer_id: Busy("too many connections", retry_after=9.0),
            peer(2).peer_id: ConnectionLost("gone"),
        }
        router = swarm.router()
        await router.refresh()
        assert router.health.banned(swarm.now) == {peer(2).peer_id}
        assert router.health.avoid(swarm.now + 8.9) == {peer(1).peer_id}

    run_async(work())


@pytest.mark.parametrize(
    ("error", "pause"),
    [
        (Busy("full", retry_after=3.0), 3.0),
        (Busy("full", retry_after=0.0), 2.0),
        (Busy("full", retry_after=1e-9), 0.1),
        (Busy("full", retry_after=1e9), 5.0),
        (Busy("full"), 2.0),
        (DeadlineExceeded("late"), 2.0),
        (UnknownSession("?"), 0.1),
    ],
)
def test_how_long_a_peer_without_room_is_left_alone(
    error: RemoteError, pause: float, run_async: Runner
) -> None:
    async def work() -> None:
        swarm = Swarm([peer(1, 0, 2), peer(2, 2, 4)])
        router = swarm.router()
        chain = await router.choose_fresh()
        assert router.pause_before(chain) == 0.0
        router.observe_failure(chain.hops[1].peer, error)
        assert router.pause_before(chain) == pytest.approx(pause)
        assert not router.banned(chain)
        late = router.deadlines.deadline(peer(2).peer_id, 1, 2, peer(2, 2, 4))
        assert late == pytest.approx(3.016 * (2 if isinstance(error, DeadlineExceeded) else 1))

    run_async(work())


def test_a_fetch_that_fails_is_not_taken_for_news(run_async: Runner) -> None:
    async def work() -> None:
        swarm = Swarm([peer(1)], dht_fails=True)
        router = swarm.router()
        with pytest.raises(DhtError):
            await router.choose_fresh()
        swarm.dht_fails = False
        assert await router.choose_fresh()
        assert swarm.fetches == 2
        swarm.dht_fails, swarm.now = True, swarm.now + 120
        assert await router.choose_fresh(urgent=True), "an old view is better than none"

    run_async(work())


def test_those_who_ask_at_once_share_a_fetch(run_async: Runner) -> None:
    async def work() -> None:
        swarm = Swarm([peer(1)], fetch_seconds=0.01)
        router = swarm.router()
        chains = await asyncio.gather(*(router.choose_fresh() for _ in range(5)))
        assert len(chains) == 5
        assert swarm.fetches == 1

    run_async(work())


def test_a_token_does_not_wait_for_a_slow_fetch(run_async: Runner) -> None:
    async def work() -> None:
        swarm = Swarm([peer(1)])
        router = swarm.router(replace(RouterConfig(), urgent_refresh=0.01))
        await router.refresh()
        swarm.now, swarm.fetch_seconds = swarm.now + 120, 3600.0
        assert await router.choose_fresh(urgent=True)

    run_async(work())


@pytest.mark.parametrize("share", [(0.0, 0.0), (1.0, 0.0), (0.0, 1.0), (0.5, 0.5), (9.0, 9.0)])
def test_a_peer_that_announces_an_absurd_speed_loses_the_route_when_it_is_slow(
    share: tuple[float, float], run_async: Runner
) -> None:
    """Whatever share of its time it claims to have computed or waited."""

    async def work() -> None:
        liar = replace(peer(1), decode_us=1, prefill_us=1)
        honest = replace(peer(2), decode_us=20_000, prefill_us=5_000)
        swarm = Swarm([liar, honest])
        router = swarm.router()
        steps = 0
        while (chosen := (await router.choose_fresh()).hops[0].peer) == liar:
            steps += 1
            assert steps < 20
            router.observe_step(
                chosen, tokens=1, blocks=4, seconds=0.5,
                compute_seconds=0.5 * share[0], queue_seconds=0.5 * share[1], wire_bytes=100,
            )  # fmt: skip
        assert steps > 0, "the claim is what there is before any measurement"
        assert chosen == honest

    run_async(work())


@pytest.mark.parametrize("share", [(0.0, 0.0), (1.0, 0.0), (0.0, 1.0)])
@pytest.mark.parametrize("wire_bytes", [1000, 1 << 20])
def test_a_slow_prefill_is_priced_whatever_is_announced_and_claimed(
    share: tuple[float, float], wire_bytes: int
) -> None:
    liar = replace(peer(1), decode_us=1, prefill_us=1)
    router = Swarm([liar]).router()
    for _ in range(5):
        router.observe_step(
            liar, tokens=64, blocks=4, seconds=2.0,
            compute_seconds=2.0 * share[0], queue_seconds=2.0 * share[1], wire_bytes=wire_bytes,
        )  # fmt: skip
    costs = Costs(CostModel(bytes_per_token=wire_bytes // 128), router._measurements())
    price = costs.enter(liar.peer_id, 64) + costs.leave(liar.peer_id, 64) + costs.run(liar, 4, 64)
    assert price == pytest.approx(2.0, rel=0.1)
