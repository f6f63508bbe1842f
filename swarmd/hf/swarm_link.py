"""A program's standing in the swarm for one model: who serves it, and sessions over them."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from swarmd.client.evidence import EvidenceFile
from swarmd.client.moving_session import MovingSession
from swarmd.client.router import Router
from swarmd.client.session_config import SessionConfig
from swarmd.client.swarm import SwarmClient, choose_chain
from swarmd.compute.model_folder import ModelFolder
from swarmd.errors import NoRoute
from swarmd.membership import Membership
from swarmd.peers import QUANTIZATIONS, Arithmetic
from swarmd.routing.chain import Chain
from swarmd.state import StateFolder
from swarmd.wire.codecs import CodecChoice
from swarmd.wire.pool import Pool

__all__ = ["LinkOptions", "SwarmLink", "swarm_link"]


@dataclass(frozen=True, slots=True)
class LinkOptions:
    """How to join, and which peers to use; as the options of `swarmd generate` of these names."""

    member: Membership
    state_dir: Path | None = None
    lan: bool = True
    known: bool = False
    quantization: str = "auto"
    dtype: str | None = None
    """None: that of the cheapest chain."""
    wait: float = 0.0
    replan: bool | None = None
    codec: CodecChoice = "auto"
    standby: bool = False


class SwarmLink:
    """Chains and sessions of one model; leaving it closes those that are open. The arithmetic is
    that of the first chain, for good: a batch whose rows were computed in two would be neither's.
    """

    def __init__(
        self,
        router: Router,
        pool: Pool,
        folder: ModelFolder,
        first: Chain,
        *,
        config: SessionConfig | None = None,
    ) -> None:
        self.router = router
        self.pool = pool
        self.folder = folder
        self.arithmetic = first.hops[0].peer.arithmetic
        self._config = config or SessionConfig()
        self._sessions: set[MovingSession] = set()

    async def __aenter__(self) -> SwarmLink:
        return self

    async def __aexit__(self, *_exc: object) -> None:
        await self.close(tuple(self._sessions))

    @classmethod
    async def open(
        cls,
        router: Router,
        pool: Pool,
        folder: ModelFolder,
        *,
        dtype: str | None = None,
        config: SessionConfig | None = None,
    ) -> SwarmLink:
        """`config`: of its sessions. Raises NoRoute if nobody serves some block, or not in
        `dtype`."""
        wait = 0.0 if config is None else config.wait
        if dtype is None:
            chain = await choose_chain(router, wait=wait)
            return cls(router, pool, folder, chain, config=config)
        named = router.quantization in QUANTIZATIONS
        for quantization in (router.quantization,) if named else QUANTIZATIONS:
            with contextlib.suppress(NoRoute):
                arithmetic = Arithmetic(dtype, quantization)
                chain = await router.choose_fresh(arithmetic=arithmetic, wait=wait)
                return cls(router, pool, folder, chain, config=config)
        served = (await choose_chain(router)).hops[0].peer.dtype
        raise NoRoute(
            f"no chain of peers computes {folder.name} in {dtype}, but there is one in {served}: "
            f"leave dtype out, or start peers with --dtype {dtype}"
        )

    async def chain(self, *, kv_needed: int) -> Chain:
        """A chain over all blocks with room for `kv_needed` tokens at each hop, if there is one.
        Raises NoRoute."""
        return await self.router.choose_fresh(
            arithmetic=self.arithmetic, kv_needed=kv_needed, wait=self._config.wait
        )

    async def sessions(self, count: int, *, max_length: int) -> list[MovingSession]:
        """So many sessions over one chain, open at all of its hops, or none. Raises NoRoute, and
        what opening raises."""
        chain = await self.chain(kv_needed=max_length * count)
        opening = [
            MovingSession(
                self.router,
                self.pool,
                chain,
                hidden_size=self.folder.hidden_size,
                max_length=max_length,
                config=self._config,
            )
            for _ in range(count)
        ]

        async def one(session: MovingSession) -> None:
            self._sessions.add(await session.__aenter__())
            await session.open_links()

        try:
            for result in await asyncio.gather(*map(one, opening), return_exceptions=True):
                if isinstance(result, BaseException):
                    raise result
        except BaseException:
            await self.close(opening)
            raise
        return opening

    async def close(self, sessions: Sequence[MovingSession]) -> None:
        """Close these sessions, those that are not yet."""
        closing = [session for session in sessions if session in self._sessions]
        self._sessions.difference_update(closing)
        await asyncio.gather(*(session.__aexit__(None, None, None) for session in closing))


@contextlib.asynccontextmanager
async def swarm_link(folder: ModelFolder, options: LinkOptions) -> AsyncIterator[SwarmLink]:
    """Join the swarm as a client. Raises BootstrapFailed, NoRoute, StateError."""
    evidence = EvidenceFile(StateFolder(options.state_dir).evidence_file)
    liars = await asyncio.to_thread(evidence.liars, time.time())
    async with SwarmClient(
        options.member.addresses,
        state_dir=options.state_dir,
        keys=options.member.keys,
        expected=options.member.expected,
        lan=options.lan,
        known=options.known,
    ) as swarm:
        pool = await swarm.pool(folder.model_id)
        router = swarm.router(
            pool,
            model_id=folder.model_id,
            model_name=folder.name,
            n_blocks=folder.n_blocks,
            bytes_per_token=folder.hidden_size * 4,
            quantization=options.quantization,
        )
        for liar in liars:
            router.convict(liar)
        config = SessionConfig(
            wait=options.wait,
            replan=options.replan,
            codec=options.codec,
            standby=options.standby,
        )
        link = await SwarmLink.open(router, pool, folder, dtype=options.dtype, config=config)
        async with link:
            yield link
