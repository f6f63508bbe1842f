"""How long to wait for whom: round trips, timeouts that follow from them, and who is ignored."""

from __future__ import annotations

from collections import OrderedDict
from typing import Generic, TypeVar

from swarmd.dht.config import DhtConfig

__all__ = ["Memory", "Patience"]

K = TypeVar("K")
V = TypeVar("V")
Host = tuple[str, int]

_GAIN = 0.125
"""Weight of a new sample (RFC 6298, alpha)."""


class Memory(Generic[K, V]):
    """A dictionary of the `capacity` entries that were written last."""

    def __init__(self, capacity: int) -> None:
        self._entries: OrderedDict[K, V] = OrderedDict()
        self._capacity = capacity

    def __len__(self) -> int:
        return len(self._entries)

    def __setitem__(self, key: K, value: V) -> None:
        self._entries[key] = value
        self._entries.move_to_end(key)
        if len(self._entries) > self._capacity:
            self._entries.popitem(last=False)

    def get(self, key: K) -> V | None:
        return self._entries.get(key)

    def values(self) -> list[V]:
        return list(self._entries.values())

    def pop(self, key: K) -> None:
        self._entries.pop(key, None)


class Patience:
    """Timeouts in seconds for each address. Pure: it is told of samples and of the time."""

    def __init__(self, config: DhtConfig) -> None:
        self._config = config
        self._rtts: Memory[Host, float] = Memory(config.max_remembered)
        self._usual: float | None = None
        self._ignored: Memory[Host, tuple[float, float]] = Memory(config.max_remembered)

    def rtt(self, host: Host) -> float:
        """The smoothed round trip; of a stranger, what is usual here."""
        known = self._rtts.get(host)
        if known is not None:
            return known
        return self._config.initial_rtt if self._usual is None else self._usual

    def rto(self, host: Host) -> float:
        """How long to wait for an answer before the request is sent again or given up."""
        return min(max(4 * self.rtt(host), self._config.min_rto), self._config.max_rto)

    def soft_timeout(self, host: Host) -> float:
        """After how long a lookup stops waiting for this peer alone."""
        return min(max(2.5 * self.rtt(host), self._config.min_soft_timeout), self.rto(host))

    def late_after(self, host: Host) -> float:
        """After how long a lookup asks somebody else as well."""
        return min(max(2.5 * self.rtt(host), self._config.min_late), self.soft_timeout(host))

    def sample(self, host: Host, rtt: float) -> None:
        """A measured round trip of a request that was sent once (Karn's rule)."""
        known = self._rtts.get(host)
        self._rtts[host] = rtt if known is None else known + _GAIN * (rtt - known)
        usual = self._usual
        self._usual = rtt if usual is None else usual + _GAIN * (rtt - usual)

    def failed(self, host: Host, now: float) -> None:
        """All tries failed: ignore what others say of this address, longer with each failure."""
        _, period = self._ignored.get(host) or (0.0, self._config.ignore_period / 2)
        period = min(2 * period, self._config.max_ignore_period)
        self._ignored[host] = (now + period, period)

    def answered(self, host: Host) -> None:
        """It lives: forget its failures."""
        self._ignored.pop(host)

    def is_ignored(self, host: Host, now: float) -> bool:
        """Whether gossip about this address is ignored at `now` (monotonic seconds)."""
        entry = self._ignored.get(host)
        return entry is not None and now < entry[0]
