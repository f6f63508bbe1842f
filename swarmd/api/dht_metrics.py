"""The metrics of a DHT node, of one that serves or of a client's."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from prometheus_client.core import Metric
from prometheus_client.registry import Collector

from swarmd.api.metric_families import counter, gauge
from swarmd.dht.directory import Directory
from swarmd.dht.envelope import Drop

__all__ = ["DhtCollector"]


class DhtCollector(Collector):
    """Reads a directory's statistics; `directory` is None where there is none yet."""

    def __init__(self, directory: Callable[[], Directory | None]) -> None:
        self._directory = directory

    def collect(self) -> Iterator[Metric]:
        directory = self._directory()
        if directory is None:
            return
        found = directory.statistics()
        yield counter(
            "swarmd_dht_datagrams", "Datagrams of the DHT.",
            [(("in",), found.datagrams_in), (("out",), found.datagrams_out)], ("direction",),
        )  # fmt: skip
        yield counter(
            "swarmd_dht_bytes", "Bytes of those datagrams.",
            [(("in",), found.bytes_in), (("out",), found.bytes_out)], ("direction",),
        )  # fmt: skip
        yield counter(
            "swarmd_dht_dropped_datagrams", "Datagrams that were not handled or not sent, by why.",
            [((drop.value,), found.drops.get(drop.value, 0)) for drop in Drop], ("reason",),
        )  # fmt: skip
        yield gauge("swarmd_dht_records", "Announcements held for others.", found.records)
        yield gauge("swarmd_dht_contacts", "Verified contacts in the table.", found.contacts)
        yield gauge("swarmd_dht_pending_requests", "Requests without a reply yet.", found.pending)
        if found.clock_offset is not None:
            yield gauge(
                "swarmd_dht_clock_offset_seconds",
                "How far the contacts' clocks are ahead of this machine's (median).",
                found.clock_offset,
            )
