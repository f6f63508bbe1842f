"""The page's server side over real peers: files, events, keys, bounds, a failover's cost."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import re
from collections.abc import AsyncIterator
from importlib import resources
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from swarmd.api.limits import ApiLimits
from swarmd.api.swarm_feed import SwarmFeed, SwarmSource
from swarmd.api.swarm_view import HISTORY, MAX_PEERS, ModelSeen
from swarmd.blocks import Span
from swarmd.routing.view import View
from tests.api.conftest import SPANS, served
from tests.api.test_swarm_view import MODEL, peer
from tests.conftest import Runner
from tests.local_swarm import LocalSwarm

KEY = "a-key-of-these-tests"
ASK: dict[str, Any] = {
    "model": "tiny",
    "messages": [{"role": "user", "content": "hello"}],
    "max_tokens": 48,
    "seed": 3,
    "stream": True,
}


async def news(answer: aiohttp.ClientResponse) -> AsyncIterator[dict[str, Any]]:
    """The events of a stream as they come."""
    async for line in answer.content:
        if line.startswith(b"data: {"):
            yield json.loads(line[6:])


def test_the_files_come_from_the_package_alone(swarm: LocalSwarm, run_async: Runner) -> None:
    async def work() -> None:
        async with (
            served(swarm, keys=(KEY,)) as server,
            aiohttp.ClientSession(server.url) as http,
        ):
            async with http.get("/") as answer:
                page, headers = await answer.text(), answer.headers
            assert headers["Content-Type"] == "text/html; charset=utf-8"
            assert "default-src 'none'" in headers["Content-Security-Policy"]
            assert "unsafe" not in headers["Content-Security-Policy"]
            async with http.get("/", headers={"If-None-Match": headers["ETag"]}) as answer:
                assert (answer.status, await answer.read()) == (304, b"")
            async with http.get("/", headers={"If-None-Match": '"another"'}) as answer:
                assert answer.status == 200
            linked = set(re.findall(r'(?:src|href)="(/[^"]*)"', page))
            for name in [one.name for one in (resources.files("swarmd.api") / "web").iterdir()]:
                path = "/" if name == "index.html" else f"/web/{name}"
                async with http.get(path) as answer:
                    text = await answer.text()
                    assert answer.status == 200, name
                    assert answer.headers["X-Content-Type-Options"] == "nosniff"
                linked |= {f"/web/{part}" for part in re.findall(r'from "\./([^"]+)"', text)}
                named = set(re.findall(r"https?://[\w.]+", text))
                assert named <= {"http://www.w3.org", "https://html.spec.whatwg.org"}, name
                assert not re.search(r"innerHTML|insertAdjacent|document\.write|eval\(", text), name
            for path in linked:
                async with http.get(path) as answer:
                    assert answer.status == 200, path
            async with http.get("/web/../server.py") as answer:
                assert answer.status == 404

    run_async(work())


def test_the_swarm_needs_a_key_or_this_machines_name(swarm: LocalSwarm, run_async: Runner) -> None:
    async def work() -> None:
        async with (
            served(swarm, keys=(KEY,)) as server,
            aiohttp.ClientSession(server.url) as http,
        ):
            for path in ("/swarm", "/swarm/events"):
                async with http.get(path) as answer:
                    assert answer.status == 401
            async with http.get("/swarm", headers={"Authorization": f"Bearer {KEY}"}) as answer:
                assert answer.status == 200
        async with served(swarm) as server, aiohttp.ClientSession(server.url) as http:
            async with http.get("/swarm", headers={"Host": "evil.example"}) as answer:
                assert answer.status == 403
            async with http.get("/swarm") as answer:
                (model,) = (await answer.json())["models"]
            assert model["replicas"] == [1] * 6
            assert {row["short"] for row in model["peers"]} == {
                peer.identity.peer_id.short for peer in swarm.peers
            }
            assert all(row["rtt_ms"] is not None for row in model["peers"])

    run_async(work())


def test_events_tell_of_answers_and_of_holes(long_swarm: LocalSwarm, run_async: Runner) -> None:
    async def work() -> None:
        async with (
            served(long_swarm) as server,
            aiohttp.ClientSession(server.url) as http,
            http.get("/swarm/events") as listening,
        ):
            events = news(listening)
            first = await anext(events)
            assert set(first) == {"models", "answers", "rates"}
            assert first["models"][0]["replicas"] == [1] * 6

            seen = dict(first)

            async def until(key: str, wanted: Any) -> None:
                async with asyncio.timeout(20):
                    while not wanted(seen[key]):  # one event may tell of several keys
                        seen.update(await anext(events))

            async with http.post("/v1/chat/completions", json={**ASK, "max_tokens": 900}) as answer:
                assert answer.status == 200
                await until("answers", lambda answers: answers and answers[0]["tokens"] > 0)
                await until("rates", lambda rates: rates[-1] > 0)
            await until("answers", lambda answers: not answers)
            long_swarm.peers[1].kill()
            router = server.gateway.router
            async with http.post("/v1/chat/completions", json=ASK) as answer:
                assert answer.status == 503
            assert router.health.banned(router.clock.monotonic())
            await until("models", lambda models: models[0]["holes"] == [[3, 6]])

    run_async(work())


def test_listeners_are_few_and_a_shutdown_ends_them(run_async: Runner) -> None:
    async def work() -> None:
        async def refresh(age: float) -> None:
            looks.append(age)

        looks: list[float] = []
        source = SwarmSource(refresh, lambda: (), lambda: (), lambda: 0)
        feed = SwarmFeed(source, keep_alive=0.05, tick=0.02, look=0.02, max_listeners=1)
        async with serving(feed) as (url, runner), aiohttp.ClientSession(url) as http:
            await asyncio.sleep(0.1)
            assert not looks, "nobody looks, nothing is fetched"
            async with http.get("/swarm/events") as one:
                first = await anext(news(one))
                assert (first["models"], first["answers"]) == ([], [])
                async with http.get("/swarm/events") as other:
                    assert other.status == 500  # an ApiError, which the guard would answer
                assert feed.listeners == 1
                while not looks:
                    await asyncio.sleep(0.01)
            async with asyncio.timeout(5):
                while feed.listeners:
                    await asyncio.sleep(0.01)
            async with http.get("/swarm/events") as one:
                await anext(news(one))
                async with asyncio.timeout(5):
                    await runner.cleanup()
                    await one.read()
            assert feed.listeners == 0

    run_async(work())


def test_silence_has_comments_and_who_does_not_read_is_cut(run_async: Runner) -> None:
    async def work() -> None:
        async def refresh(age: float) -> None: ...

        calm = SwarmSource(refresh, lambda: (), lambda: (), lambda: 0)
        feed = SwarmFeed(calm, keep_alive=0.02, tick=0.01)
        feed._rate.rates.extend([0.0] * HISTORY)  # full, so that a sample changes nothing
        async with serving(feed) as (url, _), aiohttp.ClientSession(url) as http:
            async with http.get("/swarm/events") as one:
                await anext(news(one))
                async with asyncio.timeout(5):
                    assert b": keep-alive\n" in [await one.content.readline() for _ in range(3)]

        peers = [peer(number, 0, 6) for number in range(1, MAX_PEERS)]
        view = View.of(peers, 6, model_id=MODEL)
        rtts = itertools.count(1.0)
        loud = SwarmSource(
            refresh, lambda: [ModelSeen(view, (), lambda _: next(rtts))], lambda: (), lambda: 0
        )
        feed = SwarmFeed(loud, keep_alive=10, tick=0.001, write_timeout=0.05)
        async with serving(feed) as (url, _):
            host, port = url.removeprefix("http://").split(":")
            _, writer = await asyncio.open_connection(host, int(port), limit=1)
            writer.write(b"GET /swarm/events HTTP/1.1\r\nHost: localhost\r\n\r\n")
            async with asyncio.timeout(20):
                while not feed.listeners:
                    await asyncio.sleep(0.01)
                while feed.listeners:
                    await asyncio.sleep(0.01)
            writer.close()
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()

    run_async(work())


@contextlib.asynccontextmanager
async def serving(feed: SwarmFeed) -> AsyncIterator[tuple[str, web.AppRunner]]:
    """A feed alone."""
    app = web.Application()
    app.router.add_get("/swarm/events", feed.events)
    app.cleanup_ctx.append(feed.lifetime)
    app.on_shutdown.append(feed.close)
    runner = web.AppRunner(app, access_log=None, handler_cancellation=True, shutdown_timeout=1)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        yield f"http://127.0.0.1:{runner.addresses[0][1]}", runner
    finally:
        await runner.cleanup()


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions"])
def test_a_stream_says_what_a_failover_cost(
    swarm: LocalSwarm, run_async: Runner, path: str
) -> None:
    async def work() -> None:
        ask = ASK if "chat" in path else {**ASK, "prompt": "hello"}
        if "chat" not in path:
            del ask["messages"]
        limits = ApiLimits(busy_patience=5.0)
        spans = [*SPANS, Span(3, 6)]
        async with (
            served(swarm, spans, limits=limits) as server,
            aiohttp.ClientSession(server.url) as http,
            http.post(path, json=ask) as answer,
        ):
            facts: list[dict[str, Any]] = []
            lost = ""
            async for line in answer.content:
                if line.startswith(b": swarmd "):
                    facts.append(json.loads(line[9:]))
                    if len(facts) == 1:
                        lost = facts[0]["route"][-1]["peer"]
                        next(p for p in swarm.peers if p.identity.peer_id.short == lost).kill()
            first, last = facts[0], facts[-1]
            assert (first["losses"], first["recoveries"]) == (0, [])
            assert last["losses"] == 1
            (cost,) = last["recoveries"]
            assert cost["lost"] == {"peer": lost, "start": 3, "end": 6}
            assert cost["ms"] > 0
            assert last["replayed"] > 0
            assert last["tokens"] == 48
            assert last["route"][-1]["peer"] == cost["by"][-1]["peer"] != lost
            assert not server.gateway.running

    run_async(work())
