"""What the API counts: requests by route and status, lost hops, and clients that go away."""

from __future__ import annotations

import asyncio

import aiohttp
from prometheus_client.parser import text_string_to_metric_families

from swarmd.api.limits import ApiLimits
from tests.api.conftest import SPANS, Served, served
from tests.api.test_openai_client import COMMON, KEY, until_idle
from tests.conftest import Runner
from tests.local_swarm import LocalSwarm

REQUESTS = "swarmd_api_requests_total"
Found = dict[tuple[str, ...], float]


async def samples(server: Served, key: str = "none") -> Found:
    headers = {"Authorization": f"Bearer {key}"}
    async with aiohttp.ClientSession(headers=headers) as http:
        async with http.get(f"{server.url}/metrics") as answer:
            assert answer.status == 200
            assert answer.headers["Content-Type"].startswith("text/plain; version=")
            text = await answer.text()
    return {
        (sample.name, *sample.labels.values()): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def test_requests_are_counted_by_route_and_status(swarm: LocalSwarm, run_async: Runner) -> None:
    async def work() -> None:
        async with served(swarm, keys=(KEY,)) as server:
            async with aiohttp.ClientSession() as http:
                for method, path, times in (
                    ("GET", "/v1/models", 3), ("GET", "/healthz", 2), ("PROPFIND", "/coffee", 1),
                    ("GET", "/no/1", 1), ("GET", "/no/2", 1), ("GET", "/v1/models/a", 1),
                ):  # fmt: skip
                    for _ in range(times):
                        await (await http.request(method, server.url + path)).read()
            found = await samples(server, KEY)
            assert {key[1:]: value for key, value in found.items() if key[0] == REQUESTS} == {
                ("GET", "/v1/models", "401"): 3,
                ("GET", "/healthz", "200"): 2,
                ("other", "other", "404"): 1,
                ("GET", "other", "404"): 2,
                ("GET", "/v1/models/{model}", "401"): 1,
            }

    run_async(work())


def test_a_lost_hop_and_its_ban_are_counted(swarm: LocalSwarm, run_async: Runner) -> None:
    async def work() -> None:
        async with served(swarm, [*SPANS, SPANS[1]]) as server, server.client() as client:
            server.gateway.replan = False
            stream = await client.chat.completions.create(
                **{**COMMON, "max_tokens": 120}, stream=True
            )
            chunks = aiter(stream)
            await anext(chunks)
            await anext(chunks)
            (answers,) = server.gateway.running
            assert answers._sessions[0].config.replan is server.gateway.replan is False
            during = await samples(server)
            assert during["swarmd_api_answers",] == 1
            assert during["swarmd_client_bans_total",] == 0
            for peer in swarm.peers[1:]:
                if peer.server.open_sessions:
                    peer.kill()
            assert [chunk async for chunk in chunks][-1].choices[0].finish_reason == "length"
            await until_idle(server)
            found = await samples(server)
            assert found["swarmd_client_recoveries_total",] == 1
            assert found["swarmd_client_replayed_positions_total",] > 0
            assert found["swarmd_client_bans_total",] >= 1
            assert found["swarmd_client_banned_peers",] == 1
            assert found["swarmd_api_answers",] == 0
            assert found["swarmd_api_completion_tokens_total",] == 120
            assert found["swarmd_api_first_token_seconds_count",] == 1

    run_async(work())


def test_an_answer_that_breaks_off_is_counted(swarm: LocalSwarm, run_async: Runner) -> None:
    async def work() -> None:
        limits = ApiLimits(head_start=0.0)
        async with served(swarm, limits=limits) as server, server.client() as client:
            stream = await client.chat.completions.create(
                **{**COMMON, "max_tokens": 120}, stream=True
            )
            chunks = aiter(stream)
            await anext(chunks)
            swarm.peers[1].kill()
            try:
                _ = [chunk async for chunk in chunks]
            except Exception as error:
                assert "blocks" in str(error)
            found = await samples(server)
            assert found["swarmd_api_broken_streams_total",] == 1
            assert found[REQUESTS, "POST", "/v1/chat/completions", "200"] == 1

    run_async(work())


def test_a_client_that_goes_away_is_counted(swarm: LocalSwarm, run_async: Runner) -> None:
    async def work() -> None:
        async with served(swarm) as server:
            async with aiohttp.ClientSession() as http:
                asking = asyncio.ensure_future(
                    http.post(
                        f"{server.url}/v1/chat/completions", json={**COMMON, "max_tokens": 200}
                    )
                )
                async with asyncio.timeout(10):
                    while not server.gateway.counts.completion_tokens:
                        await asyncio.sleep(0.005)
                asking.cancel()
                await asyncio.wait([asking])
            await until_idle(server)
            found = await samples(server)
            assert found[REQUESTS, "POST", "/v1/chat/completions", "499"] == 1
            assert found["swarmd_api_answers",] == 0

    run_async(work())
