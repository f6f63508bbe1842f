"""A client's standing in the swarm: DHT lookups, a pool of connections, one router a model."""

from __future__ import annotations

import contextlib
import logging
import random
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from swarmd.client.router import Router
from swarmd.dht.config import DhtConfig
from swarmd.dht.directory import Directory
from swarmd.dht.peers_file import PeersFile
from swarmd.errors import BootstrapFailed, NoRoute
from swarmd.identity import Identity, PeerId
from swarmd.peers import Address, ModelId
from swarmd.routing.chain import Chain
from swarmd.routing.edges import Route
from swarmd.state import StateFolder
from swarmd.swarm_key import PUBLIC_KEYS, KeyRing
from swarmd.wire.ping import ping
from swarmd.wire.pool import Pool
from swarmd.wire.transport import Greeting

__all__ = ["SwarmClient", "choose_chain"]

log = logging.getLogger(__name__)

_NOBODY = (
    "no node of a swarm is known on this machine; start one with: swarmd serve, "
    "or name one with --peer HOST:PORT"
)


class SwarmClient:
    """`async with SwarmClient(peers) as swarm:` is connected on entry.

    Without `peers` the nodes that are remembered on this machine are asked, and with `lan` those
    of the local network where none is remembered or none of them answers. The local network is
    left alone if all that are remembered are on loopback: the swarm is one of this machine.
    `expected` says who must answer at some of `peers`. Raises BootstrapFailed when nobody answers.
    A client makes up an identity for each run; one that is to be `known` to nodes with an
    allow-list takes one of the state folder's (StateError).
    """

    def __init__(
        self,
        peers: Sequence[Address] = (),
        *,
        state_dir: Path | None = None,
        keys: KeyRing = PUBLIC_KEYS,
        known: bool = False,
        expected: Mapping[Address, PeerId] | None = None,
        lan: bool = True,
    ) -> None:
        """`keys` of the swarm to join; `known`: as an identity of the state folder."""
        self._state = StateFolder(state_dir)
        self._peers_file = PeersFile(self._state.peers_file(keys))
        self._given = tuple(peers)
        self._keys = keys
        self._known = known
        self._identity = Identity.generate()
        self._expected = dict(expected or {})
        self._lan = lan
        self._stack = contextlib.AsyncExitStack()
        self._rng = random.Random()

    async def __aenter__(self) -> SwarmClient:
        if self._given:
            await self._enter(self._given, 5.0)
            return self
        remembered = [address for _, address, _ in await self._peers_file.async_load()]
        if remembered:
            try:
                await self._enter(remembered, 2.0)
                return self
            except BootstrapFailed as error:
                if not self._lan or all(address.is_loopback for address in remembered):
                    raise BootstrapFailed(_NOBODY) from error
        near = await self._neighbours() if self._lan else []
        if not near:
            raise BootstrapFailed(_NOBODY)
        try:
            await self._enter(near, 2.0)
        except BootstrapFailed as error:
            raise BootstrapFailed(_NOBODY) from error
        return self

    async def _neighbours(self) -> list[Address]:
        from swarmd.lan.neighbours import find_neighbours  # 0.1 s of imports, rarely needed

        return await find_neighbours([key.swarm_id for key in self._keys.accepted])

    async def _enter(self, contacts: Sequence[Address], timeout: float) -> None:
        """Open the directory on `contacts`. Raises BootstrapFailed."""
        config = DhtConfig(host=_interface(contacts), serving=False, keys=self._keys)
        async with contextlib.AsyncExitStack() as stack:
            if self._known:
                self._identity = stack.enter_context(self._state.identity())
            self.directory = await stack.enter_async_context(
                Directory(config, self._identity, peers_file=self._peers_file)
            )
            await self.directory.bootstrap(contacts, timeout=timeout, expected=self._expected)
            self._stack = stack.pop_all()

    async def __aexit__(self, *exc: object) -> None:
        await self._stack.aclose()

    async def pool(self, model_id: ModelId | None = None) -> Pool:
        """A pool of connections, closed with this client. Greets for one model, or for any."""
        greeting = Greeting(model_id, self._identity, self._keys)
        return await self._stack.enter_async_context(Pool(greeting))

    def router(
        self,
        pool: Pool,
        *,
        model_id: ModelId,
        model_name: str,
        n_blocks: int,
        bytes_per_token: int,
        quantization: str = "auto",
        route: Route = "auto",
    ) -> Router:
        """A router for one model over this client's DHT and `pool`."""
        return Router(
            lambda: self.directory.fetch(model_id, tombstones=True),
            lambda peer: ping(peer, pool),
            model_id=model_id,
            model_name=model_name,
            n_blocks=n_blocks,
            bytes_per_token=bytes_per_token,
            quantization=quantization,
            route=route,
            rng=self._rng,
        )


def _interface(contacts: Sequence[Address]) -> str:
    """Where a client's socket is bound, by whom it is to reach. A socket speaks one family: IPv6
    if all contacts are IPv6 literals, else IPv4."""
    is_local = all(address.is_loopback for address in contacts)
    if all(":" in address.host for address in contacts):
        return "::1" if is_local else "::"
    return "127.0.0.1" if is_local else "0.0.0.0"


async def choose_chain(
    router: Router, *, wait: float = 0.0, on_story: Callable[[str], None] | None = None
) -> Chain:
    """A chain over all blocks; waits up to `wait` seconds for one. Raises NoRoute."""

    def tell(error: NoRoute) -> None:
        if on_story is not None:
            on_story(f"waiting up to {wait:g} s: {error}")

    chain = await router.choose_fresh(wait=wait, on_waiting=tell)
    if on_story is not None and len(chain.quantizations) > 1:
        on_story(
            f"no other route: this one mixes {' and '.join(chain.quantizations)} (quantization), "
            "so the answer is that of neither"
        )
    return chain
