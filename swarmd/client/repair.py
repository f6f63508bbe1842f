"""Replacements for the lost hops of one session: found, opened, and counted."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from typing import Any

from swarmd.client.hop_link import HopLink
from swarmd.client.router import Router
from swarmd.client.session_config import SessionConfig
from swarmd.errors import NoRoute, PeerFailure, RemoteError, ReplayExhausted
from swarmd.identity import PeerId
from swarmd.routing.chain import Chain, Hop
from swarmd.routing.losses import Losses, Verdict
from swarmd.routing.query import NOBODY, Between
from swarmd.routing.replay import Replay
from swarmd.wire.pool import Pool

__all__ = ["Repair", "all_of", "neighbours"]


class Repair:
    """Opens hops, and finds others for those that are lost. `begin` before each step.

    `tell` hears each failure. `mixing`: whether a replacement may be of another quantization.
    """

    def __init__(
        self,
        router: Router,
        pool: Pool,
        config: SessionConfig,
        *,
        max_length: int,
        mixing: bool,
        tell: Callable[[str], None],
        story: Sequence[str],
    ) -> None:
        self._router = router
        self._pool = pool
        self._config = config
        self._max_length = max_length
        self._mixing = mixing
        self._tell = tell
        self._story = story
        self._losses = Losses(
            max_losses=config.max_losses, patience=max(config.busy_patience, config.wait)
        )

    def begin(self) -> None:
        """A new step: its losses are counted from zero."""
        self._losses.begin()

    def count(self, hop: Hop, error: PeerFailure | RemoteError) -> None:
        """One more failure in this step. Raises ReplayExhausted, or what two peers agree on."""
        self._router.observe_failure(hop.peer, error)
        verdict = self._losses.failed(hop.peer.peer_id, error, self._router.clock.monotonic())
        if verdict is Verdict.BELIEVE:
            raise error
        if verdict is not Verdict.GO_ON:
            raise ReplayExhausted(f"gave up: {verdict.value}:", story=self._story) from error

    async def open(self, hop: Hop) -> HopLink:
        """A link to a hop, to which others may be linked. Raises PeerFailure, RemoteError."""
        return await HopLink.open(
            hop.peer,
            hop.span,
            self._pool,
            max_length=self._max_length,
            timeout=self._config.open_timeout,
            fed=True,
        )

    async def replacement(
        self, lost: Hop, between: Between = NOBODY
    ) -> tuple[Chain, list[HopLink]]:
        """Hops for the blocks of a lost one, and open links to all of them.

        Raises NoRoute, ReplayExhausted, and the refusal on which two peers agree.
        """
        while True:
            chain = await self._find(lost, between)
            try:
                return chain, await self._open_all(chain.hops)
            except _OpeningFailed as failure:
                self._tell(f"{failure.hop} did not open: {failure.error}")
                self.count(failure.hop, failure.error)

    async def _find(self, lost: Hop, between: Between) -> Chain:
        def tell_waiting(error: NoRoute) -> None:
            self._tell(f"waiting up to {self._config.wait:g} s: {error}")

        def spent() -> frozenset[PeerId]:
            waits = self._config.wait > 0
            return self._losses.spent(self._router.clock.monotonic() if waits else None)

        try:
            chain = await self._router.choose_fresh(
                lost.span,
                arithmetic=lost.peer.arithmetic,
                kv_needed=self._max_length,
                without=lambda: self._losses.left_out(self._router.clock.monotonic()),
                spent=spent,
                urgent=True,
                wait=self._config.wait,
                mixing=self._mixing,
                between=between,
                on_waiting=tell_waiting,
            )
        except NoRoute as error:
            if self._losses.refusal is not None:  # the blocks are there; this is the reason
                raise self._losses.refusal from error
            raise
        self._losses.spend(self._router.banned(chain), self._router.clock.monotonic())
        pause = self._router.pause_before(chain)
        if pause > 0:  # nobody else holds these blocks: come back when the peer said
            self._tell(f"{chain.describe()} is busy; trying again in {pause:.1f} s")
            await asyncio.sleep(pause)
        return chain

    async def _open_all(self, hops: Sequence[Hop]) -> list[HopLink]:
        """Links to all of `hops`, or to none. Raises _OpeningFailed."""
        opened: dict[int, HopLink] = {}

        async def dial(index: int, hop: Hop) -> None:
            try:
                opened[index] = await self.open(hop)
            except (PeerFailure, RemoteError) as error:
                raise _OpeningFailed(hop, error) from error

        try:
            await all_of(dial(index, hop) for index, hop in enumerate(hops))
        except BaseException:
            for link in opened.values():
                link.abort()
            raise
        return [opened[index] for index in range(len(hops))]


def neighbours(machine: Replay, hops: Mapping[int, Hop], key: int) -> Between:
    """Who is before and after a hop, as far as they are not lost themselves."""
    keys = [one for one, _ in machine.hops]
    at = keys.index(key)

    def peer_id(index: int) -> PeerId | None:
        if not 0 <= index < len(keys) or keys[index] in machine.lost_hops:
            return None
        return hops[keys[index]].peer.peer_id

    return Between(peer_id(at - 1), peer_id(at + 1))


async def all_of(works: Iterable[Coroutine[Any, Any, None]]) -> None:
    """Run all to their end; then raise the first error."""
    for result in await asyncio.gather(*works, return_exceptions=True):
        if isinstance(result, BaseException):
            raise result


class _OpeningFailed(Exception):
    def __init__(self, hop: Hop, error: PeerFailure | RemoteError) -> None:
        super().__init__(str(error))
        self.hop = hop
        self.error = error
