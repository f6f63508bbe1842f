"""HTTP within a real node: what it says while it loads, serves and leaves, and its API."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from openai import AsyncOpenAI
from prometheus_client.parser import text_string_to_metric_families

from swarmd.api.gateway import AnyGateway
from swarmd.api.keys import ApiKeys
from swarmd.api.node_gateway import NodeGateway
from swarmd.api.node_server import serve_node_http
from swarmd.blocks import BlockRequest, Span
from swarmd.compute.model_folder import ModelFolder
from swarmd.config import DaemonConfig
from swarmd.errors import PortInUse
from swarmd.node.daemon import Daemon
from swarmd.wire.transport import Greeting, dial
from tests.conftest import Runner

ASK: dict[str, Any] = {
    "model": "tiny",
    "messages": [{"role": "user", "content": "hello"}],
    "max_tokens": 8,
    "seed": 3,
}


class Site:
    """A node with HTTP, as a browser sees it."""

    def __init__(self, daemon: Daemon, port: int, http: aiohttp.ClientSession) -> None:
        self.daemon = daemon
        self.url = f"http://127.0.0.1:{port}"
        self._http = http

    async def get(self, path: str, **headers: str) -> tuple[int, str]:
        async with self._http.get(self.url + path, headers=headers) as answer:
            return answer.status, await answer.text()

    async def samples(self) -> dict[tuple[str, ...], float]:
        """Every sample of /metrics, by name and the values of its labels."""
        status, text = await self.get("/metrics")
        assert status == 200
        return {
            (sample.name, *sample.labels.values()): sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
        }


@contextlib.asynccontextmanager
async def site(
    folder: ModelFolder, state: Path, *, span: Span | None = None, keys: ApiKeys | None = None,
    **fields: Any,
) -> AsyncIterator[Site]:  # fmt: skip
    """HTTP of a node that has not begun; `daemon.run` is up to the test."""
    config = DaemonConfig(
        model=str(folder.path), blocks=BlockRequest(span=span or Span(0, folder.n_blocks)),
        state_dir=state, kv_tokens=512, **fields,
    )  # fmt: skip
    daemon = Daemon(config)
    async with (
        serve_node_http(daemon, "127.0.0.1", 0, keys) as port,
        aiohttp.ClientSession() as http,
    ):
        yield Site(daemon, port, http)


async def stopped(daemon: Daemon, running: asyncio.Task[None]) -> None:
    daemon.stop()
    async with asyncio.timeout(30):
        await running


@pytest.fixture
def loads(monkeypatch: pytest.MonkeyPatch) -> list[AnyGateway]:
    """The gateways that loaded their model's ends, in order."""
    noted: list[AnyGateway] = []
    load = NodeGateway.client_folder

    async def note(self: NodeGateway) -> ModelFolder:
        noted.append(self)
        return await load(self)

    monkeypatch.setattr(NodeGateway, "client_folder", note)
    return noted


def test_a_node_loads_serves_and_leaves(
    folder: ModelFolder, tmp_path: Path, run_either: Runner, loads: list[AnyGateway]
) -> None:
    async def work() -> None:
        async with site(folder, tmp_path) as seen:
            daemon = seen.daemon
            assert (await seen.get("/healthz"))[0] == 200
            status, why = await seen.get("/readyz")
            assert status == 503 and "loading" in why
            status, why = await seen.get("/v1/models")
            assert status == 503 and "starting" in why
            status, swarm = await seen.get("/swarm")
            assert status == 200 and json.loads(swarm)["models"] == []
            assert (await seen.get("/"))[0] == 200
            assert (await seen.samples())["swarmd_node_ready",] == 0

            running = asyncio.ensure_future(daemon.run())
            await daemon.ready.wait()
            assert await seen.get("/readyz") == (200, '{"status": "ready"}')
            assert (await seen.get("/v1/models"))[0] == 200
            (model,) = json.loads((await seen.get("/swarm"))[1])["models"]
            assert (model["holes"], model["peers_live"]) == ([], 1)
            before = await seen.samples()
            assert before["swarmd_node_ready",] == 1
            assert before["swarmd_node_sessions_total",] == 0
            assert before["swarmd_engine_kv_tokens",] == 512
            assert not loads, "metrics and readiness cost no memory for the model's ends"

            async with AsyncOpenAI(
                base_url=f"{seen.url}/v1", api_key="none", max_retries=0, timeout=20
            ) as client:
                answer = await client.chat.completions.create(**ASK)
                assert answer.usage is not None and answer.usage.completion_tokens == 8
                assert len(loads) == 1
                again = await client.chat.completions.create(**ASK)
                assert again.choices[0].message.content == answer.choices[0].message.content
                assert len(loads) == 1

            after = await seen.samples()
            assert after["swarmd_node_sessions_total",] == 2
            assert after["swarmd_api_completion_tokens_total",] == 16
            assert after["swarmd_api_prompt_tokens_total",] == 2 * answer.usage.prompt_tokens
            assert after["swarmd_api_first_token_seconds_count",] == 2
            requests = "swarmd_api_requests_total"
            assert after[requests, "POST", "/v1/chat/completions", "200"] == 2
            assert after[requests, "GET", "/readyz", "503"] == 1
            steps = after["swarmd_node_steps_total",]
            phases = [after["swarmd_node_step_seconds_count", p] for p in ("prefill", "decode")]
            assert sum(phases) == steps and min(phases) >= 2
            assert after["swarmd_node_tokens_total",] >= 2 * (answer.usage.prompt_tokens + 7)
            row = folder.hidden_size * 4
            assert after["swarmd_node_payload_bytes_total", "in"] >= row * 16
            assert after["swarmd_node_payload_bytes_total", "out"] >= row * 16
            assert after["swarmd_client_bans_total",] == 0
            assert after["swarmd_client_known_peers",] == 1

            await stopped(daemon, running)
            assert (await seen.get("/healthz"))[0] == 200
            status, why = await seen.get("/readyz")
            assert status == 503 and "leaving" in why
            assert (await seen.samples())["swarmd_node_ready",] == 0

    run_either(work())


