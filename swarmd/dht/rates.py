"""How many requests one address may make of the DHT. Pure."""

from __future__ import annotations

from swarmd.dht.config import DhtConfig
from swarmd.rates import Rates, address_key

__all__ = ["BURST", "RequestRates"]

BURST = 2.0
"""Seconds' worth of requests that may come at once; reading a long table is a burst."""


class RequestRates:
    """Requests a second for each source: writes (a signature to check each) and others.

    Loopback is exempt: who is on the machine has better means to be a nuisance.
    """

    def __init__(self, config: DhtConfig) -> None:
        others, writes = config.max_queries_per_second, config.max_puts_per_second
        self._rates = {
            is_write: Rates(rate, rate * BURST, config.max_remembered, refresh_refused=True)
            for is_write, rate in ((False, others), (True, writes))
        }

    def allow(self, host: str, is_write: bool, now: float) -> bool:
        """Count a request of `host` at `now` (monotonic seconds); False: it is one too many."""
        source = address_key(host)
        return source is None or not self._rates[is_write].admit((source,), now)
