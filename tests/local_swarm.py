"""Real peers on loopback sockets in one process, without a DHT: for tests of chains."""

from __future__ import annotations

import asyncio
import contextlib
import random
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

from swarmd.blocks import Span
from swarmd.client.chain_session import ChainSession, SessionConfig
from swarmd.client.router import Router
from swarmd.client.spot_checks import CheckConfig
from swarmd.compute.block_span import BlockSpan
from swarmd.compute.engine import Engine
from swarmd.compute.model_folder import ModelFolder
from swarmd.identity import Identity, PeerId
from swarmd.node.edge import Successors
from swarmd.node.limits import SessionLimits
from swarmd.node.served import ServedModel
from swarmd.node.sessions import SessionServer
from swarmd.peers import Address, PeerInfo, PeerState
from swarmd.relay.desk import RelayDesk
from swarmd.relay.relayed import Relayed
from swarmd.routing.chain import Chain, Hop
from swarmd.swarm_key import PUBLIC_KEYS
from swarmd.tasks import TaskOwner
from swarmd.wire.connection import Connection
from swarmd.wire.ping import ping
from swarmd.wire.pool import Pool
from swarmd.wire.transport import Door, Greeting, Listener, bind, listen


class LocalPeer:
    """One serving peer. `kill` cuts all of its connections and its listener, like `kill -9`."""

    def __init__(
        self,
        folder: ModelFolder,
        blocks: BlockSpan,
        *,
        kv_tokens: int = 4096,
        limits: SessionLimits | None = None,
        peers: Sequence[LocalPeer] = (),
    ) -> None:
        """`peers`: those to which sessions here may be linked; may be filled later."""
        self.folder = folder
        self.peers = peers
        self.identity = Identity.generate()
        self.engine = Engine(blocks, kv_tokens=kv_tokens)
        self.desk = RelayDesk(PUBLIC_KEYS)
        self.server = SessionServer(
            Door(self.identity),
            ServedModel(
                folder.model_id,
                folder.name,
                folder.n_blocks,
                folder.hidden_size,
                folder.max_positions,
                blocks.dtype,
                blocks.quantization,
            ),
            self.engine,
            limits,
            desk=self.desk,
        )
        self.edge_pool = Pool(Greeting(folder.model_id, self.identity))
        self.server.successors = Successors(self.edge_pool, self._whereis)
        self.connections: set[Connection] = set()
        self.alive = True
        self.decode_us = 1000
        self.prefill_us = 500
        self.hiding: asyncio.Task[None] | None = None
        self._stack = contextlib.AsyncExitStack()

    async def __aenter__(self) -> LocalPeer:
        await self._stack.enter_async_context(self.engine)
        self._stack.callback(self.desk.close)
        await self._stack.enter_async_context(self.edge_pool)
        self.owner = owner = await self._stack.enter_async_context(TaskOwner("peer"))

        def accept(connection: Connection) -> None:
            if not self.alive:
                connection.abort()
                return
            self.connections.add(connection)
            owner.spawn(self.server.serve(connection), name="connection", errors="log")

        async def at_a_free_port(*, plaintext: bool) -> Listener:
            sock = bind(Address("127.0.0.1", 0))
            limits = self.server.frame_limits()
            listener = await listen(
                sock,
                accept,
                self.server.door,
                limits=limits,
                plaintext=plaintext,
                relays=self.desk,
            )
            self._stack.callback(listener.close)
            return listener

        self.listener = await at_a_free_port(plaintext=False)
        self.address = Address("127.0.0.1", self.listener.sockets[0].getsockname()[1])
        # for tests that write frames by hand
        self.plain_listener = await at_a_free_port(plaintext=True)
        self.plain_address = Address("127.0.0.1", self.plain_listener.sockets[0].getsockname()[1])
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self._stack.aclose()

    def hide(self, relays: Callable[[], Sequence[PeerInfo]]) -> Relayed:
        """Be reachable through a relay only; `address` is then the relay's."""
        nowhere = Address("127.0.0.1", 9)  # discard: nothing listens there
        self.address = nowhere

        async def candidates() -> Sequence[PeerInfo]:
            return relays()

        async def changed(relay: PeerInfo | None) -> None:
            self.address = nowhere if relay is None else relay.address

        greeting = Greeting(identity=self.identity)
        relayed = Relayed(
            greeting, self.listener, candidates, changed, rng=random.Random(3), first_pause=0.05
        )
        self.hiding = self.owner.spawn(relayed.run(), name="relayed")
        return relayed

    async def _whereis(self, peer_id: PeerId) -> Address | None:
        found = [peer.address for peer in self.peers if peer.identity.peer_id == peer_id]
        return found[0] if found else None

    def kill(self) -> None:
        self.alive = False
        self.desk.close()
        if self.hiding is not None:
            self.hiding.cancel()
        self.listener.close()
        self.plain_listener.close()
        for connection in self.connections:
            connection.abort()
        for live in list(self.server._live):  # the links that it dialled itself
            live._onward.close()

    @property
    def info(self) -> PeerInfo:
        return PeerInfo(
            peer_id=self.identity.peer_id,
            address=self.address,
            model_id=self.folder.model_id,
            model_name=self.folder.name,
            n_blocks=self.folder.n_blocks,
            span=self.engine.blocks.span,
            state=PeerState.ONLINE,
            decode_us=self.decode_us,
            prefill_us=self.prefill_us,
            kv_free=self.engine.kv_free,
            dtype=self.engine.blocks.dtype,
            quantization=self.engine.blocks.quantization,
        )


