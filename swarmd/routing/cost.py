"""What a route costs, in seconds: trips, bytes on the wire, compute, queues, short KV room.

Two modes price the two ways in which a session can run:

* **hub**: every hop answers the client, so each hop costs a full client round trip, and its
  bytes travel both ways.
* **ring**: a hop reaches its successor in half of their own round trip, where that is known and
  shorter than the way by the client; else it is as in a hub, which is what a session does where a
  link cannot be made. The client reaches the first hop, and the tail the client, in half a round
  trip.

What peers announce may be wrong or hostile: every number passes through a clamp, so that a cost
is always finite and above zero. What the client measured itself overrides what is announced.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from random import Random
from typing import Literal

from swarmd.identity import PeerId
from swarmd.peers import PeerInfo

__all__ = ["CostModel", "Costs", "Measurements", "Mode"]

Mode = Literal["hub", "ring"]


@dataclass(frozen=True, slots=True, kw_only=True)
class CostModel:
    """The constants of pricing. Seconds, bytes and bytes a second, unless the name says else."""

    default_rtt: float = 0.1
    """An unknown link is priced as a continental one: no unmeasured peer beats a near one."""
    min_rtt: float = 2e-5
    """A loopback trip; no link is faster, so nobody attracts traffic by announcing less."""
    max_rtt: float = 60.0
    """Beyond this a link is useless anyway; keeps sums finite."""
    default_bandwidth: float = 12.5e6
    """100 Mbit/s, an ordinary wide-area link."""
    min_bandwidth: float = 1e3
    """A floor, so that a broken measurement cannot price a peer at hours."""
    bytes_per_token: int = 8192
    """Bytes of one position on the wire, hidden size x item size: 4096 x bf16 unless given."""
    default_step: float = 0.02
    """One token through one block of a peer of unknown speed: an ordinary CPU."""
    default_prefill_ratio: float = 0.25
    """Where no `prefill_us` is announced, a chunk's position costs this share of a decode step."""
    min_step: float = 5e-6
    """Faster than any hardware runs a block for one token; a claim below it is a lie."""
    max_step: float = 60.0
    """Slower than any peer that is of use; keeps sums finite."""
    queue_weight: float = 1.0
    """A waiting step costs as much as one's own; less where batching is known to absorb it."""
    max_queue: int = 1000
    """Longer queues are all the same: full."""
    kv_shortage_penalty: float = 10.0
    """Too little room announced: probably Busy. Not a ban, since announcements are a minute old."""
    avoid_penalty: float = 60.0
    """For a peer that asked to be left alone for now: chosen only where nothing else will do."""
    jitter: float = 0.05
    """Clients with equal views spread over peers whose prices differ by less than this share."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Measurements:
    """What this client measured itself; peers that it never met are missing.

    `client_rtt`: seconds, round trip. `bandwidth`: bytes a second. `step_us`: microseconds for
    one token through one block; it overrides the announced `decode_us`. `prefill_us`: the same
    for each token of a chunk. `edge_rtt`: seconds by (source, target), of links between peers;
    infinite for one that does not work.
    """

    client_rtt: Mapping[PeerId, float] = field(default_factory=dict)
    bandwidth: Mapping[PeerId, float] = field(default_factory=dict)
    step_us: Mapping[PeerId, float] = field(default_factory=dict)
    edge_rtt: Mapping[tuple[PeerId, PeerId], float] = field(default_factory=dict)
    prefill_us: Mapping[PeerId, float] = field(default_factory=dict)


def _clamped(value: float | None, default: float, low: float, high: float) -> float:
    """`value` within [low, high]; `default` for what is no measurement (None, NaN, inf, < 0)."""
    if value is None or value < 0 or value != value or value == math.inf:
        return default
    return float(min(max(value, low), high))


@dataclass(frozen=True, slots=True)
class Costs:
    """Prices in seconds, each finite and at least 0; pure functions of model and measurements."""

    model: CostModel = field(default_factory=CostModel)
    measured: Measurements = field(default_factory=Measurements)

    def client_rtt(self, peer_id: PeerId) -> float:
        """The client's round trip to the peer."""
        m = self.model
        return _clamped(self.measured.client_rtt.get(peer_id), m.default_rtt, m.min_rtt, m.max_rtt)

    def edge_rtt(self, source: PeerInfo | None, target: PeerId) -> float | None:
        """The round trip of the link from `source` to `target`, as the client saw it made or
        `source` announces it; None where nobody knows, or where it is known not to work."""
        if source is None or source.peer_id == target:
            return None
        known = self.measured.edge_rtt.get((source.peer_id, target), source.rtts.get(target))
        if known is None or not (math.isfinite(known) and known >= 0):
            return None
        return min(max(known, self.model.min_rtt), self.model.max_rtt)

    def transfer(self, peer_id: PeerId, tokens: int) -> float:
        """The bytes of `tokens` positions over the bandwidth to the peer."""
        m = self.model
        bandwidth = _clamped(
            self.measured.bandwidth.get(peer_id), m.default_bandwidth, m.min_bandwidth, 1e15
        )
        return max(m.bytes_per_token, 0) * tokens / bandwidth

    def enter(self, peer_id: PeerId, tokens: int = 1) -> float:
        """Client to peer: half the client's round trip, and the bytes."""
        return self.client_rtt(peer_id) / 2 + self.transfer(peer_id, tokens)

    def leave(self, peer_id: PeerId, tokens: int = 1) -> float:
        """Peer to client: the other half, and the bytes again."""
        return self.enter(peer_id, tokens)

    def edge(self, source: PeerInfo | None, target: PeerId, tokens: int = 1) -> float | None:
        """Peer to peer over their own link: half of its round trip, and the bytes into `target`."""
        rtt = self.edge_rtt(source, target)
        return None if rtt is None else rtt / 2 + self.transfer(target, tokens)

    def hop(self, source: PeerInfo, target: PeerId, *, tokens: int = 1, mode: Mode) -> float:
        """Peer to peer: by the client; in a ring over their own link where that is cheaper."""
        hub = self.leave(source.peer_id, tokens) + self.enter(target, tokens)
        edge = self.edge(source, target, tokens) if mode == "ring" else None
        return hub if edge is None else min(hub, edge)

    def forwards(self, source: PeerInfo, target: PeerId) -> bool:
        """Whether a decode step goes over the peers' own link; a link of which nothing is known is
        worth a try."""
        edge = self.edge(source, target)
        return edge is None or edge < self.hop(source, target, mode="hub")

    def admit(self, peer: PeerInfo, kv_needed: int = 0, *, avoided: bool = False) -> float:
        """The penalty of opening a session on the peer: short KV room, or it asked for peace."""
        short = self.model.kv_shortage_penalty if peer.kv_free < kv_needed else 0.0
        return short + (self.model.avoid_penalty if avoided else 0.0)

    def step(self, peer: PeerInfo, tokens: int = 1) -> float:
        """`tokens` positions through one block, without the queue.

        One position takes the measured `step_us`, else the announced `decode_us`. A chunk takes
        `tokens` x `prefill_us`, measured or else announced, and never less than one position does.
        """
        m = self.model
        announced = peer.decode_us if peer.decode_us > 0 else m.default_step * 1e6
        decode_us = _clamped(
            self.measured.step_us.get(peer.peer_id) or None,  # 0 is no measurement
            _clamped(announced, 0.0, m.min_step * 1e6, m.max_step * 1e6),
            m.min_step * 1e6,
            m.max_step * 1e6,
        )
        if tokens <= 1:
            return decode_us / 1e6
        prefill_us = _clamped(
            self.measured.prefill_us.get(peer.peer_id) or None,
            _clamped(peer.prefill_us, 0.0, 0.0, m.max_step * 1e6)
            if peer.prefill_us > 0
            else decode_us * m.default_prefill_ratio,
            0.0,
            m.max_step * 1e6,
        )
        return max(decode_us, tokens * prefill_us) / 1e6

    def run(self, peer: PeerInfo, blocks: int, tokens: int = 1) -> float:
        """`blocks` blocks on the peer: blocks x step x (1 + queue)."""
        m = self.model
        queue = min(max(peer.queue, 0), m.max_queue) * m.queue_weight
        return blocks * self.step(peer, tokens) * (1 + queue)

    def jitter(self, rng: Random | None) -> float:
        """A factor in [1, 1 + jitter) for all that one peer costs; 1 without `rng`."""
        return 1.0 if rng is None else 1.0 + self.model.jitter * rng.random()
