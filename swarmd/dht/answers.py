"""What a node answers to each request."""

from __future__ import annotations

import ipaddress
import os

from kademlia.node import Node

from swarmd.clock import Clock
from swarmd.dht.addresses import pack_nodes
from swarmd.dht.config import DhtConfig
from swarmd.dht.messages import (
    NONCE_BYTES,
    PutReply,
    PutRequest,
    QueryRequest,
    Want,
    ping_message,
)
from swarmd.dht.records import Record, RecordReader
from swarmd.dht.storage import PutResult, PutStatus, RecordStorage, digest_of
from swarmd.dht.table import Router
from swarmd.dht.tokens import TokenMint
from swarmd.identity import PEER_ID_BYTES, Identity

__all__ = ["Answers", "may_refer"]

Host = tuple[str, int]


class Answers:
    """Takes a request's arguments and who asks; returns the reply's values, or None for a
    request of a wrong shape, which gets no answer. Nothing here waits, sends or raises."""

    def __init__(
        self,
        config: DhtConfig,
        *,
        identity: Identity,
        clock: Clock,
        router: Router,
        storage: RecordStorage,
        reader: RecordReader,
    ) -> None:
        self._swarm_ids = [key.swarm_id for key in config.keys.accepted]
        self._identity = identity
        self._clock = clock
        self._router = router
        self._storage = storage
        self._reader = reader
        self._mint = TokenMint(os.urandom(32), config.token_period)

    def ping(self, values: object, key: int) -> list[object] | None:
        """`key` is the number of the swarm key by which it was asked: who asks knows that one."""
        if type(values) is not tuple or len(values) != 1:
            return None
        nonce = values[0]
        if type(nonce) is not bytes or len(nonce) != NONCE_BYTES:
            return None
        clock_ms = int(self._clock.wall() * 1000)
        signature = self._identity.sign(ping_message(self._swarm_ids[key], nonce, clock_ms))
        return [self._identity.public_key, signature, clock_ms]

    def query(self, values: object, host: Host) -> list[object] | None:
        request = QueryRequest.parse(values)
        if request is None:
            return None
        nodes = b""
        if Want.NODES in request.want:
            asker = Node(bytes(PEER_ID_BYTES), *host)
            near = self._router.find_neighbors(Node(request.key), self._router.ksize, exclude=asker)
            nodes = pack_nodes(
                (n.id, n.ip, n.port) for n in near if may_refer(host[0], n.ip)
            )  # fmt: skip
        now = self._clock.monotonic()
        wall = self._clock.wall()
        live: list[Record] = self._storage.live(request.key, wall)
        chosen: list[Record] = []
        left = len(live)
        if Want.RECORDS in request.want and self._mint.check(request.token, host[0], now):
            chosen, left = request.choose(live, len(nodes))
        return [
            nodes,
            self._mint.mint(host[0], now),
            len(live),
            digest_of(live),
            left,
            [record.raw for record in chosen],
            self._storage.more(request.key, wall),
        ]

    def put(self, values: object, host: Host) -> list[object] | None:
        request = PutRequest.parse(values)
        if request is None:
            return None
        wall = self._clock.wall()
        held = b""
        if not self._mint.check(request.token, host[0], self._clock.monotonic()):
            status = PutStatus.TOKEN
        elif self._is_far(request.key):
            status = PutStatus.FAR
        elif not isinstance(record := self._reader.parse(request.record, wall), Record):
            status = PutStatus.BAD
        else:
            result: PutResult = self._storage.put(request.key, record, wall, host[0])
            status = result.status
            held = b"" if result.held is None else result.held.raw
        return PutReply(status, len(self._storage.live(request.key, wall)), held).pack()

    def _is_far(self, key: bytes) -> bool:
        target = Node(key)
        mine = target.distance_to(self._router.node)
        nearer = sum(target.distance_to(node) < mine for node in self._router.contacts())
        return bool(nearer >= 2 * self._router.ksize)


def may_refer(asker: str, contact: str) -> bool:
    """A loopback address means something else on every machine: it stays on its own."""
    return ipaddress.ip_address(asker).is_loopback or not (
        ipaddress.ip_address(contact).is_loopback
    )
