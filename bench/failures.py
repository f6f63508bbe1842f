"""Speed when transfers break: tokens/s at a probability p, relative to p = 0 of the same round.

As in the table on failures of Petals' paper (Borzunov et al. 2023), each transfer of a step breaks
with probability p. Here a transfer is what a step sends to one hop. That one is lost on its way,
and all connections of that node are reset by a proxy in front of it: its sessions and their caches
are gone, so another holder of its blocks has to replay them, or (`--standby`) held them ready. The
node itself goes on and may be taken again at once; bans are those of the product. Each half of the
model has two holders, on loopback. Rounds without and with failures are paired, and all their
answers must be equal.

The cost of keeping the history is what its calls take in one step (one append at each hop boundary,
each after the cut with which a step begins), timed by themselves, over the median step of p = 0.

    python -m bench.failures [--p 1e-3] [--tokens 128] [--rounds 3] [--standby]

One run measures one pair of p and tokens and puts it into bench/results/failures.json beside those
that are there, each with the commit it was measured at.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import statistics
import time
from collections.abc import Sequence
from typing import Any

from bench.chaos.__main__ import halves
from bench.chaos.clients import Client, Model, Setting, Tally
from bench.chaos.proxy import Proxy
from bench.chaos.runner import Swarmlet
from bench.report import RESULTS, save, show
from swarmd.client.loading import resolve_client_folder
from swarmd.client.sampling import SamplingConfig
from swarmd.compute.ends import ModelEnds
from swarmd.routing.history import History

PETALS = {"0.001": 0.73, "0.01": 0.20}
"""What Petals keeps of its own speed without failures in its paper, at 1,024 tokens."""
HOPS = 2


class Breaker:
    """Breaks the transfers that a seeded draw picks, while it is the hook of a client."""

    def __init__(self, proxies: Sequence[Proxy], p: float, rng: random.Random) -> None:
        self._proxies = {f"127.0.0.1:{proxy.port}": proxy for proxy in proxies}
        self._p, self._rng = p, rng

    def __call__(self, addresses: Sequence[str]) -> None:
        """Before a step through the nodes at `addresses`."""
        for address in addresses:
            if self._rng.random() < self._p:
                self._proxies[address].break_next()


def history_seconds(position_bytes: int, positions: int) -> float:
    """Seconds that the histories of all boundaries take in one step, on average over an answer."""
    data = bytes(position_bytes)
    histories = [History(position_bytes) for _ in range(HOPS)]
    began = time.perf_counter()
    for position in range(positions):
        for history in histories:
            history.cut(position)
            history.append(data)
    return (time.perf_counter() - began) / positions


async def measure(
    model: Model, p: float, tokens: int, rounds: int, seed: int, standby: bool
) -> dict[str, Any]:
    """Rounds in pairs. Raises RuntimeError when answers differ."""
    rng = random.Random(seed)
    found: dict[str, Any] = {"calm": [], "harmed": [], "broken": [], "replaced": [], "replayed": []}
    spans = halves(model.folder.n_blocks)[:4]
    setting = Setting("greedy", SamplingConfig(), standby=standby)
    async with Swarmlet.of(spans, "--dtype", "float32") as swarmlet:
        async with Client(swarmlet.contacts, model, setting) as client:
            await client.answer(0, 16, Tally())  # warm
            for number in range(rounds):
                answers = {}
                names = ["calm", "harmed"] if number % 2 == 0 else ["harmed", "calm"]
                for name in names:
                    breaker = Breaker(swarmlet.proxies, p if name == "harmed" else 0.0, rng)
                    before, tally = sum(one.broken for one in swarmlet.proxies), Tally()
                    began = time.perf_counter()
                    answers[name] = await client.answer(0, tokens, tally, breaker)
                    found[name].append(tokens / (time.perf_counter() - began))
                    if name == "harmed":
                        broken = sum(one.broken for one in swarmlet.proxies) - before
                        found["broken"].append(broken)
                        found["replaced"].append(len(tally.touches))
                        found["replayed"].append(sum(one.replayed for one in tally.touches))
                if answers["calm"] != answers["harmed"]:
                    raise RuntimeError("an answer with failures differs from the one without")
    pairs = zip(found["harmed"], found["calm"], strict=True)
    found["ratio"] = statistics.median(harmed / calm for harmed, calm in pairs)
    step = 1 / statistics.median(found["calm"])
    history = history_seconds(model.folder.hidden_size * 4, tokens)
    found["history_us"] = round(1e6 * history, 2)
    found["history_share"] = history / step
    return found


def merged(name: str, entry: dict[str, Any]) -> dict[str, Any]:
    """All that was measured so far, and `entry` in its place."""
    path = RESULTS / "failures.json"
    figures: dict[str, Any] = json.loads(path.read_text())["figures"] if path.exists() else {}
    return dict(sorted({**figures, name: entry}.items()))


async def work(options: argparse.Namespace) -> dict[str, Any]:
    folder = await resolve_client_folder(None, None)
    model = Model(folder, await asyncio.to_thread(ModelEnds, folder, dtype="float32"))
    return await measure(
        model, options.p, options.tokens, options.rounds, options.seed, options.standby
    )


def main() -> None:
    """Measure one pair, print all, save all."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--p", type=float, default=1e-3)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--standby", action="store_true")
    options = parser.parse_args()
    entry = {**vars(options), **asyncio.run(work(options))}
    name = f"{options.tokens} tokens, p {options.p:g}{', standby' if options.standby else ''}"
    figures = merged(name, entry)
    path = save("failures", {"hops": HOPS, "holders": 2, "link": "loopback"}, figures)
    record = json.loads(path.read_text())
    entry["commit"], entry["when"] = record["commit"], record["when"]
    path.write_text(json.dumps(record | {"figures": figures}, indent=1) + "\n")
    rows = [
        (
            one["tokens"], f"{one['p']:g}", "yes" if one.get("standby") else "no",
            f"{statistics.median(one['calm']):.1f}",
            f"{one['ratio']:.2f}",
            PETALS.get(f"{one['p']:g}", "-") if one["tokens"] == 1024 else "-",
            sum(one["broken"]), sum(one["replayed"]), f"{100 * one['history_share']:.2f} %",
        )
        for one in figures.values()
    ]  # fmt: skip
    show(
        "speed when transfers break, relative to none broken in the same round",
        ("tokens", "p", "standby", "tokens/s at p=0", "ratio", "Petals' paper", "broken",
         "replayed", "history"),
        rows,
    )  # fmt: skip


if __name__ == "__main__":
    main()
