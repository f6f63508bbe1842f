"""The official client over loopback: streams, whole answers, refusals, and peers that die."""

from __future__ import annotations

import asyncio
import json
import math
from typing import Any

import aiohttp
import openai
import pytest

from swarmd.api.limits import ApiLimits
from swarmd.blocks import Span
from tests.api.conftest import ALIAS, SPANS, Served, served
from tests.conftest import Runner
from tests.local_swarm import LocalSwarm

HELLO: list[Any] = [{"role": "user", "content": "hello, wörld"}]
KEY = "a-key-of-these-tests"
COMMON: dict[str, Any] = {"model": "tiny", "messages": HELLO, "max_tokens": 20, "seed": 5}


async def until_idle(served: Served) -> float:
    """Seconds until no cache holds anything."""
    began = asyncio.get_running_loop().time()
    async with asyncio.timeout(5):
        while not served.idle:
            await asyncio.sleep(0.005)
    return asyncio.get_running_loop().time() - began


async def streamed(client: openai.AsyncOpenAI, **options: Any) -> str:
    stream = await client.chat.completions.create(**{**COMMON, **options}, stream=True)
    return "".join([c.choices[0].delta.content or "" async for c in stream if c.choices])


def test_whole_and_streamed_answers_are_the_same(swarm: LocalSwarm, run_async: Runner) -> None:
    async def work() -> None:
        async with served(swarm) as server, server.client() as client:
            assert [model.id async for model in client.models.list()] == ["tiny"]
            assert (await client.models.retrieve("tiny")).owned_by == "swarmd"
            raw = await client.chat.completions.with_raw_response.create(**COMMON)
            whole = raw.parse()
            text = whole.choices[0].message.content
            assert text and len(set(text)) > 4
            assert whole.choices[0].finish_reason == "length"
            assert whole.usage is not None
            assert whole.usage.completion_tokens == 20
            prompt = len("user: hello, wörld\nassistant: ".encode())
            assert whole.usage.prompt_tokens == prompt
            route = raw.headers["x-swarmd-route"]
            assert "0:3 via " in route and "3:6 via " in route and route.endswith(" ms")
            assert raw.headers["x-request-id"].startswith("req-")

            stream = await client.chat.completions.create(
                **COMMON, stream=True, stream_options={"include_usage": True}
            )
            assert "0:3 via " in stream.response.headers["x-swarmd-route"]
            chunks = [chunk async for chunk in stream]
            assert chunks[0].choices[0].delta.role == "assistant"
            assert "".join(c.choices[0].delta.content or "" for c in chunks[:-1]) == text
            assert chunks[-2].choices[0].finish_reason == "length"
            assert (chunks[-1].choices, chunks[-1].usage) == ([], whole.usage)

            other = await client.chat.completions.create(**{**COMMON, "seed": 6})
            assert other.choices[0].message.content != text
            await until_idle(server)

    run_async(work())


def test_choices_stops_and_prompts(swarm: LocalSwarm, run_async: Runner) -> None:
    async def work() -> None:
        async with served(swarm) as server, server.client() as client:
            both = await client.chat.completions.create(**COMMON, n=2)
            one, two = (choice.message.content or "" for choice in both.choices)
            assert one != two
            single = await client.chat.completions.create(**{**COMMON, "seed": 6})
            assert single.choices[0].message.content == two, "choice i has the seed + i"
            stop = one[5:7]
            cut = await client.chat.completions.create(**COMMON, stop=stop)
            assert cut.choices[0].message.content == one[: one.index(stop)]
            assert cut.choices[0].finish_reason == "stop"
            done = await client.completions.create(
                model="tiny", prompt=["a", "b"], n=2, temperature=0, max_tokens=4
            )
            assert [choice.index for choice in done.choices] == [0, 1, 2, 3]
            assert done.choices[0].text == done.choices[1].text
            assert done.usage is not None and done.usage.completion_tokens == 16
            ids = await client.completions.create(
                model="tiny", prompt=server.gateway.text.encode("b"), temperature=0, max_tokens=4
            )
            assert ids.choices[0].text == done.choices[2].text
            stream = await client.completions.create(
                model="tiny", prompt="b", temperature=0, max_tokens=4, stream=True
            )
            assert "".join([c.choices[0].text async for c in stream]) == ids.choices[0].text

    run_async(work())


