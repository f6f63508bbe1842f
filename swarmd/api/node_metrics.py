"""The metrics of a serving node: read off its parts at a scrape."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from prometheus_client.core import Metric
from prometheus_client.registry import Collector

from swarmd import __version__
from swarmd.api.metric_families import counter, gauge, histogram, info
from swarmd.compute.engine import Engine
from swarmd.node.announced import Announced
from swarmd.node.parts import NodeParts
from swarmd.node.sessions import SessionServer

__all__ = ["NodeCollector"]


class NodeCollector(Collector):
    """`ready` says whether the last probe passed, without another one."""

    def __init__(self, parts: NodeParts, ready: Callable[[], bool]) -> None:
        self._parts = parts
        self._ready = ready

    def collect(self) -> Iterator[Metric]:
        yield gauge("swarmd_node_ready", "1 if /readyz was answered by 200 last.", self._ready())
        if (announced := self._parts.announced) is not None:
            yield _facts(announced)
        if (server := self._parts.server) is not None:
            yield from _sessions(server)
            yield from _engine(server.engine)


def _facts(announced: Announced) -> Metric:
    span = announced.span
    return info(
        "swarmd_node",
        "What the node is and serves.",
        {
            "version": __version__,
            "peer_id": str(announced.peer_id),
            "model": announced.folder.name,
            "model_id": str(announced.folder.model_id),
            "first_block": str(span.start),
            "end_block": str(span.end),
            "dtype": announced.dtype,
            "quantization": announced.config.quantization,
        },
    )


def _sessions(server: SessionServer) -> Iterator[Metric]:
    did = server.statistics
    yield gauge("swarmd_node_draining", "1 if the node takes no new sessions.", server.draining)
    yield counter("swarmd_node_connections", "Connections accepted.", did.connections)
    yield gauge("swarmd_node_open_connections", "Connections open.", server.quotas.open_connections)
    yield counter("swarmd_node_sessions", "Sessions opened.", did.sessions)
    yield gauge("swarmd_node_open_sessions", "Sessions open.", server.open_sessions)
    yield counter("swarmd_node_refusals", "Refusals sent, of whatever.", did.refusals)
    yield counter("swarmd_node_steps", "Steps run.", did.steps)
    yield counter("swarmd_node_tokens", "Positions run through the blocks.", did.tokens)
    yield counter(
        "swarmd_node_payload_bytes", "Hidden states as they travel.",
        [(("in",), did.bytes_in), (("out",), did.bytes_out)], ("direction",),
    )  # fmt: skip
    yield histogram(
        "swarmd_node_step_seconds", "Time of a step in the blocks, by phase.",
        [((phase,), found) for phase, found in did.compute.items()], ("phase",),
    )  # fmt: skip
    yield histogram(
        "swarmd_node_queue_seconds", "Time that a step waited for the blocks, by phase.",
        [((phase,), found) for phase, found in did.queue.items()], ("phase",),
    )  # fmt: skip
    yield gauge(
        "swarmd_node_queued_bytes", "Payloads of steps that wait for their session.",
        server.queued_bytes,
    )  # fmt: skip
    if (desk := server.desk) is not None:
        yield gauge("swarmd_relay_nodes", "Nodes that are reached through this one.", desk.relayed)
        yield gauge("swarmd_relay_streams", "Streams passed on for them.", desk.streams)


def _engine(engine: Engine) -> Iterator[Metric]:
    yield gauge("swarmd_engine_queue_steps", "Steps that wait or run.", engine.queue_length)
    yield gauge(
        "swarmd_engine_kv_tokens", "Positions that the attention cache has room for.",
        engine.kv_tokens,
    )  # fmt: skip
    yield gauge("swarmd_engine_kv_free_tokens", "Of these, those that are free.", engine.kv_free)
    if (shared := engine.prefixes) is not None:
        yield counter(
            "swarmd_engine_prefix_asked_tokens",
            "Positions of prompts that were looked up among known beginnings.", shared.asked,
        )  # fmt: skip
        yield counter(
            "swarmd_engine_prefix_found_tokens", "Of these, those that were known.", shared.found
        )
