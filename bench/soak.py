"""Sessions of all kinds against one daemon for a long time; at the end everything is as it was.

Seeded clients open sessions over bare connections, take in prompts (some share their beginning),
decode, cut back, ask for too much, go silent for a while, vanish in the middle of a step. Memory,
descriptors and threads of the daemon are sampled. It fails, with a line that says why, if a page of
the cache is not back at the end, if descriptors or threads are left over, or if memory has grown by
more than the bound since the first minute.

    python -m bench.soak [--seconds 3600] [--clients 8] [--seed 1]
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import random
import re
import time

import psutil
import torch

from bench.nodes import Node, swarm
from bench.report import save, show
from bench.sessions import HIDDEN, Session, connected, session
from swarmd.errors import SwarmdError
from swarmd.wire.messages import Output

BLOCKS = (0, 6)
KV_TOKENS = 4096
WARM_UP = 60.0
GROWTH_MB = 32.0
"""What a process may grow by after its first minute: the allocator's fragments, Python's caches."""
SHARED = torch.randn(1, 256, HIDDEN, generator=torch.Generator().manual_seed(7))


def noise(tokens: int, rng: random.Random) -> torch.Tensor:
    return torch.randn(
        1, tokens, HIDDEN, generator=torch.Generator().manual_seed(rng.getrandbits(32))
    )


async def life(port: int, rng: random.Random, counts: dict[str, int]) -> None:
    """One session from its opening to its end, whatever that is."""
    length = rng.randrange(64, 1024)
    async with session(port, length, blocks=BLOCKS) as link:
        if rng.random() < 0.5:
            await link.step(SHARED[:, : min(length, 256)])
        for _ in range(rng.randrange(1, 12)):
            kind = rng.choice(("grow", "decode", "decode", "cut", "too much", "pause", "vanish"))
            counts[kind] = counts.get(kind, 0) + 1
            if await act(kind, link, length, rng):
                return
    counts["closed"] = counts.get("closed", 0) + 1


async def act(kind: str, link: Session, length: int, rng: random.Random) -> bool:
    """Do it; True if the session is over."""
    room = length - link.position
    if kind == "grow" and room:
        await link.step(noise(rng.randrange(1, room + 1), rng))
    elif kind == "decode":
        for _ in range(min(room, rng.randrange(1, 16))):
            await link.step(noise(1, rng))
    elif kind == "cut" and link.position:
        await link.step(noise(1, rng), rng.randrange(link.position))
    elif kind == "too much":
        position = link.position
        with contextlib.suppress(SwarmdError):
            await link.step(noise(room + 1, rng))
        link.position = position
    elif kind == "pause":
        await asyncio.sleep(rng.random())
    elif kind == "vanish":
        await link.send(noise(max(1, min(room, 200)), rng))
        link.connection.abort()
        return True
    return False


async def client(port: int, seed: int, until: float, counts: dict[str, int]) -> None:
    rng = random.Random(seed)
    while time.monotonic() < until:
        try:
            await life(port, rng, counts)
        except SwarmdError as error:
            name = type(error).__name__
            counts[name] = counts.get(name, 0) + 1
        if rng.random() < 0.05:  # a connection that never greets
            async with connected(port):
                await asyncio.sleep(0.1)


async def kv_free(port: int) -> int:
    """What the daemon says while one session holds one page."""
    async with session(port, 64, blocks=BLOCKS) as link:
        output = await link.step(torch.zeros(1, 1, HIDDEN))
        assert isinstance(output, Output)
        return output.kv_free


def sample(process: psutil.Process) -> dict[str, float]:
    return {
        "mb": process.memory_info().rss / 1e6,
        "descriptors": process.num_fds(),
        "threads": process.num_threads(),
    }


async def soak(node: Node, seconds: float, clients: int, seed: int) -> dict[str, object]:
    process = psutil.Process(node.process.pid)
    free = await kv_free(node.port)
    counts: dict[str, int] = {}
    samples: list[dict[str, float]] = []
    began = time.monotonic()
    tasks = [
        asyncio.ensure_future(client(node.port, seed * 1000 + n, began + seconds, counts))
        for n in range(clients)
    ]
    first = sample(process)
    while not all(task.done() for task in tasks):
        await asyncio.wait(tasks, timeout=5.0)
        samples.append({"s": round(time.monotonic() - began, 1), **sample(process)})
    await asyncio.gather(*tasks)
    left = free
    for _ in range(40):  # the daemon notices a vanished client when it reads
        left = await kv_free(node.port)
        last = sample(process)
        if left == free and last["descriptors"] <= first["descriptors"] + 2:
            break
        await asyncio.sleep(0.5)
    warm = [one for one in samples if one["s"] >= min(WARM_UP, seconds / 3)] or samples
    return {
        "counts": counts, "kv_free": [free, left], "first": first, "last": sample(process),
        "warm_mb": warm[0]["mb"], "most_mb": max(one["mb"] for one in warm), "samples": samples,
    }  # fmt: skip


def faults(found: dict[str, object], log: str) -> list[str]:
    """What is not as it should be, a line each."""
    free, left = found["kv_free"]  # type: ignore[misc]
    first, last = found["first"], found["last"]
    wrong = []
    if left != free:
        wrong.append(f"{free - left} tokens of the cache are not back")
    for name in ("descriptors", "threads"):
        if last[name] > first[name] + 2:  # type: ignore[index]
            wrong.append(f"{name}: {first[name]} at the start, {last[name]} at the end")  # type: ignore[index]
    grown = last["mb"] - float(found["warm_mb"])  # type: ignore[index, arg-type]
    if grown > GROWTH_MB:
        wrong.append(f"memory grew by {grown:.1f} MB")
    if "Traceback" in log:
        wrong.append("the daemon's log has a traceback")
    return wrong


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=3600.0)
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(1)
    span = f"{BLOCKS[0]}:{BLOCKS[1]}"
    with swarm(span, options=("--kv-tokens", str(KV_TOKENS))) as nodes:
        node = nodes.nodes[0]
        found = asyncio.run(soak(node, options.seconds, options.clients, options.seed))
        log = node.log.read_text()
    stories = len(re.findall(r"session [0-9a-f]{8} of ", log))
    wrong = faults(found, log)
    rows = [(name, str(count)) for name, count in sorted(found["counts"].items())]  # type: ignore[attr-defined]
    rows += [("stories in the log", str(stories)), ("memory after the first minute, MB",
             f"{found['warm_mb']:.1f}"), ("memory at the end, MB", f"{found['last']['mb']:.1f}")]  # type: ignore[index] # fmt: skip
    show(f"{options.seconds:.0f} s of {options.clients} clients", ("what", "count"), rows)
    save("soak", vars(options), {**found, "stories": stories, "faults": wrong})
    if wrong:
        raise SystemExit("; ".join(wrong))


if __name__ == "__main__":
    main()
