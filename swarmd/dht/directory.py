"""A node's view of the swarm: what the rest of swarmd calls."""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import random
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType

from swarmd.clock import Clock, SystemClock
from swarmd.dht.config import DhtConfig
from swarmd.dht.node import Found, SwarmServer
from swarmd.dht.peers_file import Entry, PeersFile
from swarmd.dht.records import INDEX_KEY, Record, Slot, merge, pack
from swarmd.dht.shards import Frontier, Shard
from swarmd.errors import BootstrapFailed, DhtError, StateError
from swarmd.identity import Identity, PeerId
from swarmd.peers import Address, ModelId, PeerInfo, PeerState
from swarmd.tasks import TaskOwner, periodic

__all__ = ["DhtStatistics", "Directory"]

log = logging.getLogger(__name__)

MAX_JUMPS = 2
"""Times that one announcement jumps past a newer record of our own."""


@dataclass(frozen=True, slots=True)
class DhtStatistics:
    """Counters since the node was started. `drops` counts datagrams by reason, both ways."""

    datagrams_in: int
    datagrams_out: int
    bytes_in: int
    bytes_out: int
    drops: Mapping[str, int]
    records: int
    contacts: int
    pending: int
    """Requests that wait for a reply now."""
    clock_offset: float | None = None
    """Seconds by which the clocks of our contacts are ahead of ours (median); None: unknown."""


