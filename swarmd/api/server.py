"""The HTTP server: paths and handlers. `make_app` for an application, `serve_api` to listen."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Any

from aiohttp import web
from prometheus_client.registry import Collector

from swarmd.api.answers import Answers
from swarmd.api.api_metrics import ApiCollector
from swarmd.api.body import read_json
from swarmd.api.errors import from_swarmd, no_such_model
from swarmd.api.exposition import Exposition, counting
from swarmd.api.gateway import AnyGateway
from swarmd.api.gateway_source import gateway_source
from swarmd.api.guard import REQUEST_ID, guard, mark_response
from swarmd.api.keys import ApiKeys
from swarmd.api.page import page_routes
from swarmd.api.replies import ChatReply, Choice, CompletionReply, Reply
from swarmd.api.schemas import Ask, read_chat, read_completion
from swarmd.api.stream import EventStream
from swarmd.api.swarm_feed import SwarmFeed
from swarmd.errors import PortInUse, SwarmdError
from swarmd.node.readiness import Verdict

__all__ = ["make_app", "serve_api"]

log = logging.getLogger(__name__)
SHUTDOWN = 5.0
"""Seconds that running answers have when the server is told to stop."""
ASIDE = "swarmd"
"""What begins the comments of a stream that say which route it takes, and what was lost."""

Ready = Callable[[], Awaitable[Verdict]]


def make_app(
    gateway: AnyGateway,
    keys: ApiKeys | None = None,
    *,
    ready: Ready | None = None,
    collectors: Sequence[Collector] = (),
) -> web.Application:
    """The application over a gateway that is entered. Without `keys` everybody may ask.

    `ready` answers `/readyz`, which there is only with it; `collectors` join the metrics.
    """
    api = _Api(gateway)
    feed = SwarmFeed(gateway_source(gateway), keep_alive=gateway.limits.keep_alive)
    metrics = Exposition([ApiCollector(gateway), *collectors])
    app = web.Application(
        client_max_size=gateway.limits.body,
        middlewares=[counting(gateway.counts), guard(keys or ApiKeys(), gateway.limits)],
    )
    app.on_response_prepare.append(mark_response)
    app.cleanup_ctx.append(feed.lifetime)
    app.on_shutdown.append(feed.close)
    app.add_routes(
        [
            web.get("/healthz", api.health),
            web.get("/metrics", metrics.answer),
            web.get("/swarm", feed.once),
            web.get("/swarm/events", feed.events),
            *page_routes(),
            web.get("/v1/models", api.models),
            web.get("/v1/models/{model:.+}", api.model),
            web.post("/v1/chat/completions", api.chat),
            web.post("/v1/completions", api.completions),
        ]
    )
    if ready is not None:
        app.router.add_get("/readyz", _readiness(ready))
    return app


def _readiness(ready: Ready) -> Callable[[web.Request], Awaitable[web.Response]]:
    async def answer(request: web.Request) -> web.Response:
        verdict = await ready()
        if verdict.ready:
            return web.json_response({"status": "ready"})
        # no ApiError, which would be a line in the log for each look
        return web.json_response({"status": "not ready", "reason": verdict.reason}, status=503)

    return answer


@contextlib.asynccontextmanager
async def serve_api(
    gateway: AnyGateway,
    host: str,
    port: int,
    keys: ApiKeys | None = None,
    *,
    ready: Ready | None = None,
    collectors: Sequence[Collector] = (),
    shutdown: float = SHUTDOWN,
) -> AsyncIterator[int]:
    """Listen while the block runs; the value is the port (0 takes a free one). A request whose
    client goes away is cancelled; at the end those under way have `shutdown` seconds. For the rest
    see `make_app`. Raises PortInUse."""
    runner = web.AppRunner(
        make_app(gateway, keys, ready=ready, collectors=collectors),
        handler_cancellation=True,
        shutdown_timeout=shutdown,
        access_log=None,
    )
    await runner.setup()
    try:
        try:
            await web.TCPSite(runner, host, port).start()
        except OSError as error:
            raise PortInUse(f"cannot listen on {host}:{port}: {error.strerror}") from error
        yield runner.addresses[0][1]
    finally:
        await runner.cleanup()


class _Api:
    """The handlers."""

    def __init__(self, gateway: AnyGateway) -> None:
        self._gateway = gateway
        self._created = int(time.time())

    @property
    def _name(self) -> str:
        return self._gateway.folder.name

    @property
    def _fingerprint(self) -> str:
        return f"fp_{str(self._gateway.folder.model_id)[:12]}"

    async def health(self, request: web.Request) -> web.Response:
        """That the server runs; not that somebody serves the model's blocks."""
        return web.json_response({"status": "ok"})

    async def models(self, request: web.Request) -> web.Response:
        return web.json_response({"object": "list", "data": [self._model()]})

    async def model(self, request: web.Request) -> web.Response:
        self._check_model(request.match_info["model"])
        return web.json_response(self._model())

    def _model(self) -> dict[str, Any]:
        created = self._created
        return {"id": self._name, "object": "model", "created": created, "owned_by": "swarmd"}

    def _check_model(self, name: str) -> None:
        gateway = self._gateway
        if name not in (self._name, str(gateway.folder.model_id), gateway.alias):
            raise no_such_model(name, self._name)

    async def chat(self, request: web.Request) -> web.StreamResponse:
        return await self._answer(request, read_chat, ChatReply)

    async def completions(self, request: web.Request) -> web.StreamResponse:
        return await self._answer(request, read_completion, CompletionReply)

    async def _answer(
        self, request: web.Request, read: Callable[[object], Ask], form: type[Reply]
    ) -> web.StreamResponse:
        ask = read(await read_json(request, self._gateway.limits.body_timeout))
        self._check_model(ask.model)
        await self._gateway.load()
        reply = form(
            request[REQUEST_ID],
            int(time.time()),
            self._name,
            self._fingerprint,
            self._gateway.text.spell,
            ask.top_logprobs is not None,
        )
        began = time.monotonic()
        async with self._gateway.answering(ask) as answers:
            try:
                if ask.stream:
                    return await self._stream(request, ask, reply, answers)
                return await self._whole(ask, reply, answers)
            finally:
                log.info(
                    "%s %s: %s, %d prompt and %d new tokens, %.2f s",
                    request[REQUEST_ID], request.path, answers.route(),
                    answers.usage.prompt, answers.usage.completion, time.monotonic() - began,
                )  # fmt: skip

    async def _whole(self, ask: Ask, reply: Reply, answers: Answers) -> web.Response:
        choices = [Choice(index) for index in range(ask.choices)]
        while not answers.ended:
            piece = await answers.take()
            choice = choices[piece.index]
            choice.text += piece.text
            choice.scores += piece.scores
            choice.finish_reason = piece.finish_reason
        return web.json_response(
            reply.whole(choices, answers.usage),
            headers={
                "X-Swarmd-Route": answers.route(),
                "X-Swarmd-Recoveries": str(answers.recoveries),
            },
        )

    async def _stream(
        self, request: web.Request, ask: Ask, reply: Reply, answers: Answers
    ) -> web.StreamResponse:
        limits = self._gateway.limits
        stream = EventStream(request, write_timeout=limits.write_timeout)
        await answers.wait(limits.head_start)  # an error until now has a status of its own
        stream.response.headers["X-Swarmd-Route"] = answers.route()
        try:
            await stream.open()
            turn = answers.turn()
            await stream.aside(ASIDE, answers.seen().as_json())
            try:
                for index in range(ask.choices):
                    if (opening := reply.opening(index)) is not None:
                        await stream.send(_with_usage(opening, ask))
                while not answers.ended:
                    while not await answers.wait(limits.keep_alive):
                        await stream.keep_alive()
                    piece = await answers.take()
                    if turn != (turn := answers.turn()):
                        await stream.aside(ASIDE, answers.seen().as_json())
                    await stream.send(_with_usage(reply.chunk(piece), ask))
                await stream.aside(ASIDE, answers.seen().as_json())
                if ask.include_usage:
                    await stream.send(reply.last_chunk(answers.usage))
            except SwarmdError as error:
                refusal = from_swarmd(error)
                self._gateway.counts.broken_streams += 1
                log.info("%s broke off: %s", request[REQUEST_ID], refusal.message)
                await stream.send(refusal.body)
            await stream.done()
        except (TimeoutError, ConnectionError) as error:
            log.info("%s: its client is gone: %s", request[REQUEST_ID], error or "reads no more")
            if request.transport is not None:
                request.transport.abort()
        return stream.response


def _with_usage(chunk: dict[str, Any], ask: Ask) -> dict[str, Any]:
    """Where the last chunk has the usage, all others say that they have none."""
    return {**chunk, "usage": None} if ask.include_usage else chunk
