"""HTTP within a serving node: the API, `/metrics`, `/healthz` and `/readyz`."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator

from swarmd.api.dht_metrics import DhtCollector
from swarmd.api.keys import ApiKeys
from swarmd.api.limits import ApiLimits
from swarmd.api.node_gateway import NodeGateway
from swarmd.api.node_metrics import NodeCollector
from swarmd.api.server import serve_api
from swarmd.compute.source import DEFAULT_MODEL
from swarmd.node.daemon import Daemon
from swarmd.node.prober import Prober
from swarmd.tasks import TaskOwner

__all__ = ["serve_node_http"]

SHUTDOWN = 1.0
"""Seconds for requests at the end; the node's drain has waited for answers before."""


@contextlib.asynccontextmanager
async def serve_node_http(
    daemon: Daemon,
    host: str,
    port: int,
    keys: ApiKeys | None = None,
    limits: ApiLimits | None = None,
) -> AsyncIterator[int]:
    """Listen while the block runs, in which `daemon` runs; the value is the port. Raises PortInUse.

    The node's drain waits for answers that are under way here.
    """
    parts = daemon.parts
    alias = daemon.config.model or DEFAULT_MODEL
    gateway = NodeGateway(parts, daemon.stopping, limits=limits, alias=alias)
    daemon.busy = lambda: gateway.places.taken > 0
    async with TaskOwner("http") as owner, gateway:
        prober = Prober(parts, daemon.stopping, owner)
        collectors = [
            NodeCollector(parts, lambda: prober.verdict_nowait().ready),
            DhtCollector(lambda: parts.directory),
        ]
        async with serve_api(
            gateway, host, port, keys,
            ready=prober.verdict, collectors=collectors, shutdown=SHUTDOWN,
        ) as bound:  # fmt: skip
            yield bound
