"""The stall that a user sees when a peer on the route dies or hangs, by position in the answer.

Four real daemons hold SmolLM2 twice. The process of a used one is killed (SIGKILL) or stopped
(SIGSTOP) just after a given token; the stall is the time to the next token, less the median time
a token of the same answer. Every disturbed answer must equal the undisturbed one. The baseline
in the same run is what a system without replay has to do: prefill prompt and answer again over
the whole chain.

    python -m bench.failover [--repeats 5] [--positions 16 64 256]
"""

from __future__ import annotations

import argparse
import asyncio
import signal
import statistics
import time
from typing import Any

from bench.nodes import Swarm, swarm
from bench.report import save, show
from swarmd.client.chain_session import ChainSession
from swarmd.client.forward import forward
from swarmd.client.generate import decode_tokens
from swarmd.client.loading import ClientModel, load_client, resolve_client_folder
from swarmd.client.sampling import Sampler, SamplingConfig
from swarmd.client.swarm import SwarmClient, choose_chain
from swarmd.state import StateFolder

PROMPT = "Write a long story about a lighthouse keeper and the sea.\n\nOnce upon a time,"
AFTER = 12


async def answer(
    running: Swarm, model: ClientModel, tokens: int, kill_at: int | None, number: int
) -> tuple[list[int], list[float], Any]:
    """Greedy tokens, the seconds of each, and the session's statistics."""
    state = StateFolder(running.folder).path
    async with SwarmClient(state_dir=state) as client:
        folder = model.folder
        pool = await client.pool(folder.model_id)
        router = client.router(
            pool,
            model_id=folder.model_id,
            model_name=folder.name,
            n_blocks=folder.n_blocks,
            bytes_per_token=folder.hidden_size * 4,
        )
        chain = await choose_chain(router, wait=60)
        prompt_ids = model.text.encode(PROMPT)
        session = ChainSession(
            router, pool, chain,
            hidden_size=folder.hidden_size, max_length=len(prompt_ids) + tokens,
        )  # fmt: skip
        found: list[int] = []
        times: list[float] = []
        async with session:
            await session.open_links()
            began = time.perf_counter()
            async for token in decode_tokens(
                model.ends, session, prompt_ids, Sampler(SamplingConfig()),
                max_new_tokens=tokens, eos_token_ids=frozenset(),
            ):  # fmt: skip
                now = time.perf_counter()
                times.append(now - began)
                began = now
                found.append(token)
                if kill_at == len(found):
                    victim = running.by_address(str(session.chain[-1].peer.address))
                    victim.kill(number)
            return found, times, session.statistics


async def restart_cost(running: Swarm, model: ClientModel, ids: list[int]) -> float:
    """Seconds to prefill `ids` anew over the whole chain: the answer without replay."""
    state = StateFolder(running.folder).path
    async with SwarmClient(state_dir=state) as client:
        folder = model.folder
        pool = await client.pool(folder.model_id)
        router = client.router(
            pool, model_id=folder.model_id, model_name=folder.name,
            n_blocks=folder.n_blocks, bytes_per_token=folder.hidden_size * 4,
        )  # fmt: skip
        chain = await choose_chain(router, wait=60)
        session = ChainSession(
            router, pool, chain, hidden_size=folder.hidden_size, max_length=len(ids) + 1
        )
        async with session:
            await session.open_links()
            began = time.perf_counter()
            await forward(model.ends, session, ids, 0)
            return time.perf_counter() - began


def replace_dead(running: Swarm) -> None:
    """End a stopped or killed node for good and start another with its blocks."""
    for node in list(running.nodes):
        stopped = node.process.poll() is None and _is_stopped(node.process.pid)
        if node.process.poll() is not None or stopped:
            node.process.kill()
            node.process.wait()
            running.nodes.remove(node)
            running.start(node.blocks)


def _is_stopped(pid: int) -> bool:
    import psutil

    return bool(psutil.Process(pid).status() == psutil.STATUS_STOPPED)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--positions", type=int, nargs="+", default=[16, 64, 256])
    options = parser.parse_args()

    async def load() -> ClientModel:
        folder = await resolve_client_folder(None, None)
        return await load_client(folder, "float32")

    model = asyncio.run(load())
    figures: dict[str, Any] = {}
    rows = []
    with swarm("0:15", "15:30", "0:15", "15:30") as running:
        for position in options.positions:
            tokens = position + AFTER
            reference, _, _ = asyncio.run(answer(running, model, tokens, None, 0))
            prompt_ids = model.text.encode(PROMPT)
            entry: dict[str, Any] = {"kill": [], "stop": [], "restart": [], "replayed": []}
            for _ in range(options.repeats):
                ids = [*prompt_ids, *reference[:position]]
                entry["restart"].append(asyncio.run(restart_cost(running, model, ids)))
                for name, number in (("kill", signal.SIGKILL), ("stop", signal.SIGSTOP)):
                    found, times, statistics_ = asyncio.run(
                        answer(running, model, tokens, position, number)
                    )
                    if found != reference:
                        raise SystemExit(f"tokens differ after {name} at {position}")
                    if len(statistics_.recoveries) != 1:
                        raise SystemExit(f"{len(statistics_.recoveries)} recoveries")
                    entry[name].append(times[position] - statistics.median(times[1:]))
                    entry["replayed"].append(statistics_.replayed_positions)
                    replace_dead(running)
            figures[str(position)] = entry
            rows.append(
                (
                    position,
                    *(f"{statistics.median(entry[k]):.2f} s" for k in ("kill", "stop", "restart")),
                )
            )
    show(
        f"stall after a failure, SmolLM2 fp32, two hops, medians of {options.repeats}; "
        "all answers equal the undisturbed one",
        ("at token", "kill -9", "SIGSTOP", "prefill anew (no replay)"),
        rows,
    )
    save("failover", {"repeats": options.repeats, "prompt": PROMPT, "link": "loopback"}, figures)


if __name__ == "__main__":
    main()
