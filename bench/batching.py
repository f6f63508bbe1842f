"""Many sessions at once on one daemon, against one session alone, and behind a long prompt.

One daemon serves all blocks of the default model in a process of its own. Clients open sessions
over loopback and decode single tokens as fast as answers come; they send hidden states of their
own and have no head, so only the daemon computes. Rounds with 1, 4 and 8 sessions alternate; then
8 sessions with and without a ninth that sends a prompt of 2,000 tokens, and a second time the same
prompt, which the daemon knows by then.

    python -m bench.batching [--rounds 5] [--seconds 6]
"""

from __future__ import annotations

import argparse
import asyncio
import random
import statistics
import time

import torch

from bench.nodes import swarm
from bench.report import save, show
from bench.sessions import HIDDEN, Session, opened

PROMPT, CHUNK = 2000, 512
GOALS = {4: 2.5, 8: 4.0}


async def decode(session: Session, until: float) -> int:
    done = 0
    while time.monotonic() < until:
        await session.step(noise(1, session.position))
        done += 1
    return done


def noise(tokens: int, seed: int) -> torch.Tensor:
    return torch.randn(1, tokens, HIDDEN, generator=torch.Generator().manual_seed(seed))


async def tokens_a_second(port: int, sessions: int, seconds: float) -> float:
    """Of so many sessions in all."""
    async with opened(port, sessions, length=512) as links:
        for number, link in enumerate(links):
            await link.step(noise(16 + number, number))
        until = time.monotonic() + seconds
        return sum(await asyncio.gather(*(decode(link, until) for link in links))) / seconds


async def behind_a_prompt(port: int, seed: int) -> tuple[float, float, float, float]:
    """Tokens a second of 8 sessions alone, and while a prompt is taken in; its seconds the first
    and the second time."""
    async with opened(port, 8, length=1024) as links, opened(port, 2, length=PROMPT) as others:
        for number, link in enumerate(links):
            await link.step(noise(16 + number, number))
        calm = await pace(links, asyncio.sleep(6.0))
        prompt = noise(PROMPT, seed)
        began = time.monotonic()
        busy = await pace(links, others[0].prefill(prompt, CHUNK))
        first = time.monotonic() - began
        began = time.monotonic()
        await others[1].prefill(prompt, CHUNK)
        return calm, busy, first, time.monotonic() - began


async def pace(links: list[Session], meanwhile: object) -> float:
    """Tokens a second of all `links` until `meanwhile` is over."""
    counts, going = [0] * len(links), True

    async def run(number: int) -> None:
        while going:
            await links[number].step(noise(1, links[number].position))
            counts[number] += 1

    began = time.monotonic()
    tasks = [asyncio.ensure_future(run(number)) for number in range(len(links))]
    await meanwhile  # type: ignore[misc]
    spent = time.monotonic() - began
    total = sum(counts)
    going = False
    await asyncio.gather(*tasks)
    return total / spent


async def measure(port: int, rounds: int, seconds: float) -> dict[str, list[float]]:
    found: dict[str, list[float]] = {}
    for number in range(rounds):
        for sessions in random.Random(number).sample((1, 4, 8), 3):
            rate = await tokens_a_second(port, sessions, seconds)
            found.setdefault(f"{sessions} sessions", []).append(rate)
        names = ("8 calm", "8 behind a prompt", "prompt s", "the same prompt again s")
        for name, value in zip(names, await behind_a_prompt(port, 1000 + number), strict=True):
            found.setdefault(name, []).append(value)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=6.0)
    options = parser.parse_args()
    with swarm("0:30", options=("--kv-tokens", "16384")) as nodes:
        found = asyncio.run(measure(nodes.nodes[0].port, options.rounds, options.seconds))
    medians = {name: statistics.median(values) for name, values in found.items()}
    one = medians["1 sessions"]
    rows = [
        (f"{n} sessions, tokens/s in all", f"{medians[f'{n} sessions']:.1f}",
         f"{medians[f'{n} sessions'] / one:.2f}", GOALS.get(n, 1.0))
        for n in (1, 4, 8)
    ]  # fmt: skip
    kept = medians["8 behind a prompt"] / medians["8 calm"]
    rows.append(("8 sessions behind a prompt", f"{medians['8 behind a prompt']:.1f}",
                 f"{kept:.2f} of calm", 0.5))  # fmt: skip
    again = medians["the same prompt again s"] / medians["prompt s"]
    rows.append(("the prompt, s", f"{medians['prompt s']:.2f}", "", ""))
    rows.append(("the same prompt again, s", f"{medians['the same prompt again s']:.2f}",
                 f"{again:.2f} of the first time", ""))  # fmt: skip
    show(f"medians of {options.rounds}", ("what", "figure", "ratio", "goal"), rows)
    save("batching", vars(options), {"medians": medians, "all": found})


if __name__ == "__main__":
    main()
