"""How much of something who may take: token buckets, and what an address counts as. Pure.

A bucket holds up to `burst` units and earns `rate` units a second. Nothing here reads a clock:
`now` is handed in, in monotonic seconds.
"""

from __future__ import annotations

import functools
import ipaddress
from collections import OrderedDict
from collections.abc import Hashable
from typing import TypeAlias

__all__ = ["RATES_REMEMBERED", "Bucket", "Key", "Rates", "address_key"]

Key: TypeAlias = tuple[str, Hashable]

RATES_REMEMBERED = 4096
"""Keys whose rate is remembered, about 1 MiB; who is forgotten has its burst again."""


@functools.lru_cache(maxsize=4096)
def address_key(host: str, *, loopback: bool = False) -> Key | None:
    """What an address counts as: itself, of IPv6 its /64, of which one machine has all addresses.

    None for loopback unless `loopback`, since all processes of a machine share that address; and
    None for what is no address (a socket that is closed already).
    """
    try:
        address = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return None
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
        address = address.ipv4_mapped
    if address.is_loopback and not loopback:
        return None
    if isinstance(address, ipaddress.IPv6Address):
        return "net6", int(address) >> 64
    return "net4", int(address)


class Bucket:
    """`rate` units a second, and at most `burst` of them at once; full at first.

    The bucket may be overdrawn, since bytes that were read cannot be unread; `take` says for how
    long nothing more may be taken.
    """

    __slots__ = ("_at", "_burst", "_level", "_rate")

    def __init__(self, rate: float, burst: float, now: float) -> None:
        if rate <= 0 or burst <= 0:
            raise ValueError("rate and burst must be above zero")
        self._rate = rate
        self._burst = burst
        self._level = burst
        self._at = now

    def level(self, now: float) -> float:
        """Units that are there; below zero they are owed."""
        return min(self._burst, self._level + max(0.0, now - self._at) * self._rate)

    def take(self, units: float, now: float) -> float:
        """Take `units`; returns the seconds until the bucket is above zero again (0: it is)."""
        self._level = self.level(now) - units
        self._at = max(now, self._at)
        return max(0.0, -self._level / self._rate)


class Rates:
    """A bucket for each key, of those that took last; who is not remembered has a full one.

    `refresh_refused`: who is refused counts as seen, so that it cannot wait to be forgotten while
    it goes on asking.
    """

    def __init__(
        self,
        per_second: float,
        burst: float,
        remembered: int = RATES_REMEMBERED,
        *,
        refresh_refused: bool = False,
    ) -> None:
        self.per_second = per_second
        self.burst = burst
        self._remembered = remembered
        self._refresh_refused = refresh_refused
        self._buckets: OrderedDict[Key, Bucket] = OrderedDict()

    def __len__(self) -> int:
        """Keys that are remembered."""
        return len(self._buckets)

    def admit(self, keys: tuple[Key, ...], now: float) -> float:
        """0.0, and one is spent under each key; or the seconds until there is one, and none is."""
        lowest = min((self._level(key, now) for key in keys), default=1.0)
        if lowest >= 1.0:
            self.spend(keys, 1.0, now)
            return 0.0
        if self._refresh_refused:
            self.spend(keys, 0.0, now)
        return (1.0 - lowest) / self.per_second

    def spend(self, keys: tuple[Key, ...], amount: float, now: float) -> float:
        """Spend `amount` whatever is there; the seconds until all debts are paid."""
        wait = 0.0
        for key in keys:
            bucket = self._buckets.get(key)
            if bucket is None:
                bucket = self._buckets[key] = Bucket(self.per_second, self.burst, now)
            self._buckets.move_to_end(key)
            wait = max(wait, bucket.take(amount, now))
        while len(self._buckets) > self._remembered:
            self._buckets.popitem(last=False)
        return wait

    def _level(self, key: Key, now: float) -> float:
        bucket = self._buckets.get(key)
        return self.burst if bucket is None else bucket.level(now)