def test_log_probabilities_and_penalties(swarm: LocalSwarm, run_async: Runner) -> None:
    async def work() -> None:
        async with served(swarm) as server, server.client() as client:
            greedy: dict[str, Any] = {**COMMON, "temperature": 0}
            answer = await client.chat.completions.create(**greedy, logprobs=True, top_logprobs=3)
            found = answer.choices[0].logprobs
            assert found is not None and found.content is not None
            assert len(found.content) == 20
            for token in found.content:
                assert len(token.top_logprobs) == 3
                assert token.logprob == token.top_logprobs[0].logprob <= 0
            old = await client.completions.create(
                model="tiny", prompt="b", max_tokens=4, logprobs=0, seed=1
            )
            scores = old.choices[0].logprobs
            assert scores is not None and scores.tokens is not None
            assert len(scores.tokens) == 4 and scores.text_offset is not None
            assert scores.text_offset[:2] == [0, len(scores.tokens[0])]
            assert all(math.exp(p or 0) <= 1 for p in scores.token_logprobs or [])
            # the likeliest token wins by far less than 2 here: each is given once
            fresh = await client.chat.completions.create(
                **greedy, logprobs=True, presence_penalty=2, frequency_penalty=2
            )
            content = fresh.choices[0].logprobs
            assert content is not None and content.content is not None
            plain = len({token.token for token in found.content})
            assert len({token.token for token in content.content}) > plain

    run_async(work())


@pytest.mark.parametrize("token", [0, 1, 7])
def test_a_stream_survives_a_killed_peer(token: int, swarm: LocalSwarm, run_async: Runner) -> None:
    async def work() -> None:
        async with served(swarm, SPANS + SPANS) as server, server.client() as client:
            undisturbed = await streamed(client)
            stream = await client.chat.completions.create(**COMMON, stream=True)
            used = stream.response.headers["x-swarmd-route"]
            text, seen = "", 0
            async for chunk in stream:
                if seen == token:
                    victim = next(p for p in swarm.peers[::-1] if p.identity.peer_id.short in used)
                    victim.kill()
                seen += 1
                text += chunk.choices[0].delta.content or ""
            assert text == undisturbed
            await until_idle(server)

    run_async(work())


def test_a_client_that_goes_away_frees_the_caches(swarm: LocalSwarm, run_async: Runner) -> None:
    async def work() -> None:
        async with served(swarm) as server, server.client() as client:
            long: dict[str, Any] = {**COMMON, "max_tokens": 200, "logprobs": True, "n": 2}
            stream = await client.chat.completions.create(**long, stream=True)
            for _ in range(4):
                await anext(stream)
            assert not server.idle
            await stream.close()
            assert await until_idle(server) < 1.0
            request = asyncio.ensure_future(client.chat.completions.create(**long))
            while server.idle:
                await asyncio.sleep(0.001)
            request.cancel()
            with pytest.raises(asyncio.CancelledError):
                await request
            assert await until_idle(server) < 1.0
            assert await streamed(client), "and the server goes on"

    run_async(work())


def test_refusals_are_the_clients_exceptions(swarm: LocalSwarm, run_async: Runner) -> None:
    async def work() -> None:
        limits = ApiLimits(body=4096, concurrent=2)
        async with served(swarm, keys=(KEY,), limits=limits) as server:
            async with server.client("wrong") as client:
                with pytest.raises(openai.AuthenticationError) as refused:
                    await client.models.list()
                assert refused.value.code == "invalid_api_key"
            async with server.client(KEY) as client:

                async def fails(error: type[openai.APIStatusError], **options: Any) -> Any:
                    with pytest.raises(error) as refused:
                        await client.chat.completions.create(**{**COMMON, **options})
                    assert refused.value.request_id
                    return refused.value

                for name in (ALIAS, str(swarm.folder.model_id)):
                    asked = {**COMMON, "model": name, "max_tokens": 1}
                    assert (await client.chat.completions.create(**asked)).choices
                unknown = await fails(openai.NotFoundError, model="gpt-9")
                assert "tiny" in unknown.message
                bad = openai.UnprocessableEntityError
                assert (await fails(bad, logit_bias={"1": 2})).param == "logit_bias"
                refusing = [{"role": "user", "content": "refuse me"}]
                assert "not that" in (await fails(bad, messages=refusing)).message
                assert (await fails(bad, n=3)).param == "n"
                long = await fails(openai.BadRequestError, max_tokens=250)
                assert long.code == "context_length_exceeded"
                huge = await fails(openai.APIStatusError, user="x" * 5000)
                assert huge.status_code == 413
                with pytest.raises(openai.NotFoundError):
                    await client.embeddings.create(model="tiny", input="x")
            async with aiohttp.ClientSession(server.url) as http:
                headers = {"Authorization": f"Bearer {KEY}", "X-Request-Id": "mine-1"}
                async with http.post("/v1/completions", data="{}", headers=headers) as answer:
                    assert answer.status == 415
                    assert answer.headers["X-Request-Id"] == "mine-1"
                async with http.get("/healthz") as answer:
                    assert await answer.json() == {"status": "ok"}

    run_async(work())


