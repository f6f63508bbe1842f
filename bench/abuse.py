"""A well-behaved client decodes while others attack the node: its rate with and without them.

One node in a process of its own serves the whole model with the limits for each client switched on
for loopback, so that every 127.0.0.x is a client of its own. The good client (127.0.0.1) decodes
by single steps. The abusers, each from its own address: half-open connections, connections opened
and closed without end, 64 decode steps under way without end, outputs that nobody reads, and long
prompts without end. Calm and attacked rounds alternate.

    python -m bench.abuse [--rounds 3] [--seconds 10]
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import torch

from bench.nodes import free_port
from bench.report import save, show
from bench.sessions import BLOCKS, HIDDEN, connected, session
from swarmd.blocks import parse_blocks
from swarmd.config import DaemonConfig
from swarmd.errors import RemoteError, SwarmdError
from swarmd.node.daemon import Daemon
from swarmd.peers import Address
from swarmd.tasks import TaskOwner
from swarmd.wire.transport import Greeting, greet


def noise(tokens: int) -> torch.Tensor:
    """Hidden states that no session sent before: nothing of them lies in kept pages."""
    return torch.randn(1, tokens, HIDDEN)


async def decode(port: int, seconds: float) -> tuple[float, int]:
    """Tokens a second of the good client, and its errors."""
    errors, done = 0, 0
    try:
        async with session(port, 1024) as good:
            began = time.monotonic()
            while time.monotonic() - began < seconds:
                await good.step(noise(1), done % 1000)
                done += 1
            return done / (time.monotonic() - began), errors
    except SwarmdError as error:
        print(f"the good client failed: {error}")
        return 0.0, errors + 1


class Counts:
    """What the abusers managed to do."""

    def __init__(self) -> None:
        self.done: dict[str, int] = {}

    def add(self, what: str) -> None:
        self.done[what] = self.done.get(what, 0) + 1


async def half_open(port: int, source: str, counts: Counts) -> None:
    async with contextlib.AsyncExitStack() as stack:
        for _ in range(300):
            await stack.enter_async_context(connected(port, source))
            counts.add("half-open connections")
        await asyncio.Event().wait()


async def reconnect(port: int, source: str, counts: Counts) -> None:
    while True:
        async with connected(port, source) as connection:
            counts.add("connections opened and closed")
            with contextlib.suppress(SwarmdError):
                await greet(connection, Greeting(), Address("127.0.0.1", port), None)


async def flood(port: int, source: str, counts: Counts, tokens: int) -> None:
    """Up to 64 steps under way on a session, for ever."""
    async with session(port, 1024, source) as greedy:
        while True:
            if greedy.connection.protocol.steps_under_way < 64:
                await greedy.send(noise(tokens), 0)
                continue
            answer, _ = await greedy.connection.receive()
            counts.add(f"steps of {tokens}: {answer.TYPE}")


async def deaf(port: int, source: str, counts: Counts) -> None:
    """Sends steps and reads no output."""
    async with session(port, 1024, source) as mute:
        connection = mute.connection
        assert connection._transport is not None
        raw = connection._transport.get_extra_info("socket")
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection._transport.pause_reading()
        for _ in range(64):
            await mute.send(noise(64), 0)
            counts.add("steps whose outputs nobody reads")
        await asyncio.Event().wait()


async def again_and_again(work: object, counts: Counts) -> None:
    assert callable(work)
    while True:
        try:
            await work()
        except RemoteError as error:
            counts.add(f"refused: {error.code}")
        except (SwarmdError, OSError) as error:
            counts.add(f"ended: {type(error).__name__}")
        await asyncio.sleep(0.05)


async def attack(port: int) -> None:
    """All abusers, until cancelled; prints what they did at the end of stdin."""
    counts = Counts()
    kinds = {
        "127.0.0.2": lambda: half_open(port, "127.0.0.2", counts),
        "127.0.0.3": lambda: reconnect(port, "127.0.0.3", counts),
        **{
            f"127.0.0.4 {number}": lambda: flood(port, "127.0.0.4", counts, 1)
            for number in range(20)
        },
        "127.0.0.5": lambda: deaf(port, "127.0.0.5", counts),
        **{
            f"127.0.0.6 {number}": lambda: flood(port, "127.0.0.6", counts, 512)
            for number in range(4)
        },
    }
    async with TaskOwner("abusers") as owner:
        for name, work in kinds.items():
            owner.spawn(again_and_again(work, counts), name=name)
        await asyncio.sleep(2.0)
        print("at work", flush=True)
        await asyncio.to_thread(sys.stdin.read)
    print(counts.done, flush=True)


async def node(port: int, folder: str) -> None:
    config = DaemonConfig(
        blocks=parse_blocks(f"0:{BLOCKS}"),
        port=port,
        state_dir=Path(folder),
        limit_loopback=True,
    )
    daemon = Daemon(config)

    async def tell() -> None:
        await daemon.ready.wait()
        print("ready", flush=True)

    async with TaskOwner("node") as owner:
        owner.spawn(tell(), name="tell")
        await daemon.run()


@contextlib.contextmanager
def process(*arguments: str) -> Iterator[subprocess.Popen[str]]:
    child = subprocess.Popen(
        [sys.executable, "-m", "bench.abuse", *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        yield child
    finally:
        child.kill()
        child.communicate()


def attacked(port: int, seconds: float) -> tuple[float, int, str]:
    with process("--attack", str(port)) as abusers:
        assert abusers.stdout is not None
        abusers.stdout.readline()
        rate, errors = asyncio.run(decode(port, seconds))
        out, _ = abusers.communicate("", timeout=30)
        return rate, errors, out.strip()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--node", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--attack", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.node:
        asyncio.run(node(options.node, os.environ["SWARMD_STATE"]))
        return
    if options.attack:
        asyncio.run(attack(options.attack))
        return
    port = free_port()
    calm: list[float] = []
    under: list[float] = []
    errors = 0
    did = []
    with tempfile.TemporaryDirectory(prefix="swarmd-bench-") as folder:
        os.environ["SWARMD_STATE"] = folder
        with process("--node", str(port)) as server:
            assert server.stdout is not None
            server.stdout.readline()
            resident = psutil.Process(server.pid).memory_info
            asyncio.run(decode(port, 2.0))
            before = resident().rss / 1e6
            for _ in range(options.rounds):
                rate, failed = asyncio.run(decode(port, options.seconds))
                calm.append(rate)
                errors += failed
                rate, failed, text = attacked(port, options.seconds)
                under.append(rate)
                errors += failed
                did.append(text)
                time.sleep(2.0)
            after = resident().rss / 1e6
    ratio = statistics.median(under) / statistics.median(calm)
    show(
        f"the good client's decode, medians of {options.rounds} rounds",
        ("", "tokens/s"),
        [
            ("calm", f"{statistics.median(calm):.1f}"),
            ("under attack", f"{statistics.median(under):.1f}"),
            ("ratio", f"{ratio:.2f}"),
            ("errors of the good client", errors),
            ("node's resident MB before, after", f"{before:.0f}, {after:.0f}"),
        ],
    )
    print(*did, sep="\n")
    save(
        "abuse",
        {"rounds": options.rounds, "seconds": options.seconds, "link": "loopback"},
        {
            "calm_tokens_per_second": calm,
            "attacked_tokens_per_second": under,
            "ratio": ratio,
            "errors": errors,
            "resident_mb": {"before": before, "after": after},
            "abusers_did": did,
        },
    )


if __name__ == "__main__":
    main()
