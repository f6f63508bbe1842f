"""Under which keys the records of a model lie when one key is too small for them. Pure.

A holder keeps 128 records under one key. The keys of a model form a tree, the cascade::

    depth 0   the root                      everybody, as long as there is room
    depth 1   8 buckets by first block      those for whom the root was full
    depth d   2^(d-1) shards of a bucket    by the first d-1 bits of the peer id

A writer goes down until it finds room, and looks from time to time whether there is room above. A
reader starts at the root and goes down where holders say `more`: that they refused somebody
within the longest life of a record. So up to 128 peers cost one lookup, and nobody needs a count.

What a writer does (`Ascent`); d is the depth just tried, s the depth that had room last:

=====================  ===================================  ======================
state                  event                                then
=====================  ===================================  ======================
start                  no probe is due                      try s
start                  a probe is due, s > 0                try s-1, climbing
climbing               room at d > 0                        s = d, try d-1
climbing               room at 0                            s = 0, done
climbing               full at d, placed at d+1 just now    done
climbing               full at d                            try d+1, descending
descending             room at d                            s = d, done
descending             full at d, d is the deepest          done, no room
descending             full at d                            try d+1
=====================  ===================================  ======================
"""

from __future__ import annotations

import hashlib
import random
from dataclasses import dataclass

from swarmd.identity import PeerId
from swarmd.peers import ModelId, PeerInfo

__all__ = ["BUCKETS", "MAX_DEPTH", "Ascent", "Depth", "Frontier", "Shard"]

BUCKETS = 8
"""Keys of depth 1: eighths of the model, by a peer's first block."""
MAX_DEPTH = 12
"""The deepest shards: 128 + 1024 * (2^12 - 1) places, for four million peers of one model."""


@dataclass(frozen=True, slots=True, order=True)
class Shard:
    """One key of a model: its depth, its bucket, and `depth - 1` bits of a peer id."""

    model_id: ModelId
    depth: int = 0
    bucket: int = 0
    prefix: int = 0

    @classmethod
    def of(cls, info: PeerInfo, depth: int) -> Shard:
        """Where the record of a peer belongs at `depth`, from its signed content alone."""
        if depth == 0:
            return cls(info.model_id)
        bucket = info.span.start * BUCKETS // info.n_blocks
        return cls(info.model_id, depth, bucket, _prefix(info.peer_id, depth - 1))

    @property
    def key(self) -> bytes:
        """The DHT key, 20 bytes."""
        text = b"swarmd-model" + self.model_id
        if self.depth:
            text += bytes([self.depth, self.bucket]) + self.prefix.to_bytes(2, "big")
        return hashlib.sha256(text).digest()[:20]

    def children(self) -> list[Shard]:
        """The shards one deeper; none below the deepest."""
        if self.depth == 0:
            return [Shard(self.model_id, 1, bucket) for bucket in range(BUCKETS)]
        if self.depth == MAX_DEPTH:
            return []
        halves = (2 * self.prefix, 2 * self.prefix + 1)
        return [Shard(self.model_id, self.depth + 1, self.bucket, half) for half in halves]


def _prefix(peer: PeerId, bits: int) -> int:
    return int.from_bytes(peer[:4], "big") >> (32 - bits)


class Depth:
    """What a publisher remembers of its model between two announcements. Times are monotonic."""

    def __init__(self, probe_period: float) -> None:
        """`probe_period` must be less than the time for which a full holder says `more`: what
        keeps a key's `more` alive are the probes of those below it."""
        self.settled = 0
        self._probe_period = probe_period
        self._probe_at = 0.0

    def ascend(self, now: float) -> Ascent:
        """Begin an announcement at `now`."""
        climbs = self.settled > 0 and now >= self._probe_at
        if climbs or self.settled == 0:
            self._probe_at = now + self._probe_period
        return Ascent(self, climbs)


class Ascent:
    """One announcement: `at` is the depth to try; call `tried` until that is None."""

    def __init__(self, depth: Depth, climbs: bool) -> None:
        self._depth = depth
        self._climbs = climbs
        self._placed: int | None = None
        self.at: int | None = depth.settled - climbs

    def tried(self, is_full: bool) -> None:
        """Most holders of `at` had room, or had none."""
        at = self.at
        assert at is not None
        if not is_full:
            self._placed = self._depth.settled = at
            self.at = at - 1 if self._climbs and at > 0 else None
            return
        self._climbs = False
        self.at = None if self._placed == at + 1 or at == MAX_DEPTH else at + 1


class Frontier:
    """The shards that a reader has still to read, within a budget of records and of keys."""

    def __init__(
        self, model_id: ModelId, *, max_records: int, max_keys: int, rng: random.Random
    ) -> None:
        self._open = [Shard(model_id)]
        self._max_records = max_records
        self._max_keys = max_keys
        self._rng = rng
        self.keys = 0
        self.depth = 0
        """The deepest shard that was asked for."""

    def next(self, limit: int, records: int) -> list[Shard]:
        """At most `limit` shards to read side by side; none when all is read, or the budget is
        used up (`records` were read so far). Beyond a budget, shards are taken at random."""
        if records >= self._max_records:
            return []
        self._rng.shuffle(self._open)
        count = min(limit, self._max_keys - self.keys)
        batch, self._open = self._open[:count], self._open[count:]
        self.keys += len(batch)
        self.depth = max([self.depth, *(shard.depth for shard in batch)])
        return batch

    def read(self, shard: Shard, more: bool) -> None:
        """A shard was read; `more`: its holders refused somebody, who then went deeper."""
        if more:
            self._open += shard.children()
