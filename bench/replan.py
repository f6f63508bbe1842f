"""A session that moves to a node which joins in the middle of an answer, and one that stays.

A real daemon holds SmolLM2 and is slow: it is stopped and continued in turn (SIGSTOP, SIGCONT), as
by an owner who needs the processor for something else. After some tokens a second daemon starts
with the same blocks. The answer goes on meanwhile: once by a session that stays (`replan=False`),
once by one that may move. Both answers must be equal. Client and daemons share one machine, so a
node that loads, and a replay, slow the answer down more here than in a swarm of several machines.

    python -m bench.replan [--tokens 200] [--join-at 8] [--running 0.03] [--stopped 0.06]
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import signal
import statistics
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from typing import Any

from bench.nodes import Node, Swarm, swarm
from bench.report import save, show
from swarmd.client.generate import decode_tokens
from swarmd.client.loading import ClientModel, load_client, resolve_client_folder
from swarmd.client.moving_session import MovingSession
from swarmd.client.sampling import Sampler, SamplingConfig
from swarmd.client.session_config import SessionConfig
from swarmd.client.swarm import SwarmClient, choose_chain
from swarmd.state import StateFolder

PROMPT = "Write a long story about a lighthouse keeper and the sea.\n\nOnce upon a time,"


@dataclass
class Answer:
    """Token ids, and when each came, in seconds from the first one. The second node serves from
    `joined` on; the session moved after `moved_at` tokens, or never."""

    tokens: list[int] = field(default_factory=list)
    came: list[float] = field(default_factory=list)
    joined: float | None = None
    moved_at: int | None = None
    move: str = ""
    story: list[str] = field(default_factory=list)

    def rate(self, start: int, end: int) -> float:
        """Tokens a second from token `start` to token `end`."""
        return (end - start) / (self.came[end] - self.came[start])


@contextlib.contextmanager
def slowed(node: Node, running: float, stopped: float) -> Iterator[None]:
    """The daemon runs and stands still in turn, for so many seconds each."""
    ended = threading.Event()

    def alternate() -> None:
        while not ended.wait(running):
            node.kill(signal.SIGSTOP)
            ended.wait(stopped)
            node.kill(signal.SIGCONT)

    thread = threading.Thread(target=alternate, name="slow-down")
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
        node.kill(signal.SIGCONT)


async def answer(
    nodes: Swarm, model: ClientModel, options: argparse.Namespace, replan: bool
) -> Answer:
    """One greedy answer; the second node is started after `join_at` tokens."""
    folder, found = model.folder, Answer()
    async with SwarmClient(state_dir=StateFolder(nodes.folder).path) as client:
        pool = await client.pool(folder.model_id)
        router = client.router(
            pool, model_id=folder.model_id, model_name=folder.name,
            n_blocks=folder.n_blocks, bytes_per_token=folder.hidden_size * 4,
        )  # fmt: skip
        prompt_ids = model.text.encode(PROMPT)
        session = MovingSession(
            router, pool, await choose_chain(router, wait=60),
            hidden_size=folder.hidden_size, max_length=len(prompt_ids) + options.tokens,
            config=SessionConfig(replan=replan), on_story=found.story.append,
        )  # fmt: skip
        joining: asyncio.Future[None] | None = None
        began = 0.0

        def join() -> None:
            nodes.wait_ready(nodes.launch("0:30"))
            found.joined = time.perf_counter() - began

        async with session:
            await session.open_links()
            async for token in decode_tokens(
                model.ends, session, prompt_ids, Sampler(SamplingConfig()),
                max_new_tokens=options.tokens, eos_token_ids=frozenset(),
            ):  # fmt: skip
                began = began or time.perf_counter()
                found.tokens.append(token)
                found.came.append(time.perf_counter() - began)
                if len(found.tokens) == options.join_at:
                    joining = asyncio.ensure_future(asyncio.to_thread(join))
                moves = session.statistics.moves
                if moves and found.moved_at is None:
                    found.moved_at, found.move = len(found.tokens) - 1, str(moves[0])
        if joining is not None:
            await joining
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tokens", type=int, default=200)
    parser.add_argument("--join-at", type=int, default=8)
    parser.add_argument("--running", type=float, default=0.03)
    parser.add_argument("--stopped", type=float, default=0.06)
    options = parser.parse_args()

    async def load() -> ClientModel:
        folder = await resolve_client_folder(None, None)
        return await load_client(folder, "float32")

    model = asyncio.run(load())
    answers: dict[bool, Answer] = {}
    for replan in (False, True):
        with swarm("0:30") as nodes, slowed(nodes.nodes[0], options.running, options.stopped):
            answers[replan] = asyncio.run(answer(nodes, model, options, replan))
    stays, moves = answers[False], answers[True]
    if stays.tokens != moves.tokens:
        raise SystemExit("the answers differ")
    if moves.moved_at is None:
        raise SystemExit(f"the session did not move: {moves.story}")
    last, at = options.tokens - 1, moves.moved_at
    gaps = [after - before for before, after in pairwise(moves.came)]
    figures: dict[str, Any] = {
        "stays": asdict(stays),
        "moves": asdict(moves),
        "tokens_per_second": {
            "stays_after_that_token": stays.rate(at, last),
            "before_the_move": moves.rate(0, at - 1),
            "after_the_move": moves.rate(at, last),
        },
        "seconds_of_the_answer": {"stays": stays.came[-1], "moves": moves.came[-1]},
        "seconds_from_joined_to_moved": moves.came[at] - (moves.joined or 0.0),
        "seconds_of_the_token_that_moved": gaps[at - 1],
        "median_seconds_before": statistics.median(gaps[: at - 1]),
    }
    rate = figures["tokens_per_second"]
    show(
        f"{options.tokens} tokens of SmolLM2 fp32; a node joins after {options.join_at}; "
        "both answers are equal",
        ("session", f"up to token {at}", "from there on", "all of it"),
        [
            (
                "stays", f"{stays.rate(0, at - 1):.1f} tokens/s",
                f"{rate['stays_after_that_token']:.1f} tokens/s", f"{stays.came[-1]:.1f} s",
            ),
            (
                "moves", f"{rate['before_the_move']:.1f} tokens/s",
                f"{rate['after_the_move']:.1f} tokens/s", f"{moves.came[-1]:.1f} s",
            ),
        ],
    )  # fmt: skip
    print(
        f"moved {figures['seconds_from_joined_to_moved']:.1f} s after the node served; that token "
        f"took {1e3 * gaps[at - 1]:.0f} ms, before {1e3 * figures['median_seconds_before']:.0f} ms"
    )
    print(moves.move)
    save("replan", {**vars(options), "prompt": PROMPT, "link": "loopback"}, figures)


if __name__ == "__main__":
    main()
