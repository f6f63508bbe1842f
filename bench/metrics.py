"""What metrics cost a decode step: a node that is not scraped, beside one scraped often.

python -m bench.metrics [--rounds N] [--steps N]

One daemon holds all blocks of the default model; one session sends it steps of one token. Rounds
alternate between no scrape, one each second and one each 0.1 s, each time in another order, by a
thread of this process, whose own work counts against the metrics. A ratio is the median of the
rounds' ratios. The cost of counting a step is measured on its own, and put in relation to the step.
"""

from __future__ import annotations

import argparse
import asyncio
import re
import statistics
import threading
import time
import timeit
import urllib.request

from bench.nodes import swarm
from bench.report import save, show
from swarmd.client.chain_session import ChainSession
from swarmd.client.loading import resolve_client_folder
from swarmd.client.swarm import SwarmClient, choose_chain
from swarmd.node.served import Statistics
from swarmd.peers import Address

VARIANTS = {"not scraped": None, "scraped each second": 1.0, "scraped each 0.1 s": 0.1}
"""Seconds between scrapes."""


class Scraper:
    """`with Scraper(url, every):` reads the metrics again and again in a thread."""

    def __init__(self, url: str, every: float | None) -> None:
        self.bytes = 0
        self.seconds: list[float] = []
        self._url = url
        self._every = every
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Scraper:
        if self._every is not None:
            self._thread.start()
        return self

    def __exit__(self, *_exc: object) -> None:
        self._ended.set()
        if self._every is not None:
            self._thread.join()

    def _run(self) -> None:
        assert self._every is not None
        while not self._ended.wait(self._every):
            began = time.perf_counter()
            with urllib.request.urlopen(self._url, timeout=10) as answer:
                self.bytes = len(answer.read())
            self.seconds.append(time.perf_counter() - began)


def seconds_to_count(repeats: int = 100_000) -> float:
    """Seconds that counting one step takes."""
    did = Statistics()
    return timeit.timeit(lambda: did.ran(1, 0.0002, 0.02), number=repeats) / repeats


async def measure(
    port: int, url: str, rounds: int, steps: int
) -> tuple[list[dict[str, float]], Scraper]:
    """Median milliseconds of a step by variant, for each round; and the busiest scraper."""
    folder = await resolve_client_folder(None, None)
    found: list[dict[str, float]] = []
    busiest = Scraper(url, None)
    async with SwarmClient([Address("127.0.0.1", port)]) as client:
        pool = await client.pool(folder.model_id)
        router = client.router(
            pool, model_id=folder.model_id, model_name=folder.name, n_blocks=folder.n_blocks,
            bytes_per_token=folder.hidden_size * 4,
        )  # fmt: skip
        session = ChainSession(
            router, pool, await choose_chain(router),
            hidden_size=folder.hidden_size, max_length=64 + steps,
        )  # fmt: skip
        row = folder.hidden_size * 4
        async with session:
            await session.open_links()
            await session.step(0, bytes(64 * row), 64)
            for at in range(rounds + 1):  # the first round warms up
                order = list(VARIANTS)[at % 3 :] + list(VARIANTS)[: at % 3]
                medians = {}
                for name in order:
                    times = []
                    with Scraper(url, VARIANTS[name]) as scraper:
                        for step in range(steps):
                            began = time.perf_counter()
                            await session.step(64 + step, bytes(row), 1)
                            times.append(time.perf_counter() - began)
                    medians[name] = 1000 * statistics.median(times)
                    busiest = max(busiest, scraper, key=lambda one: len(one.seconds))
                if at:
                    found.append(medians)
    return found, busiest


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--steps", type=int, default=48)
    arguments = parser.parse_args()
    with swarm() as nodes:
        node = nodes.launch("0:30", "--http", "0", "--no-lan")
        nodes.wait_ready(node)
        found = re.search(r"HTTP at (http://\S+)", node.log.read_text())
        assert found is not None
        url = found[1] + "/metrics"
        by_round, scraper = asyncio.run(measure(node.port, url, arguments.rounds, arguments.steps))
        resident = node.resident_mb
    counting = seconds_to_count()
    steps = {name: statistics.median(one[name] for one in by_round) for name in VARIANTS}
    ratios = {
        name: statistics.median(one[name] / one["not scraped"] for one in by_round)
        for name in VARIANTS
    }
    bare = steps["not scraped"]
    show(
        "A decode step through 30 blocks",
        ["variant", "ms", "ratio"],
        [[name, f"{ms:.2f}", f"{ratios[name]:.3f}"] for name, ms in steps.items()],
    )
    scrape_ms = 1000 * statistics.median(scraper.seconds)
    print(
        f"counting a step takes {1e6 * counting:.1f} µs, {1e5 * counting / bare:.4f} % of it; "
        f"a scrape {scrape_ms:.1f} ms for {scraper.bytes / 1000:.0f} kB"
    )
    save(
        "metrics",
        {"rounds": arguments.rounds, "steps": arguments.steps, "blocks": "0:30"},
        {
            "step_ms": steps,
            "ratio": ratios,
            "rounds_ms": by_round,
            "count_us": 1e6 * counting,
            "count_share": 1000 * counting / bare,
            "scrape_ms": scrape_ms,
            "scrape_bytes": scraper.bytes,
            "resident_mb": resident,
        },
    )


if __name__ == "__main__":
    main()
