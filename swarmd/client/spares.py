"""What stands ready for the hops of one session, so that a loss costs little.

At least, a replacement for each hop is known, and a connection to it lies in the pool: the view is
kept fresh in the background, and whoever would be chosen is pinged. With `standby`, a second peer
holds a session of its own over the same blocks and is sent the inputs of its hop as they come to
the client, behind the step that needed them (:mod:`swarmd.routing.shadow` says what). It takes the
lost hop's place with a ready cache, and the step goes on from there.

A standby takes room in its peer's cache like any session. Its troubles are told and never stop the
session: another one is looked for.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from swarmd.client.hop_link import HopLink, HopOutput, Refused
from swarmd.client.repair import neighbours
from swarmd.client.router import Router
from swarmd.errors import DhtError, NoRoute, PeerFailure, RemoteError
from swarmd.routing.chain import Chain, Hop
from swarmd.routing.history import History
from swarmd.routing.query import Between
from swarmd.routing.replay import Replay
from swarmd.routing.shadow import Shadow
from swarmd.tasks import TaskOwner
from swarmd.wire.codecs import CodecChoice
from swarmd.wire.pool import Pool
from swarmd.wire.tensors import TensorMeta, choose_codec

__all__ = ["Spares", "Standby"]

log = logging.getLogger(__name__)

LOOK_SECONDS = 20.0
"""Between two looks at who would replace a hop: shorter than connections stay in the pool."""
STEP_SECONDS = 30.0
"""For how long a standby's answer is of use: nobody waits for it."""
BUSY_SECONDS = 1.0
"""Before a standby that had no room is sent the same again."""


@dataclass(slots=True, eq=False)
class Standby:
    """A peer that stands by: a hop over the same blocks, its open link, and how much it holds."""

    hop: Hop
    link: HopLink
    history: History
    shadow: Shadow = field(default_factory=Shadow)
    reader: asyncio.Task[None] | None = None


