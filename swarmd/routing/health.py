"""What a client learned of its peers by using them: who to leave alone, how long to wait.

Pure state: `now` is handed in, in monotonic seconds. A client keeps one of each for its life.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TypeVar

from swarmd.identity import PeerId
from swarmd.peers import PeerInfo

__all__ = ["Deadlines", "Health", "RttTable"]

MAX_PEERS = 4096  # peers remembered in each table; the least recently updated is forgotten first
_SLOWEST_US = 10**9  # a clamp for announced times; beyond it every deadline is the upper limit

_Value = TypeVar("_Value")


def _remember(table: dict[PeerId, _Value], peer_id: PeerId, value: _Value) -> None:
    """Put as the newest entry; forget the oldest ones beyond MAX_PEERS."""
    table.pop(peer_id, None)
    table[peer_id] = value
    while len(table) > MAX_PEERS:
        del table[next(iter(table))]


@dataclass(slots=True)
class _Ban:
    until: float
    seconds: float


class Health:
    """Bans for failures that blame the peer, and a list of those that asked for a pause.

    The two are kept apart. A banned peer is not in the graph: hand `banned(now)` to
    `RouteQuery.banned`. A peer that answered Busy did nothing wrong: hand `avoid(now)` to
    `RouteQuery.avoid`, which prices it so high that it is taken only where nothing else
    will do; that is the fallback, in one search. Where even so NoRoute is raised and bans are
    its cause, waiting until `next_release(now)` is what can help.
    """

    def __init__(
        self, *, ban: float = 15.0, max_ban: float = 600.0, forget_after: float = 600.0
    ) -> None:
        """Seconds: the first ban, the longest one, and how long after a ban its length counts."""
        self._first, self._cap, self._forget_after = ban, max_ban, forget_after
        self._bans: dict[PeerId, _Ban] = {}
        self._busy: dict[PeerId, float] = {}
        self._convicted: dict[PeerId, None] = {}
        self.bans = 0
        """Bans that were begun, convictions included."""

    def convict(self, peer_id: PeerId) -> None:
        """The peer gave wrong outputs: it is banned for good. Each of its steps succeeds, so a
        success says nothing of it."""
        self.bans += not self.is_convicted(peer_id)
        _remember(self._convicted, peer_id, None)

    def is_convicted(self, peer_id: PeerId) -> bool:
        return peer_id in self._convicted

    def failed(self, peer_id: PeerId, now: float) -> float:
        """Ban the peer from now on; returns for how many seconds.

        15 s, doubled by each failure after the last ban has ended, to 600 s. Failures during a
        ban (many sessions lose one peer at once) start it again but do not double it.
        """
        ban = self._bans.get(peer_id)
        if ban is None or now >= ban.until + self._forget_after:
            seconds = self._first
        elif now < ban.until:
            seconds = ban.seconds
        else:
            seconds = min(ban.seconds * 2, self._cap)
        self.bans += ban is None or now >= ban.until
        _remember(self._bans, peer_id, _Ban(now + seconds, seconds))
        return seconds

    def succeeded(self, peer_id: PeerId) -> None:
        """The peer did its work: its ban, the doubling and its pause are forgotten."""
        self._bans.pop(peer_id, None)
        self._busy.pop(peer_id, None)

    def busy(self, peer_id: PeerId, until: float) -> None:
        """The peer has no room until then (now + retry-after). A time that is no number is none."""
        if math.isfinite(until):
            _remember(self._busy, peer_id, until)

    def banned(self, now: float) -> frozenset[PeerId]:
        """The peers that are banned now."""
        return frozenset(
            peer_id for peer_id, ban in self._bans.items() if now < ban.until
        ) | frozenset(self._convicted)

    def avoid(self, now: float) -> frozenset[PeerId]:
        """The peers that are better left alone now, but are not banned for it."""
        return frozenset(peer_id for peer_id, until in self._busy.items() if now < until)

    def pause_left(self, peer_ids: Iterable[PeerId], now: float) -> float:
        """Seconds until each of these peers may be asked again; 0 if none is busy."""
        return max([0.0, *(self._busy.get(peer_id, now) - now for peer_id in peer_ids)])


@dataclass(slots=True)
class _Estimate:
    """Smoothed mean and deviation of RFC 6298, section 2 (alpha 1/8, beta 1/4)."""

    mean: float
    deviation: float

    def update(self, sample: float) -> None:
        self.deviation += (abs(self.mean - sample) - self.deviation) / 4
        self.mean += (sample - self.mean) / 8


class Deadlines:
    """How long a step at a peer may take before the peer counts as hung.

    Two rates are kept for each peer: seconds a block for single positions (decode), and seconds
    a position and block for chunks (prefill). With R the rate observed and D its deviation
    (RFC 6298's smoothing; the first sample sets D = R / 2), a step of `tokens` x `blocks` gets::

        measured:    max(R + 4 D, 4 R) x blocks [x tokens for a chunk]
        announced:   8 x (decode_us or tokens x prefill_us) x blocks + 3 s
        unknown:     the upper limit

    A chunk never gets less than what was measured for a single position. After `timed_out` the
    deadline doubles until the peer answers again (RFC 6298, 5.5), so a peer that became slower
    is not lost for good. The result lies in [2 s, max(60 s, 0.5 s x tokens)]: a hung peer costs
    seconds, and a long chunk on a slow CPU is not killed.
    """

    MIN = 2.0  # seconds; below that the scheduler and the network decide, not the peer
    MAX = 60.0  # seconds, for up to 120 positions
    MAX_PER_TOKEN = 0.5  # seconds; a CPU that runs 8 blocks of a 7B model, with a factor of 3
    MAX_BACKOFF = 16.0

    def __init__(self) -> None:
        self._decode: dict[PeerId, _Estimate] = {}
        self._prefill: dict[PeerId, _Estimate] = {}
        self._backoff: dict[PeerId, float] = {}

    def observe(self, peer_id: PeerId, tokens: int, blocks: int, seconds: float) -> None:
        """A step of `tokens` positions through `blocks` blocks took this long, trip included."""
        _check_work(tokens, blocks)
        if not (math.isfinite(seconds) and seconds >= 0):
            return
        self._backoff.pop(peer_id, None)
        table = self._decode if tokens == 1 else self._prefill
        sample = seconds / (tokens * blocks)
        estimate = table.get(peer_id)
        if estimate is None:
            estimate = _Estimate(sample, sample / 2)
        else:
            estimate.update(sample)
        _remember(table, peer_id, estimate)

    def timed_out(self, peer_id: PeerId) -> None:
        """The peer missed its deadline: double the next ones, up to 16 times."""
        factor = min(self._backoff.get(peer_id, 1.0) * 2, self.MAX_BACKOFF)
        _remember(self._backoff, peer_id, factor)

    def deadline(
        self, peer_id: PeerId, tokens: int, blocks: int, announced: PeerInfo | None = None
    ) -> float:
        """Seconds to wait for a step; `announced` is used as long as nothing was measured."""
        _check_work(tokens, blocks)
        highest = max(self.MAX, self.MAX_PER_TOKEN * tokens)
        seconds = _allowed(self._decode.get(peer_id), blocks)
        if tokens > 1:
            chunk = _allowed(self._prefill.get(peer_id), blocks * tokens)
            seconds = chunk if chunk is None or seconds is None else max(chunk, seconds)
        if seconds is None:
            seconds = _announced(announced, tokens, blocks)
        if seconds is None:
            seconds = highest
        return min(max(seconds * self._backoff.get(peer_id, 1.0), self.MIN), highest)


def _allowed(estimate: _Estimate | None, units: int) -> float | None:
    """Seconds for that many units of measured work; None if nothing was measured."""
    if estimate is None:
        return None
    return max(estimate.mean + 4 * estimate.deviation, 4 * estimate.mean) * units


def _announced(peer: PeerInfo | None, tokens: int, blocks: int) -> float | None:
    """8 x the announced time + 3 s; None where no speed is announced.

    A chunk's position never takes longer than a single one, so `decode_us` stands in for a
    `prefill_us` of 0, which a GPU may honestly announce.
    """
    if peer is None or peer.decode_us <= 0:
        return None
    decode_us = min(peer.decode_us, _SLOWEST_US)
    chunk_us = tokens * (min(peer.prefill_us, _SLOWEST_US) if peer.prefill_us > 0 else decode_us)
    return 8 * (decode_us if tokens == 1 else max(decode_us, chunk_us)) / 1e6 * blocks + 3.0


def _check_work(tokens: int, blocks: int) -> None:
    if tokens < 1 or blocks < 1:
        raise ValueError(f"no step: {tokens} positions through {blocks} blocks")


class RttTable:
    """Round trips to peers in seconds, smoothed: each sample moves the mean by an eighth
    (RFC 6298). A sample that is negative or no number is dropped."""

    def __init__(self, alpha: float = 1 / 8) -> None:
        self._alpha = alpha
        self._rtts: dict[PeerId, float] = {}

    def observe(self, peer_id: PeerId, seconds: float) -> None:
        """One measured round trip."""
        if not (math.isfinite(seconds) and seconds >= 0):
            return
        known = self._rtts.get(peer_id, seconds)
        _remember(self._rtts, peer_id, known + self._alpha * (seconds - known))

    def get(self, peer_id: PeerId) -> float | None:
        """The smoothed round trip, or None if none was observed."""
        return self._rtts.get(peer_id)

    def snapshot(self) -> dict[PeerId, float]:
        """All of them, as :class:`Measurements` takes them."""
        return dict(self._rtts)
