"""A swarm behind proxies, and faults done to it while clients answer."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from bench.chaos.clients import SETTINGS, Client, Model, Setting, Tally, Touch
from bench.chaos.faults import Fault, Kind, covered
from bench.chaos.proxy import Proxy
from bench.nodes import Node, Swarm, free_port, swarm
from swarmd.blocks import Span
from swarmd.peers import Address
from swarmd.tasks import TaskOwner

__all__ = ["Result", "Swarmlet", "run"]

LATE = 0.08
"""Seconds that a slow link adds to each piece."""
LONG = 4.0
"""Stalls longer than so many seconds are recorded with their story."""
PROMPTS = 2
READY_TIMEOUT = 90.0
"""Seconds for a daemon to serve; loading the default model takes seconds on a busy machine."""


class Swarmlet:
    """Real daemons, each announced at the address of a proxy in front of it."""

    def __init__(self, running: Swarm, spans: Sequence[Span], proxies: Sequence[Proxy]) -> None:
        self.spans = list(spans)
        self.proxies = list(proxies)
        self._running = running
        self._nodes: list[Node] = []
        self._harmed: set[int] = set()

    @classmethod
    @contextlib.asynccontextmanager
    async def of(cls, spans: Sequence[Span], *options: str) -> AsyncIterator[Swarmlet]:
        """Daemons that serve, one for each span."""
        async with contextlib.AsyncExitStack() as stack:
            running = stack.enter_context(swarm(options=("--threads", "1", *options)))
            proxies = [await stack.enter_async_context(Proxy(free_port())) for _ in spans]
            self = cls(running, spans, proxies)
            self._nodes = [self._launch(0)]
            await self._ready(0)
            self._nodes += [self._launch(number) for number in range(1, len(spans))]
            for number in range(1, len(spans)):
                await self._ready(number)
            yield self

    @property
    def contacts(self) -> list[Address]:
        """Where the DHT's datagrams go: past the proxies."""
        return [Address("127.0.0.1", proxy.target) for proxy in self.proxies]

    def _launch(self, number: int) -> Node:
        span, proxy = self.spans[number], self.proxies[number]
        others = [
            word for other in self.proxies if other is not proxy and self._nodes
            for word in ("--peer", f"127.0.0.1:{other.target}")
        ]  # fmt: skip
        return self._running.launch(
            f"{span.start}:{span.end}", "--port", str(proxy.target),
            "--advertise", f"127.0.0.1:{proxy.port}", *others,
        )  # fmt: skip

    async def _ready(self, number: int) -> None:
        async with asyncio.timeout(READY_TIMEOUT):
            while b"serving blocks" not in self._nodes[number].log.read_bytes():
                if self._nodes[number].process.poll() is not None:
                    raise RuntimeError(self._nodes[number].log.read_text())
                await asyncio.sleep(0.1)

    def may_harm(self, victim: int, n_blocks: int) -> bool:
        """Whether others that are unharmed hold all blocks."""
        return victim not in self._harmed and covered(
            [
                span for number, span in enumerate(self.spans)
                if number != victim and number not in self._harmed
            ],
            n_blocks,
        )  # fmt: skip

    async def harm(self, fault: Fault) -> None:
        """Do it, and return when the node is as it should be again. Raises RuntimeError or
        TimeoutError when a daemon does not start again."""
        self._harmed.add(fault.victim)
        try:
            await self._harm(fault, self.proxies[fault.victim])
        finally:
            self._harmed.discard(fault.victim)

    async def _harm(self, fault: Fault, proxy: Proxy) -> None:
        node = self._nodes[fault.victim]
        if fault.kind in (Kind.KILL, Kind.MOVE):
            node.kill()
            node.process.wait()
            self._running.nodes.remove(node)
            self.spans[fault.victim] = fault.span
            self._nodes[fault.victim] = self._launch(fault.victim)
            await self._ready(fault.victim)
        elif fault.kind is Kind.STOP:
            node.kill(signal.SIGSTOP)
            try:
                await asyncio.sleep(fault.seconds)
            finally:
                node.kill(signal.SIGCONT)
        elif fault.kind is Kind.CUT:
            proxy.cut()
        elif fault.kind is Kind.CORRUPT:
            proxy.corrupt_next()
        else:
            try:
                if fault.kind is Kind.SLOW:
                    proxy.delay = LATE
                else:
                    deaf = fault.kind is Kind.DEAF
                    proxy.silence(to_node=deaf, from_node=not deaf)
                await asyncio.sleep(fault.seconds)
            finally:
                proxy.delay = 0.0
                proxy.silence()


