"""The serving node: one asyncio program that joins the DHT, holds blocks, and answers streams.

Task tree (every task has an owner that awaits it)::

    Daemon.run
    ├── Directory          the DHT's socket, its table refresh and its other periodic work
    ├── services           the announcer, whose failure stops the node; the check of reachability
    ├── Meeting            what is heard of on the local network; a failure is one warning
    ├── Engine             one thread; the only one that touches weights and caches
    └── connections        a task for each accepted connection, and one that trims the heap; a
                           failure is one warning

A stop while the model is prepared or loaded ends that at its next report of progress.

Stop order, also on SIGINT and SIGTERM: stop accepting, announce DRAINING, let sessions finish for
a while, cut the rest (their clients replay elsewhere), free the engine, announce GONE.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import logging
import random
import socket
import time
from collections.abc import AsyncIterator, Callable
from typing import TypeVar

import torch

from swarmd.blocks import Span
from swarmd.compute.block_span import BlockSpan
from swarmd.compute.engine import Engine
from swarmd.compute.model_folder import ModelFolder
from swarmd.compute.source import resolve_model
from swarmd.compute.throughput import measured_or_cached
from swarmd.config import DEFAULT_PORTS, DaemonConfig, announced_address, check_host
from swarmd.dht.config import DhtConfig
from swarmd.dht.directory import Directory
from swarmd.dht.host_names import resolve
from swarmd.errors import PortInUse, SwarmdError, UsageError
from swarmd.identity import Identity, PeerId
from swarmd.node.announced import Announced
from swarmd.node.announcer import Announcer
from swarmd.node.dtype_choice import choose_dtype, measured_dtype
from swarmd.node.edge import KnownPeers, Successors
from swarmd.node.joining import Claims, block_count, choose_blocks
from swarmd.node.limits import SessionLimits
from swarmd.node.meeting import Meeting
from swarmd.node.memory_probe import (
    keep_trimmed,
    memory_plan,
    release_unused_memory,
    use_one_arena,
)
from swarmd.node.parts import NodeParts
from swarmd.node.reach import Reach
from swarmd.node.reachability import DialBack
from swarmd.node.sessions import SessionServer
from swarmd.node.whereabouts import Whereabouts
from swarmd.peers import Address, PeerState
from swarmd.state import StateFolder
from swarmd.tasks import TaskOwner
from swarmd.wire.connection import Connection
from swarmd.wire.ping import ping
from swarmd.wire.pool import Pool
from swarmd.wire.transport import Door, Greeting, Listener, bind, listen, turn_away

__all__ = ["Daemon"]

log = logging.getLogger(__name__)

T = TypeVar("T")

Progress = Callable[[str, int, int], None]


class _Stopped(Exception):
    """The node was asked to leave before it served; raised in the thread that prepares it."""


class Daemon:
    """A node that serves blocks. `run` returns when `stop` is called, or raises what failed."""

    def __init__(self, config: DaemonConfig, *, progress: Progress | None = None) -> None:
        self.config = config
        self.state = StateFolder(config.state_dir)
        self._whereabouts = Whereabouts(self.state, config.keys, config.key_file)
        self.ready = asyncio.Event()
        self.address: Address | None = None
        self.peer_id: PeerId | None = None
        self.parts = NodeParts()
        self.stopping = asyncio.Event()
        self._progress = progress
        self.busy: Callable[[], bool] = lambda: False
        """Whether other work of this process is waited for when the node leaves, like sessions."""
        self._socket: socket.socket | None = None
        self._began = 0.0
        self._rng = random.Random()

    def stop(self) -> None:
        """Ask the node to leave in good order. Idempotent; may be called from a signal handler."""
        self.stopping.set()

    async def run(self) -> None:
        """Serve until stopped. Raises UsageError, ModelError, PortInUse, BootstrapFailed, …"""
        try:
            await self._run()
        except _Stopped:
            if self.peer_id is None:
                log.info("stopped before it joined a swarm")
        finally:
            self.stopping.set()  # a cancel ends the loading thread as a stop does

    async def _run(self) -> None:
        config = self.config
        use_one_arena()
        host = await _resolved(check_host(config.host, config.advertise))
        if config.threads is not None:
            torch.set_num_threads(config.threads)
        self._began = time.monotonic()
        folder = await self._folder(config.blocks.span)
        config.blocks.checked(folder.n_blocks)
        async with contextlib.AsyncExitStack() as stack:
            identity = stack.enter_context(self.state.identity())
            self.peer_id = identity.peer_id
            directory = await stack.enter_async_context(self._directory(identity))
            self.address = announced_address(host, directory.address.port, config.advertise)
            self._greeting = Greeting(None, identity, config.keys)
            pool = await stack.enter_async_context(
                Pool(dataclasses.replace(self._greeting, model_id=folder.model_id))
            )
            announced = Announced(config, folder, identity.peer_id, self.address)
            self.parts.joining(directory, pool, announced)
            announcer = Announcer(
                directory,
                announced.describe,
                period=config.announce_period,
                ping=lambda peer: ping(peer, pool),
                rng=self._rng,
            )
            services = await stack.enter_async_context(TaskOwner("services"))
            assert self._socket is not None
            # Who dials by an old announcement learns at once that nobody serves here yet.
            closed_door = await turn_away(self._socket.dup())
            stack.callback(closed_door.close)
            renewing: asyncio.Task[None] | None = None
            try:
                await self._whereabouts.remember(identity.peer_id, self.address)
                meeting = await stack.enter_async_context(
                    Meeting(config, directory, self._whereabouts.peers_file())
                )
                await meeting.join(self.address)
                self._check_stop()
                announced.dtype = await self._dtype(directory, folder)
                announced.span = await self._claim(directory, announcer, announced)
                renewing = services.spawn(announcer.run(), name="announcer")
                door = Door(identity, config.keys, config.allow)
                await self._load_and_serve(directory, announcer, announced, closed_door, door, pool)
            finally:
                if renewing is not None:  # nothing may be announced after the tombstone
                    renewing.cancel()
                    await asyncio.wait([renewing])
                await self._withdraw(announcer)

    async def _folder(self, span: Span | None) -> ModelFolder:
        return await self._in_thread(
            lambda: resolve_model(self.config.model, span=span, progress=self._report)
        )

    async def _dtype(self, directory: Directory, folder: ModelFolder) -> str:
        config = self.config
        if config.dtype != "auto":
            return config.dtype
        chosen = await choose_dtype(
            lambda: directory.fetch(folder.model_id),
            lambda: self._in_thread(
                lambda: measured_dtype(folder, config.quantization, config.device)
            ),
            self.peer_id,
        )
        log.info("--dtype auto: %s, because %s", chosen.dtype, chosen.reason)
        return chosen.dtype

    async def _blocks(self, folder: ModelFolder, span: Span, dtype: str) -> BlockSpan:
        config = self.config
        return await self._in_thread(
            lambda: BlockSpan(
                folder,
                span,
                dtype=dtype,
                quantization=config.quantization,
                device=config.device,
                progress=lambda done, total: self._report("loading blocks", done, total),
            )
        )

    async def _use_room(self, blocks: BlockSpan, folder: ModelFolder) -> None:
        """Spend memory that is left on speed."""

        def use() -> int:
            each = memory_plan(self.config, folder, blocks.dtype).block_bytes
            loaded = each * len(blocks.span)
            plan = memory_plan(self.config, folder, blocks.dtype, loaded=loaded)
            return blocks.use_room(plan.room_beside(len(blocks.span)))

        if self.config.device == "cpu" and (taken := await self._in_thread(use)):
            log.info(
                "%.1f MB more for a second layout of the weights: there is room, and steps of "
                "several rows are faster", taken / 1e6,
            )  # fmt: skip

    async def _in_thread(self, work: Callable[[], T]) -> T:
        """Run a part of the preparation. Raises _Stopped if a stop was asked for meanwhile."""
        self._check_stop()
        try:
            result = await asyncio.to_thread(work)
        except asyncio.CancelledError:
            self.stopping.set()  # the thread cannot be cancelled, but told
            raise
        except SwarmdError:
            self._check_stop()  # what a stop breaks on its way is no news
            raise
        self._check_stop()
        return result

    def _report(self, stage: str, done: int, total: int) -> None:
        """Progress of a preparation, from its thread. Raises _Stopped to end it."""
        self._check_stop()
        if self._progress is not None:
            self._progress(stage, done, total)

    def _check_stop(self) -> None:
        if self.stopping.is_set():
            raise _Stopped

    async def _load_and_serve(
        self,
        directory: Directory,
        announcer: Announcer,
        announced: Announced,
        closed_door: Listener,
        door: Door,
        pool: Pool,
    ) -> None:
        config, span = self.config, announced.span
        folder = announced.folder
        if config.blocks.span is None:  # of a hub model, fetches what was chosen meanwhile
            folder = await self._folder(span)
        log.info("loading blocks %s of %s", span, folder.name)
        blocks = await self._blocks(folder, span, announced.dtype)
        await self._use_room(blocks, folder)
        async with Engine(
            blocks, kv_tokens=config.kv_tokens, share_prefixes=config.shared_prefixes
        ) as engine:
            announced.throughput = await engine.call(
                lambda: measured_or_cached(blocks, str(folder.model_id), self.state.throughput_file)
            )
            engine.reckon_with(announced.throughput.turn_cost(batched=blocks.batched))
            announced.engine = engine
            release_unused_memory()
            if not self.stopping.is_set():
                closed_door.close()
                reach = Reach(directory, announcer, announced, door, self._greeting, self._rng)
                known = KnownPeers(lambda: directory.fetch(folder.model_id))
                successors = Successors(pool, known.whereis)
                await self._serve(announcer, announced, engine, reach, successors)

    async def _serve(
        self,
        announcer: Announcer,
        announced: Announced,
        engine: Engine,
        reach: Reach,
        successors: Successors,
    ) -> None:
        server = SessionServer(
            reach.door,
            announced.model,
            engine,
            SessionLimits.of(self.config),
            desk=reach.desk,
            dial_back=DialBack(self._greeting),
            successors=successors,
        )
        async with TaskOwner("connections") as connections:
            connections.spawn(keep_trimmed(), name="heap", errors="log")

            def accept(connection: Connection) -> None:
                if server.draining:
                    connection.abort()
                    return
                connections.spawn(
                    server.serve(connection), name=str(connection.address), errors="log"
                )

            assert self._socket is not None
            listener = await listen(
                self._socket,
                accept,
                reach.door,
                limits=server.frame_limits(),
                relays=reach.desk,
            )
            try:
                await reach.begin(listener, connections)
                log.info(
                    "serving blocks %s of %s at %s (peer %s), %.0f tokens/s through them; "
                    "ready after %.1f s",
                    announced.span,
                    announced.folder.name,
                    self.address,
                    announced.peer_id.short,
                    announced.describe(PeerState.ONLINE).tokens_per_second,
                    time.monotonic() - self._began,
                )
                assert self.address is not None
                await self._whereabouts.remember(announced.peer_id, self.address)
                with self._whereabouts.noted(announced.peer_id, self.address):
                    self.parts.server = server
                    self.ready.set()
                    await self.stopping.wait()
            finally:
                await self._drain(announcer, server, listener)
                await reach.end()

    async def _drain(self, announcer: Announcer, server: SessionServer, listener: Listener) -> None:
        """Let sessions finish; limited in time, whatever the network does."""
        log.info("leaving: %d sessions are open", server.open_sessions)
        if (shared := server.engine.prefixes) is not None and shared.asked:
            log.info(
                "shared beginnings: %d of %d tokens of prompts were known (%.0f %%)",
                shared.found, shared.asked, 100 * shared.hit_rate,
            )  # fmt: skip
        server.draining = True
        listener.close()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self.config.drain_timeout):
                await announcer.announce(PeerState.DRAINING)
                while server.open_sessions or self.busy():
                    await asyncio.sleep(0.05)

    async def _withdraw(self, announcer: Announcer) -> None:
        """Tell the swarm, and this machine's peers file, that the node is gone."""
        try:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(5.0):
                    await announcer.withdraw()
        finally:
            if self.peer_id is not None:
                await self._whereabouts.forget(self.peer_id)
        log.info("left the swarm")

    @contextlib.asynccontextmanager
    async def _directory(self, identity: Identity) -> AsyncIterator[Directory]:
        """The DHT node on the chosen port, or on the first free one of the default ports. The TCP
        port of the same number is held from here on."""
        ports = list(DEFAULT_PORTS) if self.config.port is None else [self.config.port]
        for port in ports:
            directory = Directory(
                DhtConfig(
                    host=self.config.host,
                    port=port,
                    ttl=self.config.record_ttl,
                    keys=self.config.keys,
                ),
                identity,
                rng=self._rng,
                peers_file=self._whereabouts.peers_file(),
            )
            try:
                async with contextlib.AsyncExitStack() as stack:
                    await stack.enter_async_context(directory)
                    self._socket = bind(Address(self.config.host, directory.address.port))
                    stack.callback(self._socket.close)
                    kept = stack.pop_all()
            except PortInUse:
                if port == ports[-1]:
                    raise
                continue
            async with kept:
                yield directory
            return

    async def _claim(
        self, directory: Directory, announcer: Announcer, announced: Announced
    ) -> Span:
        """The blocks to serve, announced as JOINING."""
        config, folder = self.config, announced.folder
        if config.blocks.span is not None:
            await announcer.announce()
            return config.blocks.span
        plan = memory_plan(config, folder, announced.dtype)
        count = block_count(config.blocks, plan)
        for line in plan.explain():
            log.info("%s", line)

        async def claim(span: Span) -> int:
            announced.span = span
            await announcer.announce()
            return directory.sequence

        return await choose_blocks(
            Claims(lambda: directory.fetch(folder.model_id), claim),
            announced.peer_id,
            count=count,
            n_blocks=folder.n_blocks,
            delay=config.entry_delay,
            settle=config.claim_settle,
            rng=self._rng,
        )


async def _resolved(host: str) -> str:
    """The IP literal of a host name; an announcement carries addresses, not names."""
    literal = await resolve(host)
    if literal is None:
        raise UsageError(f"{host!r} is not an IP address or a known host name")
    return literal
