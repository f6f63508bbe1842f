"""Requests and replies of one node over one UDP socket."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any, NoReturn, TypeVar

from kademlia.node import Node
from kademlia.protocol import KademliaProtocol

from swarmd.clock import Clock
from swarmd.dht.answers import Answers, may_refer
from swarmd.dht.config import DhtConfig
from swarmd.dht.envelope import (
    MAX_DATAGRAM_BYTES,
    MESSAGE_ID_BYTES,
    Drop,
    Kind,
    Message,
    datagram_keys,
    seal,
    unseal,
)
from swarmd.dht.messages import (
    NONCE_BYTES,
    Method,
    PingReply,
    PutReply,
    PutRequest,
    QueryReply,
    QueryRequest,
    is_sender,
)
from swarmd.dht.patience import Memory, Patience
from swarmd.dht.rates import RequestRates
from swarmd.dht.records import RecordReader
from swarmd.dht.skew import ClockOffset
from swarmd.dht.storage import PutStatus, RecordStorage
from swarmd.dht.table import Router
from swarmd.dht.transport import GuardedTransport, Traffic
from swarmd.errors import DhtError
from swarmd.identity import PEER_ID_BYTES, Identity
from swarmd.tasks import TaskOwner

__all__ = ["SwarmProtocol"]

T = TypeVar("T")
log = logging.getLogger(__name__)
Host = tuple[str, int]


@dataclass(frozen=True, slots=True)
class _Reply:
    sender: bytes
    values: object


@dataclass(frozen=True, slots=True)
class _Pending:
    host: Host
    reply: asyncio.Future[_Reply]


class SwarmProtocol(KademliaProtocol):  # type: ignore[misc, unused-ignore]
    """The package's protocol with its whole wire replaced.

    A datagram that comes in never raises, never logs and starts at most one task (the
    verification of a stranger); whatever is wrong with it is counted in `traffic.drops`.
    A reply counts only if it comes from the address that was asked. A contact enters the table
    only after it signed a nonce at its address: that proves that it can be reached and that the
    id is its own. Each call answers None for a peer that is silent or lies, and forgets it.
    """

    def __init__(
        self,
        node: Node,
        storage: RecordStorage,
        config: DhtConfig,
        *,
        identity: Identity,
        clock: Clock,
        owner: TaskOwner,
        on_contact: Callable[[], None],
        version: int = 4,
    ) -> None:
        """`version` of the Internet Protocol that the socket speaks, 4 or 6."""
        super().__init__(node, storage, config.k)
        self.router = Router(self, config.k, node)
        if config.keys.is_public:
            per_bucket = config.max_contacts_per_group_and_bucket
            self.router.limits = (config.max_contacts_per_group, per_bucket)
        self.traffic = Traffic()
        self.patience = Patience(config)
        self.clock_offset = ClockOffset()
        swarm_ids = [key.swarm_id for key in config.keys.accepted]
        self.reader = RecordReader(swarm_ids, parsed=config.max_parsed, checked=config.max_checked)
        self.version = version
        self.closed = asyncio.Event()
        self._config = config
        self._swarm_ids = swarm_ids
        self._keys = datagram_keys(config.keys)
        self._key_of: Memory[Host, int] = Memory(config.max_remembered)
        self._rates = RequestRates(config)
        self._clock = clock
        self._owner = owner
        self._on_contact = on_contact
        self._pending: dict[bytes, _Pending] = {}
        self._unverifiable: Memory[Host, float] = Memory(config.max_remembered)
        self._slots = asyncio.Semaphore(config.max_in_flight)
        self._verifying: set[Host] = set()
        self._tokens: Memory[Host, tuple[bytes, float]] = Memory(config.max_remembered)
        self._answers = Answers(
            config,
            identity=identity,
            clock=clock,
            router=self.router,
            storage=storage,
            reader=self.reader,
        )
        self._answer = {
            Method.QUERY: self._answers.query,
            Method.PUT: self._answers.put,
        }

    def __getattr__(self, name: str) -> NoReturn:
        # The package turns every unknown attribute into a remote call, typing errors included.
        raise AttributeError(f"{type(self).__name__} has no attribute {name!r}")

    @property
    def pending(self) -> int:
        """Requests that wait for a reply."""
        return len(self._pending)

    # --- tasks ---

    def spawn(self, coro: Coroutine[Any, Any, T], name: str) -> asyncio.Task[T]:
        """Start a task that ends with this node. Raises DhtError once it is closing."""
        try:
            return self._owner.spawn(coro, name=name, errors="log")
        except RuntimeError as exc:
            raise DhtError("the DHT node is closed") from exc

    async def together(self, coros: list[Coroutine[Any, Any, T]], name: str) -> list[T]:
        """Run all at once; the results in order, without those that failed (and were logged)."""
        tasks = [self.spawn(coro, name) for coro in coros]
        try:
            if tasks:
                await asyncio.wait(tasks)
        finally:
            for task in tasks:
                task.cancel()
        return [t.result() for t in tasks if not t.cancelled() and t.exception() is None]

    # --- what comes in ---

    def connection_made(self, transport: Any) -> None:
        self.transport = GuardedTransport(transport, self.traffic, self.version)

    def connection_lost(self, exc: Exception | None) -> None:
        self.closed.set()

    def error_received(self, exc: Exception) -> None:
        self.traffic.drop(Drop.UNSENDABLE)  # an ICMP answer, or no route: the timeout tells

    def datagram_received(self, data: bytes, addr: Any) -> None:
        try:
            self.traffic.datagrams_in += 1
            self.traffic.bytes_in += len(data)
            message = unseal(self._keys, data)
            dropped: Drop | None
            if isinstance(message, Message):
                dropped = self._receive(message, (addr[0], addr[1]))
            else:
                dropped = message
            if dropped is not None:
                self.traffic.drop(dropped)
        except Exception as exc:  # a bug of ours must not become a stranger's lever
            self.traffic.drop(Drop.BUG)
            log.debug("a bug of ours dropped a datagram: %r", exc)

    def _receive(self, message: Message, host: Host) -> Drop | None:
        if message.kind is Kind.REPLY:
            return self._receive_reply(message, host)
        if not self._config.serving:
            return Drop.CLIENT
        if len(message.body) != 3:
            return Drop.SHAPE
        method, sender, values = message.body
        if type(method) is not int or not 1 <= method <= len(Method) or not is_sender(sender):
            return Drop.SHAPE
        is_write = method == Method.PUT
        if not self._rates.allow(host[0], is_write, self._clock.monotonic()):
            return Drop.RATE
        if method == Method.PING:
            reply = self._answers.ping(values, message.key)
        else:
            reply = self._answer[Method(method)](values, host)
        if reply is None:
            return Drop.SHAPE
        if len(self._keys) > 1:
            self._key_of[host] = message.key
        body = [self.source_node.id, reply]
        sealed = seal(self._keys[message.key], Kind.REPLY, message.message_id, body)
        self.transport.sendto(sealed, host)
        if sender:
            self.welcome_if_new(Node(sender, *host))
        return None

    def _receive_reply(self, message: Message, host: Host) -> Drop | None:
        pending = self._pending.get(message.message_id)
        if pending is None or pending.reply.done():
            return Drop.UNASKED
        if pending.host != host:
            return Drop.SOURCE
        if len(message.body) != 2:
            return Drop.SHAPE
        sender, values = message.body
        if type(sender) is not bytes or len(sender) != PEER_ID_BYTES:
            return Drop.SHAPE
        if len(self._keys) > 1:
            self._key_of[host] = message.key
        pending.reply.set_result(_Reply(sender, values))
        return None

    # --- what we ask ---

    async def call_ping(self, node_to_ask: Node, tries: int | None = None) -> Node | None:
        """The verified node at this address, whatever id it has, or None."""
        host = (node_to_ask.ip, node_to_ask.port)
        nonce = os.urandom(NONCE_BYTES)
        asked_at = self._clock.wall()
        reply = await self._call(host, Method.PING, [nonce], tries)
        proof = None
        if reply is not None:
            proof = PingReply.parse(reply.values, self._swarm_ids, nonce)
        if proof is None or reply is None or proof.peer_id != reply.sender:
            self._forget(node_to_ask)
            return None
        self.patience.answered(host)
        self.clock_offset.sample(proof.peer_id, proof.clock, asked_at, self._clock.wall())
        return Node(proof.peer_id, *host)

    async def call_query(self, node: Node, query: QueryRequest) -> QueryReply | None:
        """What `node` knows of a key; its token is remembered. None forgets the node."""
        values = await self._ask(node, Method.QUERY, query.pack())
        reply = None if values is None else QueryReply.parse(values, self._config.k, self.version)
        if reply is None:
            self._forget(node)
            return None
        until = self._clock.monotonic() + self._config.token_period
        self._tokens[(node.ip, node.port)] = (reply.token, until)
        self._heard_of(node)
        return reply

    async def call_put(self, node: Node, put: PutRequest) -> PutReply | None:
        """A holder's answer to a write. None forgets the node."""
        values = await self._ask(node, Method.PUT, put.pack())
        reply = None if values is None else PutReply.parse(values)
        if reply is None:
            self._forget(node)
            return None
        if reply.status is PutStatus.TOKEN:
            self._tokens.pop((node.ip, node.port))
        self._heard_of(node)
        return reply

    def token_of(self, node: Node) -> bytes | None:
        """The write token that `node` gave us, while it is good."""
        token, until = self._tokens.get((node.ip, node.port)) or (b"", 0.0)
        return token if token and self._clock.monotonic() < until else None

    def is_ignored(self, node: Node) -> bool:
        """Whether this node failed lately, so that nobody's word for it is taken."""
        return self.patience.is_ignored((node.ip, node.port), self._clock.monotonic())

    def believes(self, informant: Node, node: Node) -> bool:
        """Whether to follow an informant's hint to `node`."""
        return (
            node.id != self.source_node.id
            and may_refer(informant.ip, node.ip)
            and not self.is_ignored(node)
        )

    async def _ask(self, node: Node, method: Method, values: list[object]) -> object | None:
        reply = await self._call((node.ip, node.port), method, values)
        if reply is None:
            return None
        if reply.sender != node.id:  # another peer lives at this address now
            self.welcome_if_new(Node(reply.sender, node.ip, node.port))
            return None
        return reply.values

    async def _call(
        self, host: Host, method: Method, values: list[object], tries: int | None = None
    ) -> _Reply | None:
        loop = asyncio.get_running_loop()
        message_id = os.urandom(MESSAGE_ID_BYTES)
        sender = bytes(self.source_node.id) if self._config.serving else b""
        body = [int(method), sender, values]
        first = self._key_of.get(host) or 0
        keys = self._keys[first:] + self._keys[:first]
        datagrams = [seal(key, Kind.REQUEST, message_id, body) for key in keys]
        assert all(len(datagram) <= MAX_DATAGRAM_BYTES for datagram in datagrams)
        # While keys change, a peer that is silent is asked by the other key as well.
        attempts = datagrams * (tries or self._config.tries)
        async with self._slots:
            reply: asyncio.Future[_Reply] = loop.create_future()
            self._pending[message_id] = _Pending(host, reply)
            try:
                for attempt, datagram in enumerate(attempts):
                    sent_at = loop.time()
                    if not self.transport.sendto(datagram, host):
                        return None
                    await asyncio.wait([reply], timeout=self.patience.rto(host))
                    if reply.done():
                        if attempt == 0:
                            self.patience.sample(host, loop.time() - sent_at)
                        return reply.result()
            finally:
                del self._pending[message_id]
        return None

    # --- who we know ---

    def welcome_if_new(self, node: Node) -> None:
        """Verify a node that showed a sign of life, if the table has room for it. Never waits."""
        host = (node.ip, node.port)
        known = self.router.at(host)
        if known is not None and known.id == node.id:
            return
        if (
            node.id == self.source_node.id
            or host in self._verifying
            or len(self._verifying) >= self._config.max_verifying
            or self._clock.monotonic() < (self._unverifiable.get(host) or 0.0)
            or not self.router.has_room(node)
            or self.transport.is_closing()
        ):
            return
        self._verifying.add(host)
        self.spawn(self._verify(node), "verify")

    async def _verify(self, node: Node) -> None:
        try:
            verified = await self.call_ping(node)
            if verified is not None:
                await self.add_verified(verified)
            else:  # behind a NAT, most likely: it can ask, but not be asked
                until = self._clock.monotonic() + self._config.ignore_period
                self._unverifiable[(node.ip, node.port)] = until
        finally:
            self._verifying.discard((node.ip, node.port))

    async def add_verified(self, node: Node) -> None:
        """Put a node that was just verified into the table.

        A known id at a new address replaces the old one only if that is silent: else anybody
        could pass our nonce on to a peer, and take that peer's place.
        """
        known = self.router.get(node.id)
        if known is not None and not known.same_home_as(node):
            still = await self.call_ping(known)
            if still is not None and still.id == known.id:
                return
        is_new = self.router.get(node.id) is None
        if self.router.add_contact(node) and is_new:
            self._on_contact()

    def get_refresh_ids(self) -> list[bytes]:
        """A random id in each bucket."""
        ids = []
        for bucket in self.router.buckets:
            low, high = bucket.range
            span = max(1, min(high, 2**160 - 1) - low + 1)
            ids.append((low + int.from_bytes(os.urandom(20), "big") % span).to_bytes(20, "big"))
        return ids

    def _heard_of(self, node: Node) -> None:
        self.patience.answered((node.ip, node.port))
        known = self.router.get(node.id)
        if known is not None and known.same_home_as(node):
            self.router.add_contact(node)  # to its bucket's tail
        else:
            self.welcome_if_new(node)

    def _forget(self, node: Node) -> None:
        self.patience.failed((node.ip, node.port), self._clock.monotonic())
        known = self.router.at((node.ip, node.port))
        if known is not None:
            self.router.remove_contact(known)
