"""Every timeout, limit and interval of the DHT, each with its unit and its reason."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field

from swarmd.errors import UsageError

__all__ = ["PUBLIC_SWARM_KEY", "DhtConfig"]

PUBLIC_SWARM_KEY = hashlib.sha256(b"swarmd public swarm").digest()
"""The key of the public swarm. Everybody knows it: it keeps strays out, not enemies."""

MAX_TTL = 300.0
"""Seconds; the longest life that any holder grants a record, whatever its publisher asks."""


@dataclass(frozen=True, slots=True)
class DhtConfig:
    """How one node takes part. Seconds and bytes unless said otherwise. Raises UsageError.

    One socket speaks one address family, and this version speaks IPv4 only: a dual-stack socket
    would gossip `::ffff:a.b.c.d`, which nobody else can reach.
    """

    host: str = "127.0.0.1"
    """IPv4 address to bind; loopback unless told otherwise."""
    port: int = 0
    """UDP port; 0 takes a free one. The daemon's TCP server uses the same number."""
    serving: bool = True
    """False: a client, which asks but never answers, and so never enters anybody's table."""
    swarm_key: bytes = field(default=PUBLIC_SWARM_KEY, repr=False)
    """32 bytes; datagrams that were not made with it are dropped before they are parsed."""

    ttl: float = 150.0
    """Life of a record; two lost renewals of 60 s are tolerated."""
    announce_period: float = 60.0
    """How often the announcer in `node/` renews; it must fit into `ttl` at least twice."""

    k: int = 20
    """Contacts a bucket and nodes a reply (Kademlia, section 2.2); 20 compact ones are 520 B."""
    alpha: int = 3
    """Queries of a lookup that are awaited at a time (Kademlia, section 2.3)."""
    replicas: int = 8
    """Nodes that hold a record; with 30 % dead, 0.3^8 = 7e-5 of the records are lost."""

    initial_rtt: float = 0.15
    """Round trip assumed of a node as long as nothing was measured at all."""
    min_rto: float = 0.3
    """Least wait for a reply before the second try; a busy interpreter pauses that long."""
    max_rto: float = 1.5
    """Longest such wait."""
    tries: int = 2
    """Sends of a request; one lost datagram must not evict anybody."""
    min_soft_timeout: float = 0.1
    """After max(this, 2.5 round trips) a lookup no longer waits for a peer that is silent."""
    min_late: float = 0.02
    """After max(this, 2.5 round trips) a lookup asks the next peer beside the silent one."""
    lookup_timeout: float = 10.0
    """A lookup ends with what it has; a safety net, lookups take tenths of a second."""
    bootstrap_retry_period: float = 15.0
    """How often a node without any contact tries its known addresses again."""
    close_timeout: float = 1.0
    """How long closing waits for the socket to be gone."""

    max_in_flight: int = 64
    """Requests under way; more overflow a socket's buffer (measured: 16 reads, 10 s stalls)."""
    max_verifying: int = 64
    """Contacts under verification; more strangers are ignored until there is room."""
    ignore_period: float = 60.0
    """How long gossip about a contact that failed is ignored; doubles with each failure."""
    max_ignore_period: float = 600.0
    """Longest such time."""
    max_remembered: int = 4096
    """Entries of each memory about addresses (round trips, tokens, ignored contacts)."""
    receive_buffer: int = 4 * 2**20
    """SO_RCVBUF asked for; the usual 208 KiB overflowed under parallel reads."""

    ping_period: float = 300.0
    """How often the oldest contact of each bucket is asked whether it still lives."""
    strangers_tried: int = 3
    """Known addresses outside the table that are tried each time, too: heals a parted swarm."""
    refresh_period: float = 600.0
    """How often a random id in each bucket is looked up."""
    purge_period: float = 15.0
    """How often expired records are dropped; readers never see them anyway."""
    repair_delay: float = 0.5
    """How long a publisher waits after new contacts before it hands them its record."""
    replica_period: float = 290.0
    """How long the nodes that hold our record are reused; below the tokens' least life."""
    replica_quorum: float = 0.75
    """When fewer of the reused nodes than this fraction answer, a new lookup is made."""
    token_period: float = 300.0
    """A write token is good for this long at least and for twice that at most (BEP 5)."""

    max_records_per_key: int = 128
    """Records under one model's key at one holder; more are FULL."""
    max_index_records_per_model: int = 4
    """Records of one model under the index key: one would do, four survive churn."""
    max_records: int = 50_000
    """Records held in all, about 16 MiB."""
    max_parsed: int = 4096
    """Records whose verified form is remembered, so that each signature is checked once."""

    max_bootstrap_from_file: int = 20
    """Remembered peers that a bootstrap tries beside the given contacts."""
    peers_file_period: float = 300.0
    """How often live contacts are written to the peers file."""

    def __post_init__(self) -> None:
        if len(self.swarm_key) != 32:
            raise UsageError(f"a swarm key has 32 bytes, not {len(self.swarm_key)}")
        if not 0 <= self.port <= 65535:
            raise UsageError(f"port {self.port}: give 0 (any free port) or one in 1..65535")
        if not 0 < self.ttl <= MAX_TTL:
            raise UsageError(f"ttl {self.ttl:g} s: it must lie in 0..{MAX_TTL:g} s")
        if min(self.k, self.alpha, self.replicas, self.tries, self.max_in_flight) < 1:
            raise UsageError("k, alpha, replicas, tries and max_in_flight must be 1 or more")
        if self.k > 30:
            raise UsageError(f"k {self.k}: a reply of more than 30 contacts needs two datagrams")

    @property
    def swarm_id(self) -> bytes:
        """16 bytes that go into every signature, so that no record crosses into another swarm."""
        return hashlib.sha256(b"swarmd-id" + self.swarm_key).digest()[:16]