def test_a_leaving_node_finishes_its_answers_and_takes_no_others(
    folder: ModelFolder, tmp_path: Path, run_async: Runner
) -> None:
    async def work() -> None:
        async with site(folder, tmp_path) as seen:
            running = asyncio.ensure_future(seen.daemon.run())
            await seen.daemon.ready.wait()
            async with AsyncOpenAI(
                base_url=f"{seen.url}/v1", api_key="none", max_retries=0, timeout=20
            ) as client:
                stream = await client.chat.completions.create(
                    **{**ASK, "max_tokens": 200}, stream=True
                )
                chunks = aiter(stream)
                await anext(chunks)
                seen.daemon.stop()
                await asyncio.sleep(0)
                assert (await seen.get("/readyz"))[0] == 503
                with pytest.raises(Exception, match="leaving"):
                    await client.chat.completions.create(**ASK)
                assert not running.done()
                rest = [chunk async for chunk in chunks]
                assert rest[-1].choices[0].finish_reason == "length"
            async with asyncio.timeout(10):
                await running

    run_async(work())


def test_blocks_that_compute_nonsense_are_not_ready(
    folder: ModelFolder, tmp_path: Path, run_async: Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def work() -> None:
        async with site(folder, tmp_path) as seen:
            running = asyncio.ensure_future(seen.daemon.run())
            await seen.daemon.ready.wait()
            server = seen.daemon.parts.server
            assert server is not None
            run = server.engine.blocks.run

            def broken(*args: Any) -> Any:
                return [output * float("nan") for output in run(*args)]

            monkeypatch.setattr(server.engine.blocks, "run", broken)
            status, why = await seen.get("/readyz")
            assert status == 503 and "not finite" in why
            await stopped(seen.daemon, running)

    run_async(work())


def test_keys_guard_the_metrics_and_a_list_of_peers_has_the_node_itself(
    folder: ModelFolder, tmp_path: Path, run_async: Runner
) -> None:
    key = "a-key-of-these-tests"

    async def work() -> None:
        from swarmd.identity import Identity

        friend = Identity.generate()
        allow = frozenset({friend.peer_id})
        async with site(folder, tmp_path, keys=ApiKeys([key]), allow=allow) as seen:
            assert (await seen.get("/metrics"))[0] == 401
            assert (await seen.get("/metrics", Authorization=f"Bearer {key}"))[0] == 200
            running = asyncio.ensure_future(seen.daemon.run())
            await seen.daemon.ready.wait()
            assert (await seen.get("/readyz"))[0] == 200, "no key is needed to ask that"
            async with AsyncOpenAI(
                base_url=f"{seen.url}/v1", api_key=key, max_retries=0, timeout=20
            ) as client:
                answer = await client.chat.completions.create(**ASK)
                assert answer.usage is not None and answer.usage.completion_tokens == 8
            assert seen.daemon.address is not None
            greeted = await dial(seen.daemon.address, Greeting(identity=friend))
            await greeted.connection.close()
            with pytest.raises(Exception, match=r"list|allow|serve"):
                await dial(seen.daemon.address, Greeting())
            await stopped(seen.daemon, running)

    run_async(work())


def test_without_keys_only_names_of_this_machine_are_answered(
    folder: ModelFolder, tmp_path: Path, run_async: Runner
) -> None:
    async def work() -> None:
        async with site(folder, tmp_path) as seen:
            assert (await seen.get("/metrics", Host="evil.example"))[0] == 403

    run_async(work())


def test_a_taken_port_is_said_before_anything_is_loaded(
    folder: ModelFolder, tmp_path: Path, run_async: Runner
) -> None:
    async def work() -> None:
        async with site(folder, tmp_path) as seen:
            port = int(seen.url.rpartition(":")[2])
            with pytest.raises(PortInUse, match=f"127.0.0.1:{port}"):
                async with serve_node_http(seen.daemon, "127.0.0.1", port):
                    pass

    run_async(work())


def test_a_part_of_a_model_is_refused_without_loading_its_ends(
    folder: ModelFolder, tmp_path: Path, run_async: Runner, loads: list[AnyGateway]
) -> None:
    async def work() -> None:
        async with site(folder, tmp_path, span=Span(0, 3)) as seen:
            running = asyncio.ensure_future(seen.daemon.run())
            await seen.daemon.ready.wait()
            async with asyncio.timeout(10):
                while not (await seen.samples())["swarmd_node_ready",]:  # a scrape probes as well
                    await asyncio.sleep(0.01)
            assert (await seen.get("/readyz"))[0] == 200, "its own blocks compute"
            async with aiohttp.ClientSession() as http:
                for _ in range(2):
                    url = f"{seen.url}/v1/chat/completions"
                    async with http.post(url, json=ASK) as answer:
                        assert answer.status == 503
                        assert (await answer.json())["error"]["missing"] == ["3:6"]
            assert not loads
            await stopped(seen.daemon, running)

    run_async(work())