def test_a_foreign_host_is_refused_without_keys(swarm: LocalSwarm, run_async: Runner) -> None:
    async def work() -> None:
        async with served(swarm) as server, aiohttp.ClientSession(server.url) as http:
            async with http.get("/v1/models", headers={"Host": "evil.example"}) as answer:
                assert answer.status == 403
            async with http.get("/v1/models") as answer:
                assert answer.status == 200

    run_async(work())


def test_a_body_that_does_not_come(swarm: LocalSwarm, run_async: Runner) -> None:
    async def work() -> None:
        async with served(swarm, limits=ApiLimits(body_timeout=0.05)) as server:
            reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
            writer.write(
                b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\n"
                b"Content-Type: application/json\r\nContent-Length: 100\r\n\r\n{"
            )
            assert b" 408 " in await asyncio.wait_for(reader.readline(), 5)
            writer.close()
            await writer.wait_closed()

    run_async(work())


def test_missing_blocks_are_named(swarm: LocalSwarm, run_async: Runner) -> None:
    async def work() -> None:
        async with served(swarm, [Span(0, 3)]) as server, server.client() as client:
            with pytest.raises(openai.InternalServerError) as refused:
                await client.chat.completions.create(**COMMON)
            assert refused.value.status_code == 503
            assert refused.value.body["missing"] == ["3:6"]  # type: ignore[index]

    run_async(work())


def test_too_much_at_once(swarm: LocalSwarm, run_async: Runner) -> None:
    async def work() -> None:
        limits = ApiLimits(concurrent=1, requests_a_minute=24)  # four at once
        async with served(swarm, limits=limits) as server, server.client() as client:
            stream = await client.chat.completions.create(**COMMON, stream=True)
            with pytest.raises(openai.RateLimitError) as refused:
                await client.chat.completions.create(**COMMON)
            assert refused.value.code == "too_many_answers"
            assert refused.value.response.headers["retry-after"] == "1"
            assert [chunk async for chunk in stream]
            await client.models.list()
            await client.models.list()
            with pytest.raises(openai.RateLimitError) as refused:
                await client.models.list()
            assert refused.value.code == "rate_limit_exceeded"
            assert int(refused.value.response.headers["retry-after"]) <= 3

    run_async(work())


def test_no_room_in_the_caches_is_429(swarm: LocalSwarm, run_async: Runner) -> None:
    async def work() -> None:
        limits = ApiLimits(busy_patience=0.05)
        async with served(swarm, kv_tokens=256, limits=limits) as server, server.client() as client:
            async with await swarm.session(max_length=256) as other:
                await other.step(0, bytes(240 * swarm.folder.hidden_size * 4), 240)
                with pytest.raises(openai.RateLimitError) as refused:
                    await client.chat.completions.create(**COMMON, stream=True)
            assert refused.value.code == "swarm_busy"
            assert int(refused.value.response.headers["retry-after"]) >= 1
            await until_idle(server)
            assert await streamed(client)

    run_async(work())


def test_a_silent_stream_is_kept_alive_and_a_late_error_is_an_event(
    swarm: LocalSwarm, run_async: Runner
) -> None:
    async def work() -> None:
        limits = ApiLimits(head_start=0.0, keep_alive=0.001)
        async with served(swarm, limits=limits) as server:
            body = {**COMMON, "stream": True}
            async with aiohttp.ClientSession(server.url) as http:
                async with http.post("/v1/chat/completions", json=body) as answer:
                    text = (await answer.read()).decode()
                assert ": keep-alive\n\n" in text
                assert text.endswith("data: [DONE]\n\n")
                async with http.post("/v1/chat/completions", json=body) as answer:
                    for peer in swarm.peers:
                        peer.kill()
                    lines = (await answer.read()).decode().split("\n\n")
                last = json.loads(lines[-3].removeprefix("data: "))
                assert last["error"]["code"] == "no_route"

    run_async(work())


def test_many_clients_share_one_gateway(swarm: LocalSwarm, run_async: Runner) -> None:
    async def work() -> None:
        limits = ApiLimits(concurrent=24)
        async with served(swarm, limits=limits) as server, server.client() as client:
            alone = [await streamed(client, seed=seed) for seed in range(4)]
            asks = [streamed(client, seed=seed % 4) for seed in range(24)]
            assert await asyncio.gather(*asks) == alone * 6
            await until_idle(server)

    run_async(work())