def _shared(blocks: BlockSpan) -> BlockSpan:
    """Blocks that the engines of several peers run, each on its own thread: one at a time."""
    lock, run = threading.Lock(), blocks.run

    def run_alone(*args: Any, **options: Any) -> Any:
        with lock:
            return run(*args, **options)

    blocks.run = run_alone  # type: ignore[method-assign]
    return blocks


class LocalSwarm:
    """Peers by span, a pool and a router over them. Blocks of one span are loaded once."""

    def __init__(self, folder: ModelFolder, *, dtype: str = "float32") -> None:
        self.folder = folder
        self.dtype = dtype
        self.peers: list[LocalPeer] = []
        self._blocks: dict[tuple[Span, str], BlockSpan] = {}

    @contextlib.asynccontextmanager
    async def running(
        self,
        spans: list[Span],
        *,
        quantizations: Sequence[str] | None = None,
        kv_tokens: int = 4096,
        limits: SessionLimits | None = None,
    ) -> AsyncIterator[LocalSwarm]:
        async with contextlib.AsyncExitStack() as stack:
            kinds = quantizations or ["none"] * len(spans)
            self.peers = [
                LocalPeer(self.folder, self._load(span, kind), kv_tokens=kv_tokens, limits=limits)
                for span, kind in zip(spans, kinds, strict=True)
            ]
            for peer in self.peers:
                peer.peers = self.peers
                await stack.enter_async_context(peer)
            self.pool = await stack.enter_async_context(Pool(Greeting(self.folder.model_id)))
            self.router = self.new_router()
            yield self

    def _load(self, span: Span, quantization: str) -> BlockSpan:
        if (span, quantization) not in self._blocks:
            blocks = BlockSpan(self.folder, span, dtype=self.dtype, quantization=quantization)
            self._blocks[span, quantization] = _shared(blocks)
        return self._blocks[span, quantization]

    def new_router(self, quantization: str = "auto") -> Router:
        async def fetch() -> list[PeerInfo]:
            return [peer.info for peer in self.peers]  # the dead as well: the DHT lags behind

        return Router(
            fetch,
            lambda peer: ping(peer, self.pool),
            model_id=self.folder.model_id,
            model_name=self.folder.name,
            n_blocks=self.folder.n_blocks,
            bytes_per_token=self.folder.hidden_size * 4,
            quantization=quantization,
            rng=random.Random(7),
        )

    async def session(
        self,
        peers: list[LocalPeer] | None = None,
        *,
        max_length: int,
        wait: float = 0.0,
        checks: CheckConfig | None = None,
        config: SessionConfig | None = None,
    ) -> ChainSession:
        """A session over given peers in order, or over a chosen chain. `config` says all that
        `wait` and `checks` say."""
        await self.router.refresh()
        if peers is None:
            chain = self.router.choose()
        else:
            hops = tuple(Hop(peer.info, peer.info.span) for peer in peers)
            chain = Chain(hops, 0.0)
        return ChainSession(
            self.router,
            self.pool,
            chain,
            hidden_size=self.folder.hidden_size,
            max_length=max_length,
            config=config or SessionConfig(wait=wait, checks=checks or CheckConfig()),
        )