@dataclass(slots=True)
class Result:
    """What came of it. `done` are the faults with the time at which each began."""

    tally: Tally
    seconds: float
    done: list[tuple[float, Fault]] = field(default_factory=list)
    broken: list[str] = field(default_factory=list)
    """Daemons that did not start again."""
    touched: dict[int, list[Touch]] = field(default_factory=dict)
    unexplained: list[Touch] = field(default_factory=list)
    """Hops that were lost before any fault at them."""

    @property
    def good(self) -> bool:
        """Whether answers equal their twins, and nobody died without a typed error."""
        tally = self.tally
        wrong = tally.different or tally.died or tally.withdrawn or self.broken
        return not wrong and tally.equal > 0

    def as_json(self) -> dict[str, Any]:
        """For the record."""
        tally = self.tally
        return {
            "seconds": round(self.seconds, 1), "equal": tally.equal, "tokens": tally.tokens,
            "different": tally.different, "refused": tally.refused, "died": tally.died,
            "withdrawn": tally.withdrawn, "broken": self.broken,
            "unexplained": len(self.unexplained),
            "faults": [
                {
                    "at": round(at, 2), "kind": fault.kind.value, "victim": fault.victim,
                    "seconds": round(fault.seconds, 2),
                    "touched": [
                        {"answer": one.setting, "stall": round(one.stall, 3),
                         "replayed": one.replayed,
                         "story": list(one.story) if one.stall > LONG else []}
                        for one in self.touched.get(number, [])
                    ],
                } for number, (at, fault) in enumerate(self.done)
            ],
        }  # fmt: skip


async def run(
    swarmlet: Swarmlet,
    model: Model,
    faults: Sequence[Fault],
    *,
    seconds: float,
    tokens: int,
    settings: Sequence[Setting] = SETTINGS,
    say: Callable[[str], None] = print,
) -> Result:
    """Undisturbed twins first; then one client a setting answers for `seconds`, while `faults`
    happen at their times, later where the nodes that others need are not back yet."""
    async with contextlib.AsyncExitStack() as stack:
        clients = [
            await stack.enter_async_context(Client(swarmlet.contacts, model, setting))
            for setting in settings
        ]
        twins = [
            [await client.answer(prompt, tokens, Tally()) for prompt in range(PROMPTS)]
            for client in clients
        ]
        result = Result(Tally(), seconds)
        began = time.monotonic()
        async with TaskOwner("chaos") as owner:
            answering = [
                owner.spawn(
                    client.keep_answering(own, began + seconds, result.tally), name="client"
                )
                for client, own in zip(clients, twins, strict=True)
            ]
            under_way = []
            for fault in faults:
                await asyncio.sleep(max(0.0, began + fault.at - time.monotonic()))
                while not swarmlet.may_harm(fault.victim, model.folder.n_blocks):
                    await asyncio.sleep(0.1)
                at = time.monotonic() - began
                if at >= seconds:
                    break
                say(f"{at:7.1f} s  {fault.kind.value:8} node {fault.victim}")
                result.done.append((at, fault))
                under_way.append(owner.spawn(_guarded(swarmlet, fault, result), name="fault"))
                await asyncio.sleep(0)  # it begins before the next one asks who is harmed
            await asyncio.gather(*answering, *under_way)
        result.seconds = time.monotonic() - began
    _attribute(result, began, [f"127.0.0.1:{proxy.port}" for proxy in swarmlet.proxies])
    return result


async def _guarded(swarmlet: Swarmlet, fault: Fault, result: Result) -> None:
    try:
        await swarmlet.harm(fault)
    except (RuntimeError, TimeoutError) as error:
        result.broken.append(f"node {fault.victim} after {fault.kind.value}: {error}")


def _attribute(result: Result, began: float, addresses: Sequence[str]) -> None:
    """Put each lost hop down to the last fault at that node before the answer went on."""
    for touch in result.tally.touches:
        ended = touch.at + touch.stall - began
        by = [
            number for number, (at, fault) in enumerate(result.done)
            if addresses[fault.victim] == touch.address and at <= ended
        ]  # fmt: skip
        if by:
            result.touched.setdefault(by[-1], []).append(touch)
        else:
            result.unexplained.append(touch)