class Spares:
    """Of one session: `hops` and `inputs` are its own, by key, as they are at the moment. Inputs
    are rows of `hidden_size` values of `dtype`."""

    def __init__(
        self,
        router: Router,
        pool: Pool,
        owner: TaskOwner,
        machine: Replay,
        hops: Mapping[int, Hop],
        inputs: Mapping[int, History],
        *,
        standby: bool,
        codec: CodecChoice,
        dtype: str,
        hidden_size: int,
        max_length: int,
        open_timeout: float,
        tell: Callable[[str], None],
    ) -> None:
        self._router = router
        self._pool = pool
        self._owner = owner
        self._machine = machine
        self._hops = hops
        self._inputs = inputs
        self._standby = standby
        self._codec = codec
        self._dtype = dtype
        self._hidden_size = hidden_size
        self._max_length = max_length
        self._open_timeout = open_timeout
        self._tell = tell
        self._ready: dict[int, Standby] = {}
        self._keeper: asyncio.Task[None] | None = None
        self._changed = asyncio.Event()

    def start(self) -> None:
        """Look for spares in the background from now on."""
        if self._keeper is None:
            self._keeper = self._owner.spawn(self._keep(), name="spares")

    def cut(self, start: int) -> None:
        """The session went back to position `start`."""
        for standby in self._ready.values():
            standby.shadow.cut(start)

    def feed(self) -> None:
        """Send to all who stand by what they lack, without waiting."""
        for key, standby in list(self._ready.items()):
            self._feed(key, standby)

    def held(self, key: int) -> int | None:
        """How many positions the hop's standby holds, None if there is none."""
        standby = self._ready.get(key)
        return None if standby is None else standby.shadow.cached

    async def take(self, key: int) -> Standby | None:
        """Who takes the place of a lost hop; its link is read no more here."""
        standby = self._ready.pop(key, None)
        self._changed.set()
        if standby is None:
            return None
        assert standby.reader is not None
        standby.reader.cancel()
        await asyncio.wait([standby.reader])
        banned = self._router.health.banned(self._router.clock.monotonic())
        if standby.link.is_open and standby.hop.peer.peer_id not in banned:
            return standby
        standby.link.abort()
        return None

    @property
    def standby(self) -> bool:
        """Whether a second peer is to hold a ready cache."""
        return self._standby

    @standby.setter
    def standby(self, wanted: bool) -> None:
        self._standby = wanted
        self._changed.set()

    async def close(self) -> None:
        """Let all go, after the owner's tasks have ended."""
        links = [standby.link for standby in self._ready.values()]
        await asyncio.gather(*(link.close() for link in links), return_exceptions=True)
        self._ready.clear()

    def abort(self) -> None:
        """Drop the connections of those who were not let go."""
        for standby in self._ready.values():
            standby.link.abort()
        self._ready.clear()

    # ---- in the background --------------------------------------------------------------------

    async def _keep(self) -> None:
        while True:
            self._changed.clear()
            with contextlib.suppress(DhtError):
                await self._router.refresh()
            for key in [key for key in self._ready if key not in self._hops]:
                self._drop(key, self._ready[key])
            for key in list(self._hops):
                await self._look_for(key)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(LOOK_SECONDS):
                    await self._changed.wait()
                await asyncio.sleep(BUSY_SECONDS)  # who was lost is not asked again at once

    async def _look_for(self, key: int) -> None:
        hop = self._hops.get(key)
        if hop is None or key in self._ready:
            return
        chain = self._choose(hop, neighbours(self._machine, self._hops, key))
        if chain is None:
            return
        if self._standby and len(chain.hops) == 1:
            await self._open(key, chain.hops[0])
        else:
            await self._router.probe([one.peer for one in chain.hops])

    def _choose(self, hop: Hop, between: Between) -> Chain | None:
        """Who would replace a hop: rather a peer that has no other part in the session."""
        inside = frozenset(one.peer.peer_id for one in self._hops.values())
        busy = frozenset(standby.hop.peer.peer_id for standby in self._ready.values())
        for without in (inside | busy, inside, frozenset({hop.peer.peer_id})):
            with contextlib.suppress(NoRoute):
                return self._router.choose(
                    hop.span,
                    arithmetic=hop.peer.arithmetic,
                    mixed=False,
                    kv_needed=self._max_length,
                    without=without,
                    between=between,
                )
        return None

    async def _open(self, key: int, hop: Hop) -> None:
        try:
            link = await HopLink.open(
                hop.peer, hop.span, self._pool,
                max_length=self._max_length, timeout=self._open_timeout, fed=True,
            )  # fmt: skip
        except (PeerFailure, RemoteError) as error:
            log.info("%s cannot stand by: %s", hop, error)
            self._router.observe_failure(hop.peer, error)
            return
        if key not in self._hops:  # lost while this was opened
            link.abort()
            return
        standby = Standby(hop, link, self._inputs[key])
        standby.reader = self._owner.spawn(self._read(key, standby), name=f"standby {key}")
        self._ready[key] = standby
        self._tell(f"{hop} stands by")
        self._feed(key, standby)

    def _feed(self, key: int, standby: Standby) -> None:
        shadow, history = standby.shadow, standby.history
        chunk = self._machine.chunk_tokens
        while run := shadow.next(len(history), number=self._machine.take_number(), chunk=chunk):
            data = history.read(run.start, run.end)
            meta = TensorMeta(self._dtype, (1, run.end - run.start, self._hidden_size))
            bandwidth = self._router.bandwidth(standby.hop.peer)
            codec = choose_codec(len(data), bandwidth, self._codec)
            try:
                standby.link.post(
                    run.number, run.start, data, meta, codec=codec, deadline=STEP_SECONDS
                )
            except (PeerFailure, RemoteError) as error:
                self._failed(key, standby, error)
                return

    async def _read(self, key: int, standby: Standby) -> None:
        while True:
            try:
                event = await standby.link.receive()
            except (PeerFailure, RemoteError) as error:
                self._failed(key, standby, error)
                return
            if isinstance(event, HopOutput):
                standby.shadow.finished(event.number)
            elif isinstance(event, Refused) and standby.shadow.refused(event.number):
                if not event.error.transient:
                    self._failed(key, standby, event.error)
                    return
                await asyncio.sleep(BUSY_SECONDS)
            self._feed(key, standby)

    def _failed(self, key: int, standby: Standby, error: PeerFailure | RemoteError) -> None:
        if isinstance(error, PeerFailure) and standby.link.rested:
            error = standby.link.ended_idle()
        if self._ready.get(key) is standby:
            self._tell(f"{standby.hop}, which stood by, is lost: {error}")
            self._router.observe_failure(standby.hop.peer, error)
            self._drop(key, standby)
            self._changed.set()

    def _drop(self, key: int, standby: Standby) -> None:
        del self._ready[key]
        standby.link.abort()
        if standby.reader is not None and standby.reader is not asyncio.current_task():
            standby.reader.cancel()
