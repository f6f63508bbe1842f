"""How many requests one address may make. Pure: token buckets that are told the time."""

from __future__ import annotations

import functools
import ipaddress

from swarmd.dht.config import DhtConfig
from swarmd.dht.patience import Memory

__all__ = ["BURST", "Rates"]

BURST = 2.0
"""Seconds' worth of requests that may come at once; reading a long table is a burst."""


class Rates:
    """Requests a second for each source: writes (a signature to check each) and others.

    A source is an IPv4 address or an IPv6 /64, of which one machine has all addresses. Loopback is
    exempt: all processes of a machine share that address, and who is on the machine has better
    means to be a nuisance.
    """

    def __init__(self, config: DhtConfig) -> None:
        self._per_second = (config.max_queries_per_second, config.max_puts_per_second)
        self._buckets: Memory[tuple[bool, bytes], tuple[float, float]] = Memory(
            config.max_remembered
        )

    def allow(self, host: str, is_write: bool, now: float) -> bool:
        """Count a request of `host` at `now` (monotonic seconds); False: it is one too many."""
        source = _source(host)
        if source is None:
            return True
        rate = self._per_second[is_write]
        level, since = self._buckets.get((is_write, source)) or (rate * BURST, now)
        level = min(level + (now - since) * rate, rate * BURST)
        allowed = level >= 1
        self._buckets[is_write, source] = (level - allowed, now)
        return allowed


@functools.lru_cache(maxsize=4096)
def _source(host: str) -> bytes | None:
    ip = ipaddress.ip_address(host)
    return None if ip.is_loopback else ip.packed[:8]
