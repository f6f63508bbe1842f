"""The metrics of an API, and of the client behind it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from prometheus_client.core import Metric
from prometheus_client.registry import Collector

from swarmd.api.errors import ApiError
from swarmd.api.gateway import AnyGateway
from swarmd.api.metric_families import counter, gauge, histogram

__all__ = ["ApiCollector"]


class ApiCollector(Collector):
    """Reads a gateway's counts."""

    def __init__(self, gateway: AnyGateway) -> None:
        self._gateway = gateway

    def collect(self) -> Iterator[Metric]:
        counts, places = self._gateway.counts, self._gateway.places
        yield counter(
            "swarmd_api_requests",
            "HTTP requests that were answered, by route and status; 499: the client went away.",
            [
                ((method, route, str(status)), count)
                for (method, route, status), count in counts.requests.items()
            ],
            ("method", "route", "status"),
        )
        yield gauge("swarmd_api_answers", "Answers under way.", places.taken)
        yield gauge("swarmd_api_answers_limit", "Answers that may be under way.", places.limit)
        yield counter(
            "swarmd_api_prompt_tokens", "Tokens of the prompts that were taken.",
            counts.prompt_tokens,
        )  # fmt: skip
        yield counter(
            "swarmd_api_completion_tokens", "New tokens in answers.", counts.completion_tokens
        )
        yield counter(
            "swarmd_api_broken_streams", "Streams that ended with an error after their status 200.",
            counts.broken_streams,
        )  # fmt: skip
        yield histogram(
            "swarmd_api_first_token_seconds",
            "From a request that was read to the first token of an answer.",
            [((), counts.first_token)],
        )
        yield counter(
            "swarmd_client_recoveries",
            "Hops that were lost and replaced, in answers that have ended.",
            counts.recoveries,
        )
        yield counter(
            "swarmd_client_replayed_positions",
            "Positions that were run again for a replaced hop, in answers that have ended.",
            counts.replayed_positions,
        )
        yield counter(
            "swarmd_client_moves",
            "Moves to a better chain, in answers that have ended.",
            counts.moves,
        )
        with contextlib.suppress(ApiError):  # of a node that has not joined yet
            router = self._gateway.router
            yield counter(
                "swarmd_client_bans", "Bans of peers that failed or lied.", router.health.bans
            )
            yield gauge(
                "swarmd_client_banned_peers", "Peers that are banned now.",
                len(router.health.banned(router.clock.monotonic())),
            )  # fmt: skip
            yield gauge(
                "swarmd_client_known_peers",
                "Peers that could be routed over when the announcements were last read.",
                len(router.view.routable),
            )
