"""Peers of a tiny model on a thread of their own, and models that are connected to them."""

from __future__ import annotations

import asyncio
import contextlib
import random
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any, TypeVar

import torch
from transformers import AutoModelForCausalLM

from swarmd.blocks import Span
from swarmd.client.router import Router
from swarmd.client.session_config import SessionConfig
from swarmd.compute.model_folder import ModelFolder
from swarmd.hf.auto import AutoDistributedModelForCausalLM
from swarmd.hf.swarm_link import LinkOptions, SwarmLink
from swarmd.peers import PeerInfo
from swarmd.wire.ping import ping
from swarmd.wire.pool import Pool
from swarmd.wire.transport import Greeting
from tests.local_swarm import LocalPeer, LocalSwarm

T = TypeVar("T")
SPANS = [Span(0, 2), Span(2, 5), Span(5, 6)]
CHARS = torch.arange(3, 12)[None]


class Serving:
    """A swarm that runs while the test's own thread blocks."""

    def __init__(self, swarm: LocalSwarm) -> None:
        self.swarm = swarm
        self._loop = asyncio.new_event_loop()

    @contextlib.contextmanager
    def running(self, spans: list[Span] | None = None) -> Iterator[Serving]:
        ready, leave = threading.Event(), asyncio.Event()

        async def main() -> None:
            async with self.swarm.running(SPANS if spans is None else spans):
                ready.set()
                await leave.wait()

        thread = threading.Thread(target=self._loop.run_until_complete, args=(main(),))
        thread.start()
        try:
            assert ready.wait(30)
            yield self
        finally:
            self._loop.call_soon_threadsafe(leave.set)
            thread.join(30)
            self._loop.close()

    def do(self, call: Callable[[], T]) -> T:
        """Call on the peers' loop, and wait for it."""

        async def calling() -> T:
            return call()

        return asyncio.run_coroutine_threadsafe(calling(), self._loop).result(30)

    def kill(self, peer: LocalPeer) -> None:
        self.do(peer.kill)

    @property
    def idle(self) -> bool:
        """Whether every page of the live peers' caches is free."""
        return all(
            peer.engine.kv_free == peer.engine.kv_tokens for peer in self.swarm.peers if peer.alive
        )

    def comes_to_rest(self, seconds: float = 10.0) -> bool:
        """Whether all caches become free; peers do that just after they say that a session is
        closed."""
        give_up = time.monotonic() + seconds
        while not self.idle and time.monotonic() < give_up:
            time.sleep(0.005)
        return self.idle

    def tokens_run(self) -> Counted:
        return Counted(self)

    @contextlib.asynccontextmanager
    async def connect(self, folder: ModelFolder, options: LinkOptions) -> AsyncIterator[SwarmLink]:
        """In the place of a DHT: the peers as they are. Runs on the model's loop."""
        assert folder.model_id == self.swarm.folder.model_id

        async def fetch() -> list[PeerInfo]:
            return [peer.info for peer in self.swarm.peers]

        async with Pool(Greeting(folder.model_id)) as pool:
            router = Router(
                fetch,
                lambda peer: ping(peer, pool),
                model_id=folder.model_id,
                model_name=folder.name,
                n_blocks=folder.n_blocks,
                bytes_per_token=folder.hidden_size * 4,
                quantization=options.quantization,
                rng=random.Random(7),
            )
            config = SessionConfig(
                wait=options.wait,
                replan=options.replan,
                codec=options.codec,
                standby=options.standby,
            )
            link = await SwarmLink.open(router, pool, folder, dtype=options.dtype, config=config)
            async with link:
                yield link

    def model(self, **options: Any) -> Any:
        """Connected; to be closed."""
        path = str(self.swarm.folder.path)
        return AutoDistributedModelForCausalLM.from_pretrained(
            path, connect=self.connect, **options
        )


class Counted:
    """Positions that the peers of block 0 were given within the block, session by session."""

    def __init__(self, serving: Serving) -> None:
        self._serving = serving
        self.positions: list[int] = []

    def __enter__(self) -> Counted:
        for peer in self._serving.swarm.peers:
            if peer.engine.blocks.span.start == 0:
                self._watch(peer)
        return self

    def _watch(self, peer: LocalPeer) -> None:
        original = peer.engine.step

        async def counting(session: Any, start: int, hidden: Any, *args: Any, **kw: Any) -> Any:
            self.positions.append(int(hidden.shape[-2]))
            return await original(session, start, hidden, *args, **kw)

        peer.engine.step = counting  # type: ignore[method-assign]

    def __exit__(self, *_exc: object) -> None:
        for peer in self._serving.swarm.peers:
            if "step" in vars(peer.engine):
                del peer.engine.step

    @property
    def total(self) -> int:
        return sum(self.positions)


def stock(folder: ModelFolder) -> Any:
    """The same model on one machine."""
    return AutoModelForCausalLM.from_pretrained(str(folder.path), dtype=torch.float32).eval()
