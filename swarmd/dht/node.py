"""One node of the DHT: join, lookup, read, place."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import socket
from collections.abc import Sequence
from dataclasses import dataclass

from kademlia.network import Server
from kademlia.node import Node

from swarmd.clock import Clock
from swarmd.dht.config import DhtConfig
from swarmd.dht.crawl import MergeCrawl
from swarmd.dht.host_names import FAMILIES, resolve
from swarmd.dht.messages import PutReply, PutRequest, QueryReply, QueryRequest, Want
from swarmd.dht.patience import Memory
from swarmd.dht.protocol import SwarmProtocol
from swarmd.dht.reading import Reading, read_pages
from swarmd.dht.records import INDEX_KEY, Record
from swarmd.dht.shards import Depth, Shard
from swarmd.dht.storage import PutStatus, RecordStorage
from swarmd.errors import PortInUse, UsageError
from swarmd.identity import Identity, PeerId
from swarmd.peers import Address
from swarmd.tasks import TaskOwner

__all__ = ["Found", "Placement", "SwarmServer"]

MAX_KEYS_WRITTEN = 64
"""Keys whose holders a publisher remembers; it writes under two, and under few others on its way
through a cascade."""
MORE_VOTES = 2
"""Holders that must say `more` before a reader goes deeper: one liar alone makes no work."""
log = logging.getLogger(__name__)

_LEAST_JOIN_TIME = 1.0
"""Seconds for the lookup of our own id, even if the first contact answered late."""


@dataclass(frozen=True, slots=True)
class Placement:
    """How a write under one key ended: how many hold the record, whether most had no room, and a
    newer record that was met."""

    holders: int
    is_full: bool
    newer: Record | None


@dataclass(frozen=True, slots=True)
class Found:
    """The merged records under a key, and whether its holders sent somebody deeper."""

    records: list[Record]
    more: bool


@dataclass(slots=True)
class _Replicas:
    nodes: dict[bytes, Node]
    until: float


class SwarmServer(Server):  # type: ignore[misc, unused-ignore]
    """The package's Server with joining kept, and `get`, `set` and the state file left aside.

    Of its tasks, all belong to `owner`. Every method that waits raises DhtError once it is
    closed, and nothing else for whatever the network does.
    """

    def __init__(
        self,
        config: DhtConfig,
        identity: Identity,
        *,
        clock: Clock,
        owner: TaskOwner,
        on_contact: asyncio.Event,
    ) -> None:
        """`on_contact` is set whenever a new contact entered the table."""
        super().__init__(config.k, config.alpha, bytes(identity.peer_id))
        self.storage = RecordStorage(config)  # as an argument the package drops it: empty is false
        self._config = config
        self._identity = identity
        self._clock = clock
        self._owner = owner
        self._on_contact = on_contact
        self._replicas: Memory[bytes, _Replicas] = Memory(MAX_KEYS_WRITTEN)
        self._depth = Depth(config.probe_period)
        self._version = 4
        self.expected: dict[Address, PeerId] = {}
        """Who must answer at some addresses; another node there does not count as an answer."""

    # --- the socket ---

    def _create_protocol(self) -> SwarmProtocol:
        return SwarmProtocol(
            self.node,
            self.storage,
            self._config,
            identity=self._identity,
            clock=self._clock,
            owner=self._owner,
            on_contact=self._on_contact.set,
            version=self._version,
        )

    async def listen(self, port: int, interface: str = "127.0.0.1") -> Address:
        """Bind. Raises PortInUse, or UsageError for an address that is not ours."""
        host = await resolve(interface)
        where = Address(interface, port)
        if host is None:
            raise UsageError(f"cannot listen on {where}: give an IP address of this machine")
        self._version = 6 if ":" in host else 4
        sock = socket.socket(FAMILIES[self._version], socket.SOCK_DGRAM)
        try:
            if self._version == 6:
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            sock.setblocking(False)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, self._config.receive_buffer)
            sock.bind((host, port))
            loop = asyncio.get_running_loop()
            self.transport, self.protocol = await loop.create_datagram_endpoint(
                self._create_protocol, sock=sock
            )
        except OSError as exc:
            sock.close()
            if exc.errno == errno.EADDRINUSE:
                raise PortInUse(
                    f"UDP port {port} on {interface} is in use; "
                    "give another with --port, or leave --port out"
                ) from exc
            raise UsageError(
                f"cannot listen on {where}: {exc.strerror or exc}; "
                "give an IP address of this machine and a port above 1023"
            ) from exc
        except BaseException:
            sock.close()
            raise
        return Address(*sock.getsockname()[:2]) if sock.fileno() >= 0 else where

    def refresh_table(self, interval: float = 3600) -> None:
        """Nothing: the directory owns the refresh task."""

    async def wait_closed(self) -> None:
        """After `stop`: wait until the socket is gone."""
        try:
            async with asyncio.timeout(self._config.close_timeout):
                await self.protocol.closed.wait()
        except TimeoutError:
            self.transport.abort()

    # --- joining ---

    async def bootstrap(
        self,
        addrs: Sequence[Address],
        timeout: float = 5.0,
    ) -> int:
        """Verify contacts, and look up our own id as soon as the first of them answered.

        Returns how many verified contacts the table has then, or 0 if none of `addrs` answered;
        the others go on being tried until `timeout` seconds have passed.
        """
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout
        tries = max(self._config.tries, int(timeout / self.protocol.patience.rto(("", 0))))
        tasks = {self.protocol.spawn(self._join_at(a, tries), f"join {a}") for a in addrs}
        waiting, joined = set(tasks), False
        try:
            while waiting and not joined and (left := deadline - loop.time()) > 0:
                done, waiting = await asyncio.wait(
                    waiting, timeout=left, return_when=asyncio.FIRST_COMPLETED
                )
                joined = any(not t.cancelled() and not t.exception() and t.result() for t in done)
        finally:
            if not joined:
                for task in tasks:
                    task.cancel()
        if not joined:
            if tasks:
                await asyncio.wait(tasks)  # they were cancelled; this takes a turn of the loop
            return 0
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout_at(max(deadline, loop.time() + _LEAST_JOIN_TIME)):
                await self.lookup(self.node.id, want=self.ksize)
        return len(self.protocol.router)

    async def _join_at(self, address: Address, tries: int) -> bool:
        host = await resolve(address.host, self._version)
        if host is None:
            return False
        found = await self.protocol.call_ping(Node(bytes(20), host, address.port), tries)
        if found is None or found.id == self.node.id:
            return False
        meant = self.expected.get(address)
        if meant is not None and found.id != meant:
            log.warning(
                "peer %s answers at %s, where %s was expected; ask for a new invite",
                PeerId(found.id).short,
                address,
                meant.short,
            )
            return False
        await self.protocol.add_verified(found)
        return True

    async def _refresh_table(self) -> None:
        """Look up a random id in each bucket (Kademlia, section 2.3), one after another."""
        for key in self.protocol.get_refresh_ids()[: self.ksize]:
            await self.lookup(key)

    async def ping_oldest(self) -> None:
        """Ask the contact of each bucket that was heard of longest ago whether it lives."""
        heads = self.protocol.router.heads()
        for node in await self.protocol.together(
            [self.protocol.call_ping(head) for head in heads], "ping"
        ):
            if node is not None:
                await self.protocol.add_verified(node)

    # --- reading ---

    async def lookup(
        self, key: bytes, want: int | None = None, reading: Reading | None = None
    ) -> list[tuple[Node, QueryReply]]:
        """The `want` (else: as many as there are replicas) live nodes nearest to `key`."""
        target = Node(key)
        crawl = MergeCrawl(
            self.protocol,
            target,
            self.protocol.router.find_neighbors(target, self.ksize),
            self.ksize,
            self.alpha,
            want=want or self._config.replicas,
            timeout=self._config.lookup_timeout,
            reading=reading,
        )
        return await crawl.find()

    async def read(self, key: bytes) -> Found:
        """The merged records under `key`, our own store's included; at worst those read in time."""
        reading = Reading(key, self.protocol.reader, self._clock)
        now = self._clock.wall()
        own = self.storage.live(key, now)
        reading.take(record.raw for record in own)
        holders = await self.lookup(key, reading=reading)
        with contextlib.suppress(TimeoutError):  # what was read is true; the next read goes on
            async with asyncio.timeout(self._config.lookup_timeout):
                await read_pages(self.protocol, reading, holders)
        votes = [reply.more for _, reply in holders] + [self.storage.more(key, now)]
        voters = len(holders) + bool(own)
        return Found(reading.records, sum(votes) >= max(1, min(MORE_VOTES, voters)))

    # --- writing ---

    async def place(self, key: bytes, record: Record) -> Placement:
        """Put `record` on the nodes nearest to `key`, and into our own store if we serve.

        The nodes that took the last one are used again while they are the nearest that we know;
        that saves the lookup (57 datagrams become 16).
        """
        replicas = self._replicas.get(key)
        if replicas is not None and self._are_current(key, replicas):
            replies = await self._put_all(list(replicas.nodes.values()), key, record)
            wanted = self._config.replica_quorum * len(replicas.nodes)
            replicas.nodes = {node.id: node for node, _ in replies}  # without the dead
            if len(replies) >= wanted:
                return self._placement(key, record, replies)
        nodes = [node for node, _ in await self.lookup(key)]
        replies = await self._put_all(nodes, key, record)
        until = self._clock.monotonic() + self._config.replica_period
        self._replicas[key] = _Replicas({node.id: node for node, _ in replies}, until)
        return self._placement(key, record, replies)

    async def place_in_shard(self, record: Record) -> Placement:
        """Put `record` under the shallowest of its model's keys that has room.

        Answers for the key at which it lies then, or for the deepest, which was full. A tombstone
        goes where the last record went, and no further.
        """
        ascent = self._depth.ascend(self._clock.monotonic())
        best: Placement | None = None
        newer: list[Record] = []
        while (depth := ascent.at) is not None:
            placement = await self.place(Shard.of(record.info, depth).key, record)
            newer += [placement.newer] if placement.newer is not None else []
            if best is None or not placement.is_full:
                best = placement
            ascent.tried(placement.is_full)
            if placement.newer is not None or (record.is_tombstone and not placement.is_full):
                break
        assert best is not None
        newest = max(newer, key=lambda other: other.info.sequence, default=None)
        return Placement(best.holders, best.is_full, newest)

    def keys_of(self, record: Record) -> tuple[bytes, bytes]:
        """The two keys under which `record` lies now."""
        return (Shard.of(record.info, self._depth.settled).key, INDEX_KEY)

    async def repair(self, record: Record) -> None:
        """Hand `record` to contacts that are nearer to its keys than those who hold it.

        Without it, a node that announced before the swarm had grown would be invisible until its
        next announcement: readers ask the nearest only.
        """
        for key in self.keys_of(record):
            replicas = self._replicas.get(key) or _Replicas({}, 0.0)
            self._replicas[key] = replicas
            newcomers = self._newcomers(key, replicas)
            holders = [*replicas.nodes.values()]
            holders += [node for node, _ in await self._put_all(newcomers, key, record)]
            nearest = sorted(holders, key=Node(key).distance_to)[: self._config.replicas]
            replicas.nodes = {node.id: node for node in nearest}

    def _newcomers(self, key: bytes, replicas: _Replicas) -> list[Node]:
        """Contacts that belong to the nearest of `key`, and are not among `replicas`."""
        target, limit = Node(key), self._config.replicas
        nearest = self.protocol.router.find_neighbors(target, limit)
        if len(replicas.nodes) >= limit:
            held = sorted(map(target.distance_to, replicas.nodes.values()))
            nearest = [node for node in nearest if target.distance_to(node) < held[limit - 1]]
        return [node for node in nearest if node.id not in replicas.nodes]

    def _are_current(self, key: bytes, replicas: _Replicas) -> bool:
        return (
            bool(replicas.nodes)
            and self._clock.monotonic() < replicas.until
            and not self._newcomers(key, replicas)
        )

    def _placement(
        self, key: bytes, record: Record, replies: list[tuple[Node, PutReply]]
    ) -> Placement:
        now = self._clock.wall()
        statuses = [reply.status for _, reply in replies]
        met: list[Record] = []
        if self._config.serving:
            own = self.storage.put(key, record, now)
            statuses.append(own.status)
            met += [own.held] if own.held is not None else []
        for _, reply in replies:
            other = self.protocol.reader.parse(reply.held, now)
            if reply.status is PutStatus.STALE and isinstance(other, Record):
                met.append(other)
        ours = [other for other in met if other.slot == record.slot]
        return Placement(
            statuses.count(PutStatus.OK),
            2 * statuses.count(PutStatus.FULL) > len(statuses),
            max(ours, key=lambda r: r.info.sequence, default=None),
        )

    async def _put_all(
        self, nodes: list[Node], key: bytes, record: Record
    ) -> list[tuple[Node, PutReply]]:
        coros = [self._put(node, key, record) for node in nodes]
        answers = await self.protocol.together(coros, "put")
        return [answer for answer in answers if answer is not None]

    async def _put(self, node: Node, key: bytes, record: Record) -> tuple[Node, PutReply] | None:
        for _ in range(2):  # a token may have become too old since
            token = self.protocol.token_of(node)
            if token is None:
                status = await self.protocol.call_query(node, QueryRequest(key, Want.STATUS))
                if status is None:
                    return None
                token = status.token
            reply = await self.protocol.call_put(node, PutRequest(key, token, record.raw))
            if reply is None:
                return None
            if reply.status is not PutStatus.TOKEN:
                return node, reply
        return None
