"""`/metrics`: what Prometheus reads, gathered when it is asked for; and the count of requests."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

from aiohttp import web
from aiohttp.typedefs import Handler, Middleware
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, ProcessCollector
from prometheus_client.exposition import generate_latest
from prometheus_client.registry import Collector

from swarmd.api.counts import ApiCounts

__all__ = ["Exposition", "counting"]

CLIENT_GONE = 499
"""The status that a request is counted with whose client went away (nginx's word for it)."""
METHODS = frozenset({"GET", "HEAD", "POST", "OPTIONS", "PUT", "DELETE", "PATCH"})


class Exposition:
    """The metrics of `collectors`, and those of the process, in a registry of their own."""

    def __init__(self, collectors: Iterable[Collector]) -> None:
        self.registry = CollectorRegistry()
        for collector in collectors:
            self.registry.register(collector)
        ProcessCollector(registry=self.registry)

    async def answer(self, request: web.Request) -> web.Response:
        """The handler."""
        return web.Response(
            body=generate_latest(self.registry), headers={"Content-Type": CONTENT_TYPE_LATEST}
        )


def counting(counts: ApiCounts) -> Middleware:
    """The middleware that counts requests; the outermost one, so that refusals count as well."""

    @web.middleware
    async def middleware(request: web.Request, handler: Handler) -> web.StreamResponse:
        status = CLIENT_GONE
        try:
            response = await handler(request)
            status = response.status
            return response
        except web.HTTPException as error:
            status = error.status
            raise
        except asyncio.CancelledError:
            raise
        except Exception:
            status = 500
            raise
        finally:
            resource = request.match_info.route.resource
            # both come from outside, and each label is remembered for ever
            route = "other" if resource is None else resource.canonical
            method = request.method if request.method in METHODS else "other"
            counts.requests[method, route, status] += 1

    return middleware
