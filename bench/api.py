"""`swarmd api` under load, by the official client, and its price beside `swarmd generate`.

python -m bench.api [--rounds N] [--clients N]

Rounds alternate between one stream through the API and `swarmd generate` on the same swarm, so that
their ratio is the API's price. Then many clients ask at once, each again when it is refused with
429; any other error fails the benchmark.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import statistics
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import openai
import psutil

from bench.nodes import SWARMD, Swarm, free_port, swarm
from bench.report import save, show

PROMPT = "Once upon a time, by the sea,"
TOKENS = 48
LOAD_TOKENS = 8
START_TIMEOUT = 60.0
GIVE_UP = 75.0
"""Seconds until a client of the load stops asking."""


@dataclass
class Load:
    """What the clients of the load met; times are those of the requests that were answered."""

    seconds: list[float] = field(default_factory=list)
    first_token: list[float] = field(default_factory=list)
    refused: int = 0
    late: int = 0


@contextlib.contextmanager
def api_server(nodes: Swarm, concurrent: int) -> Iterator[tuple[str, psutil.Process]]:
    """The base URL of a running `swarmd api`, and its process."""
    port = free_port()
    log = nodes.folder / "api.log"
    with log.open("wb") as file:
        process = subprocess.Popen(
            [
                *SWARMD, "api", "--port", str(port), "--requests-a-minute", "1000000",
                "--concurrent", str(concurrent),
            ],
            env=nodes.environment, stdout=file, stderr=file,
        )  # fmt: skip
    try:
        began = time.monotonic()
        while b"/v1" not in log.read_bytes():
            if process.poll() is not None or time.monotonic() - began > START_TIMEOUT:
                raise RuntimeError(f"the API did not start:\n{log.read_text()}")
            time.sleep(0.05)
        yield f"http://127.0.0.1:{port}/v1", psutil.Process(process.pid)
    finally:
        process.terminate()
        process.wait(15)


async def one_stream(
    client: openai.AsyncOpenAI, model: str, tokens: int
) -> tuple[str, list[float]]:
    """The text, and the times at which its pieces came, from the request on."""
    began = time.perf_counter()
    stream = await client.completions.create(
        model=model, prompt=PROMPT, max_tokens=tokens, temperature=0, stream=True
    )
    text, stamps = "", []
    async for chunk in stream:
        if chunk.choices and chunk.choices[0].text:
            text += chunk.choices[0].text
            stamps.append(time.perf_counter() - began)
    return text, stamps


async def load(client: openai.AsyncOpenAI, model: str, clients: int) -> Load:
    """So many clients at once, each until it has its answer."""
    met = Load()

    async def ask() -> None:
        began = time.perf_counter()
        while time.perf_counter() - began < GIVE_UP:
            try:
                _, stamps = await one_stream(client, model, LOAD_TOKENS)
            except openai.RateLimitError as error:
                met.refused += 1
                await asyncio.sleep(float(error.response.headers["retry-after"]))
                continue
            met.seconds.append(stamps[-1])
            met.first_token.append(stamps[0])
            return
        met.late += 1

    async with asyncio.TaskGroup() as group:
        for _ in range(clients):
            group.create_task(ask())
    return met


async def measure(
    url: str, nodes: Swarm, process: psutil.Process, rounds: int, clients: int
) -> Any:
    """All figures; prints a chat answer to look at."""
    async with openai.AsyncOpenAI(
        base_url=url, api_key="none", max_retries=0, timeout=GIVE_UP + 60
    ) as client:
        (model,) = [model.id async for model in client.models.list()]
        raw = await client.chat.completions.with_raw_response.create(
            model=model, temperature=0, max_tokens=40,
            messages=[{"role": "user", "content": "What is the capital of France?"}],
        )  # fmt: skip
        answer = raw.parse()
        print("chat:", answer.choices[0].message.content)
        print("route:", raw.headers["x-swarmd-route"])
        through_api, alone, same = [], [], []
        for _ in range(rounds):
            text, stamps = await one_stream(client, model, TOKENS)
            through_api.append((len(stamps) - 1) / (stamps[-1] - stamps[0]))
            done = await asyncio.to_thread(
                nodes.run, "generate", PROMPT, "--json", "--max-new-tokens", str(TOKENS)
            )
            own = json.loads(done.stdout)
            alone.append(own["tokens_per_second"])
            same.append(own["text"] == text)
        memory, descriptors = process.memory_info().rss, process.num_fds()
        began = time.perf_counter()
        met = await load(client, model, clients)
        seconds = time.perf_counter() - began
    return {
        "chat": answer.choices[0].message.content,
        "texts_equal": all(same),
        "api_tokens_per_second": through_api,
        "generate_tokens_per_second": alone,
        "ratio": statistics.median(through_api) / statistics.median(alone),
        "clients": clients,
        "answered": len(met.seconds),
        "refused_429": met.refused,
        "gave_up": met.late,
        "load_seconds": seconds,
        "load_tokens_per_second": len(met.seconds) * LOAD_TOKENS / seconds,
        "load_first_token_median": statistics.median(met.first_token),
        "load_answer_median": statistics.median(met.seconds),
        "memory_before_mb": memory / 1e6,
        "memory_after_mb": process.memory_info().rss / 1e6,
        "descriptors_before": descriptors,
        "descriptors_after": process.num_fds(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--clients", type=int, default=200)
    parser.add_argument("--concurrent", type=int, default=16)
    args = parser.parse_args()
    with swarm("0:15", "15:30") as nodes, api_server(nodes, args.concurrent) as (url, process):
        figures = asyncio.run(measure(url, nodes, process, args.rounds, args.clients))
    show(
        "swarmd api over two daemons",
        ["what", "figure"],
        [
            ["one stream, API / generate, tokens/s", f"{figures['ratio']:.2f}"],
            ["texts equal", figures["texts_equal"]],
            [f"{args.clients} clients: answered", figures["answered"]],
            ["refused with 429, then asked again", figures["refused_429"]],
            ["tokens/s in all", f"{figures['load_tokens_per_second']:.1f}"],
            ["first token, median s", f"{figures['load_first_token_median']:.2f}"],
        ],
    )
    save(
        "api",
        {"prompt": PROMPT, "tokens": TOKENS, "load_tokens": LOAD_TOKENS, **vars(args)},
        figures,
    )


if __name__ == "__main__":
    main()
