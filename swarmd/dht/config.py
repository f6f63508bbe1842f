"""Every timeout, limit and interval of the DHT, each with its unit and its reason."""

from __future__ import annotations

from dataclasses import dataclass

from swarmd.errors import UsageError
from swarmd.swarm_key import PUBLIC_KEYS, KeyRing

__all__ = ["DhtConfig"]

MAX_TTL = 300.0
"""Seconds; the longest life that any holder grants a record, whatever its publisher asks."""


@dataclass(frozen=True, slots=True)
class DhtConfig:
    """How one node takes part. Seconds and bytes unless said otherwise. Raises UsageError.

    One socket speaks one address family, that of `host`: a dual-stack socket would gossip
    `::ffff:a.b.c.d`, which nobody else can reach.
    """

    host: str = "127.0.0.1"
    """IPv4 or IPv6 address to bind; loopback unless told otherwise."""
    port: int = 0
    """UDP port; 0 takes a free one. The daemon's TCP server uses the same number."""
    serving: bool = True
    """False: a client, which asks but never answers, and so never enters anybody's table."""
    keys: KeyRing = PUBLIC_KEYS
    """Datagrams that were made with none of these are dropped before they are parsed, unanswered;
    of two, the first is the one in use."""

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
    max_records_per_group: int = 4
    """Records that one public /24 or /48 may write under one key; not in a private swarm."""
    max_parsed: int = 4096
    """Records whose checked form is remembered."""
    max_checked: int = 50_000
    """Records of which 16 bytes and the verdict are remembered, so that no signature is checked
    twice; about 8 MiB."""
    probe_period: float = 150.0
    """How often a publisher whose record lies deep looks for room above; half of MAX_TTL, for
    which a full holder says `more`."""
    fetch_records: int = 1000
    """A fetch goes no deeper once it has so many records (0.25 MB): a sample is enough then."""
    fetch_keys: int = 64
    """Keys that one fetch reads at most, whatever holders say of `more`."""
    fetch_parallel: int = 8
    """Keys that a fetch reads side by side: all of depth 1."""

    max_contacts_per_group: int = 10
    """Contacts of one public /24 or /48 in the table; not limited in a private swarm."""
    max_contacts_per_group_and_bucket: int = 2
    """Such contacts in one bucket."""
    max_queries_per_second: float = 200.0
    """PING and QUERY that one source address may send; more are dropped."""
    max_puts_per_second: float = 20.0
    """PUT that one source address may send; each may cost a signature check of 0.2 ms."""
    clock_warn: float = 5.0
    """A clock this far from the median of its peers is worth a warning."""
    clock_refuse: float = 30.0
    """A clock this far off announces nothing: no holder would take it, or for too short a time."""

    max_bootstrap_from_file: int = 20
    """Remembered peers that a bootstrap tries beside the given contacts."""
    peers_file_period: float = 300.0
    """How often live contacts are written to the peers file."""

    def __post_init__(self) -> None:
        if not 0 <= self.port <= 65535:
            raise UsageError(f"port {self.port}: give 0 (any free port) or one in 1..65535")
        if not 0 < self.ttl <= MAX_TTL:
            raise UsageError(f"ttl {self.ttl:g} s: it must lie in 0..{MAX_TTL:g} s")
        if min(self.k, self.alpha, self.replicas, self.tries, self.max_in_flight) < 1:
            raise UsageError("k, alpha, replicas, tries and max_in_flight must be 1 or more")
        if not 0 < self.probe_period < MAX_TTL:
            raise UsageError(f"probe_period {self.probe_period:g} s: below {MAX_TTL:g} s, please")
        if self.k > 28:
            raise UsageError(f"k {self.k}: a reply of more than 28 contacts needs two datagrams")

    @property
    def swarm_id(self) -> bytes:
        """16 bytes that go into every signature, so that no record crosses into another swarm."""
        return self.keys.current.swarm_id