class Directory:
    """A node's view of the swarm: announce, fetch, models.

    `async with` binds the socket on entry and leaves no task and no socket behind on exit. One
    socket, of one address family: see DhtConfig. Leaving does not withdraw the announcement; call
    `withdraw` for that. All methods but `statistics` raise DhtError before entry and after exit.
    """

    def __init__(
        self,
        config: DhtConfig,
        identity: Identity,
        *,
        clock: Clock | None = None,
        rng: random.Random | None = None,
        peers_file: PeersFile | None = None,
    ) -> None:
        """`rng` only spreads periodic work; what must be unguessable comes from the system."""
        self._config = config
        self._identity = identity
        self._clock = clock or SystemClock()
        self._rng = rng or random.Random()
        self._peers_file = peers_file
        self._owner = TaskOwner("dht")
        self._on_contact = asyncio.Event()
        self._joined = asyncio.Event()
        self._server: SwarmServer | None = None
        self._open = False
        self._address = Address(config.host, config.port)
        self._known: list[Address] = []
        self._bootstrapped = False
        self._writing = asyncio.Lock()
        self._sequence = 0
        self._announced: Record | None = None

    async def __aenter__(self) -> Directory:
        """Bound and ready. Raises PortInUse, or UsageError for an address that is not ours."""
        server = SwarmServer(
            self._config,
            self._identity,
            clock=self._clock,
            owner=self._owner,
            on_contact=self._on_contact,
        )
        self._address = await server.listen(self._config.port, self._config.host)
        self._server, self._open = server, True
        await self._owner.__aenter__()
        config = self._config
        for name, action, interval, wake in (
            ("purge", self._purge, config.purge_period, None),
            ("rejoin", self._rejoin, config.bootstrap_retry_period, None),
            ("ping", self._check_contacts, config.ping_period, None),
            ("refresh", server._refresh_table, config.refresh_period, self._joined),
            ("remember", self._remember, config.peers_file_period, None),
        ):
            work = periodic(action, interval=interval, rng=self._rng, wake=wake)
            self._owner.spawn(work, name=name)
        self._owner.spawn(self._repair(), name="repair")
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None = None,
        exc: BaseException | None = None,
        traceback: TracebackType | None = None,
    ) -> None:
        """Closed: no task and no socket is left. Idempotent."""
        if self._server is None or not self._open:
            return
        entries = self._live()
        self._open = False
        self._server.stop()  # first, so that no datagram starts a task while tasks are ended
        try:
            await self._owner.__aexit__(exc_type, exc, traceback)
        finally:
            await self._server.wait_closed()
            await self._note(entries)  # last: it may wait for a lock, and may be cancelled there

    @property
    def address(self) -> Address:
        """Where the socket is bound."""
        return self._address

    @property
    def peer_id(self) -> PeerId:
        """Our own id."""
        return self._identity.peer_id

    @property
    def sequence(self) -> int:
        """The sequence number of our newest announcement; 0 before the first."""
        return self._sequence

    async def bootstrap(
        self,
        contacts: Sequence[Address],
        timeout: float = 5.0,
        *,
        expected: Mapping[Address, PeerId] | None = None,
    ) -> int:
        """Join by `contacts`, or without any by peers of the peers file. Returns how many
        contacts were verified.

        Goes on at the first answer while the others are still tried, for `timeout` seconds in
        all. What was given, and the file, are tried again whenever this node has lost all its
        contacts. Raises BootstrapFailed if contacts were given and none of them answered: who
        names a swarm does not want to end up in another one. `expected` says who must answer at
        some of the addresses, as an invite does; the answer's signature proves it.
        """
        server = self._running()
        server.expected.update(expected or {})
        given = [address for address in dict.fromkeys(contacts) if address != self.address]
        self._known = list(dict.fromkeys([*self._known, *given]))
        found = await server.bootstrap(given or await self._candidates(), timeout)
        self._bootstrapped = True  # from now on, lost contacts are looked for again
        if not found and given:
            names = ", ".join(map(str, given))
            raise BootstrapFailed(
                f"no answer within {timeout:g} s from {names}; check that the peer runs, that "
                "its UDP port is open, and that both use the same swarm key"
            )
        if found:
            self._joined.set()
            await self._remember()
        return found

    async def meet(self, contacts: Sequence[Address], timeout: float = 2.0) -> int:
        """Verify nodes that were found in passing, such as on the local network; returns how many
        contacts there are then, 0 if none of these answered. They are not remembered unless they
        answer, and looking for others does not end with them."""
        server = self._running()
        found = await server.bootstrap([a for a in contacts if a != self.address], timeout)
        self._bootstrapped = True
        if found:
            self._joined.set()
            await self._remember()
        return found

    async def announce(self, info: PeerInfo) -> int:
        """Publish `info`, signed and with a new sequence number; returns how many hold it.

        Our own store counts if we serve; 0 is a value, not an error. `sequence`, `announced_at`
        and `expires_at` are set here. A node whose clock is far from those of its contacts
        announces nothing, warns, and answers 0. To move to another model, `withdraw` first. Raises
        ValueError for what no holder would accept (see `records.pack`).
        """
        self._running()
        async with self._writing:
            return await self._publish(info)

    async def withdraw(self) -> None:
        """Replace the last announcement by a tombstone. Nothing was announced: nothing is done."""
        self._running()
        async with self._writing:
            if self._announced is not None:
                info = dataclasses.replace(self._announced.info, state=PeerState.GONE)
                await self._publish(info)
                self._announced = None

    async def fetch(self, model_id: ModelId, *, tombstones: bool = False) -> list[PeerInfo]:
        """Who serves `model_id` now, ourselves included: the newest record of each peer. With
        `tombstones` also who has left, for those who remember what they fetched before.

        Of a model with more than about a thousand peers it is a sample (`fetch_records`).
        """
        config = self._config
        frontier = Frontier(
            model_id, max_records=config.fetch_records, max_keys=config.fetch_keys, rng=self._rng
        )
        records: dict[Slot, Record] = {}
        while shards := frontier.next(config.fetch_parallel, len(records)):
            server = self._running()
            reads = await server.protocol.together([self._read(shard) for shard in shards], "read")
            for shard, found in reads:
                frontier.read(shard, found.more)
                for record in found.records:
                    merge(records, record)
        alive = self._alive(list(records.values()), tombstones=tombstones)
        infos = [record.info for record in alive]
        mine = [info for info in infos if info.model_id == model_id]
        return sorted(mine, key=lambda info: info.peer_id)

    async def models(self) -> dict[ModelId, str]:
        """Every model that somebody announces, id to name.

        A name is only what a peer says; of several for one model the commonest is taken.
        """
        names: dict[ModelId, Counter[str]] = {}
        for record in self._alive((await self._running().read(INDEX_KEY)).records):
            names.setdefault(record.info.model_id, Counter())[record.info.model_name] += 1
        return {
            model_id: min(counts, key=lambda name: (-counts[name], name))
            for model_id, counts in sorted(names.items())
        }

    def contacts(self) -> list[tuple[PeerId, Address]]:
        """The verified contacts in our table."""
        nodes = self._running().protocol.router.contacts()
        return [(PeerId(node.id), Address(node.ip, node.port)) for node in nodes]

    def statistics(self) -> DhtStatistics:
        """A snapshot; also after exit."""
        if self._server is None or self._server.protocol is None:
            return DhtStatistics(0, 0, 0, 0, {}, 0, 0, 0)
        protocol = self._server.protocol
        traffic = protocol.traffic
        return DhtStatistics(
            datagrams_in=traffic.datagrams_in,
            datagrams_out=traffic.datagrams_out,
            bytes_in=traffic.bytes_in,
            bytes_out=traffic.bytes_out,
            drops={str(reason): count for reason, count in traffic.drops.items()},
            records=len(self._server.storage),
            contacts=len(protocol.router),
            pending=protocol.pending,
            clock_offset=protocol.clock_offset.offset,
        )

    # --- helpers ---

    async def _read(self, shard: Shard) -> tuple[Shard, Found]:
        return shard, await self._running().read(shard.key)

    def _running(self) -> SwarmServer:
        if self._server is None or not self._open:
            raise DhtError("the directory is not open; use it inside `async with`")
        return self._server

    def _alive(self, records: list[Record], *, tombstones: bool = False) -> list[Record]:
        now = self._clock.wall()
        return [
            record
            for record in records
            if (tombstones or not record.is_tombstone) and record.info.expires_at > now
        ]

    async def _publish(self, info: PeerInfo) -> int:
        server = self._running()
        if self._is_clock_wrong():
            return 0
        for _ in range(MAX_JUMPS + 1):
            now = self._clock.wall()
            self._sequence = max(self._sequence + 1, int(now * 1000))
            info = dataclasses.replace(
                info,
                sequence=self._sequence,
                announced_at=now,
                expires_at=now + self._config.ttl,
            )
            raw = pack(info, self._identity, self._config.swarm_id)
            record = server.protocol.reader.parse(raw, now)
            assert isinstance(record, Record)
            self._announced = record
            placements = await server.protocol.together(
                [server.place_in_shard(record), server.place(INDEX_KEY, record)], "place"
            )
            if len(placements) < 2:  # closed under way
                return 0
            newer = [p.newer.info.sequence for p in placements if p.newer is not None]
            if not newer:
                break
            self._sequence = max([self._sequence, *newer])  # we forgot it; the swarm did not
        return placements[0].holders

    def _is_clock_wrong(self) -> bool:
        """Whether our clock is so far from the swarm's that announcing is of no use."""
        sight = self._running().protocol.clock_offset
        offset = sight.offset
        if offset is None or abs(offset) < self._config.clock_warn:
            return False
        refuses = abs(offset) >= self._config.clock_refuse
        log.warning(
            "this machine's clock is %.0f s %s that of the swarm (median of %d peers); set it%s",
            abs(offset),
            "behind" if offset > 0 else "ahead of",
            sight.peers,
            ": until then this node announces nothing" if refuses else "",
        )
        return refuses

    async def _candidates(self) -> list[Address]:
        remembered: list[Address] = []
        if self._peers_file is not None:
            entries = await self._peers_file.async_load()
            newest = entries[: self._config.max_bootstrap_from_file]
            remembered = [address for peer, address, _ in newest if peer != self.peer_id]
        return list(dict.fromkeys([*self._known, *remembered]))

    def _live(self) -> list[Entry]:
        now = self._clock.wall()
        return [(peer, address, now) for peer, address in self.contacts()]

    async def _note(self, entries: list[Entry]) -> None:
        """Put them into the peers file; trouble with it is worth one warning."""
        if self._peers_file is None or not entries:
            return
        try:
            await self._peers_file.async_record(entries)
        except StateError as exc:
            log.warning("%s", exc)

    # --- periodic work ---

    async def _purge(self) -> None:
        self._running().storage.purge(self._clock.wall())

    async def _rejoin(self) -> None:
        server = self._running()
        if not self._bootstrapped or self.contacts():
            return
        if await server.bootstrap(await self._candidates()):
            self._joined.set()

    async def _check_contacts(self) -> None:
        """Ping the oldest contacts, and a few known strangers, which heals a parted swarm."""
        server = self._running()
        await server.ping_oldest()
        if not self._bootstrapped:
            return
        contacts = {address for _, address in self.contacts()}
        strangers = [address for address in await self._candidates() if address not in contacts]
        count = min(self._config.strangers_tried, len(strangers))
        if count:
            await server.bootstrap(self._rng.sample(strangers, count))

    async def _remember(self) -> None:
        """Note the live contacts in the peers file."""
        await self._note(self._live())

    async def _repair(self) -> None:
        """Hand our last record to contacts that came after it was placed."""
        while True:
            await self._on_contact.wait()
            await asyncio.sleep(self._config.repair_delay * self._rng.uniform(0.8, 1.2))
            self._on_contact.clear()
            async with self._writing:
                record = self._announced
                if record is not None and record.refusal(self._clock.wall()) is None:
                    await self._running().repair(record)
