"""Does it pay that a turn waits for sessions whose step is due? Simulated chains of nodes.

Sessions decode round a chain of servers. A server runs all steps that wait as one turn, which takes
a time for the weights and a little for each row; between servers a step travels, with jitter, and
each server reads and writes its messages one after the other. With `shared`, all servers are on one
device and slow one another. The policy is the daemon's own
(:mod:`swarmd.compute.gathering`), against one that never waits; both see the same random numbers.

    python -m bench.gathering [--seconds 4] [--seeds 3]
"""

from __future__ import annotations

import argparse
import heapq
import itertools
import random
import statistics
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from bench.report import save, show
from swarmd.compute.gathering import Gathering

WARM_UP = 3.0
SPREAD = 0.03
"""Of a turn's time."""


@dataclass(frozen=True, slots=True)
class Setting:
    """Times in seconds; `jitter` is a share of `transit`."""

    name: str
    servers: int
    shared: bool
    turn: float = 3e-3
    row: float = 0.08e-3
    transit: float = 0.4e-3
    jitter: float = 0.3
    message: float = 0.1e-3


SETTINGS = (
    Setting("2 on one GPU", 2, True),
    Setting("2 on one GPU, rows for free", 2, True, row=0.01e-3),
    Setting("2 GPUs", 2, False),
    Setting("2 GPUs, rows for free", 2, False, row=0.01e-3),
    Setting("3 GPUs", 3, False),
    Setting("2 GPUs, 6 ms apart", 2, False, transit=3e-3),
    Setting("1 GPU, client 40 ms away", 1, False, transit=20e-3),
    Setting("2 on one CPU", 2, True, turn=40e-3, row=4e-3),
    Setting("2 CPUs", 2, False, turn=40e-3, row=4e-3),
)


class Never(Gathering):
    """Waits for nobody."""

    def until(self, now: float, since: float) -> float | None:
        return None


@dataclass(slots=True)
class _Server:
    policy: Gathering
    waiting: list[int] = field(default_factory=list)
    running: list[int] = field(default_factory=list)
    left: float = 0.0
    began: float = 0.0
    since: float | None = None
    wait: int = 0
    talks_until: float = 0.0


class Chain:
    """`sessions` that go round the servers of a setting."""

    def __init__(
        self, setting: Setting, sessions: int, policy: Callable[[], Gathering], seed: int
    ) -> None:
        self._setting = setting
        self._rng = random.Random(seed)
        self._servers = [_Server(policy()) for _ in range(setting.servers)]
        self._events: list[tuple[float, int, Callable[..., None], tuple[Any, ...]]] = []
        self._order = itertools.count()
        self._plan = 0
        self._worked_until = 0.0
        self._tokens = 0
        for session in range(sessions):
            self._at(self._rng.uniform(0, 2e-3), self._arrive, 0, session)

    def rate(self, seconds: float) -> float:
        """Tokens a second of all sessions, after some time to warm up."""
        while self._events and self._events[0][0] <= seconds + WARM_UP:
            now, _, act, arguments = heapq.heappop(self._events)
            act(now, *arguments)
        return self._tokens / seconds

    def _at(self, when: float, act: Callable[..., None], *arguments: Any) -> None:
        heapq.heappush(self._events, (when, next(self._order), act, arguments))

    def _arrive(self, now: float, number: int, session: int) -> None:
        """A step has come; it is read when the messages before it are."""
        self._at(self._talked(now, number), self._read, number, session)

    def _talked(self, now: float, number: int) -> float:
        """When a message that may be read or written from `now` on has been."""
        server = self._servers[number]
        server.talks_until = max(now, server.talks_until) + self._setting.message
        return server.talks_until

    def _read(self, now: float, number: int, session: int) -> None:
        server = self._servers[number]
        server.waiting.append(session)
        server.policy.arrived(session, now)
        self._consider(now, number)

    def _waited(self, now: float, number: int, wait: int) -> None:
        if wait == self._servers[number].wait:
            self._consider(now, number)

    def _consider(self, now: float, number: int) -> None:
        server, setting = self._servers[number], self._setting
        if server.running or not server.waiting:
            return
        server.since = now if server.since is None else server.since
        until = server.policy.until(now, server.since)
        server.wait += 1
        if until is not None and until > now:
            self._at(until, self._waited, number, server.wait)
            return
        self._work(now)
        server.running, server.waiting, server.since = server.waiting, [], None
        spread = self._rng.uniform(1 - SPREAD, 1 + SPREAD)
        server.left = (setting.turn + setting.row * len(server.running)) * spread
        server.began = now
        self._plan_ends(now)

    def _work(self, now: float) -> None:
        busy = [server for server in self._servers if server.running]
        for server in busy:
            server.left -= (now - self._worked_until) / self._slowness(busy)
        self._worked_until = now

    def _plan_ends(self, now: float) -> None:
        self._plan += 1
        busy = [server for server in self._servers if server.running]
        for number, server in enumerate(self._servers):
            if server.running:
                end = now + max(0.0, server.left) * self._slowness(busy)
                self._at(end, self._end, number, self._plan)

    def _slowness(self, busy: list[_Server]) -> int:
        return len(busy) if self._setting.shared else 1

    def _end(self, now: float, number: int, plan: int) -> None:
        if plan != self._plan:
            return
        self._work(now)
        server, setting = self._servers[number], self._setting
        sessions, server.running = server.running, []
        server.policy.ran(now, now - server.began, len(sessions))
        last = number + 1 == len(self._servers)
        for session in sessions:
            server.policy.finished(session, now)
            self._tokens += last and now > WARM_UP
            way = setting.transit * self._rng.uniform(1 - setting.jitter, 1 + setting.jitter)
            self._at(
                self._talked(now, number) + way,
                self._arrive,
                (number + 1) % len(self._servers),
                session,
            )
        self._plan_ends(now)
        self._consider(now, number)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=4.0)
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args()
    figures: dict[str, Any] = {}
    rows = []
    for setting, sessions in itertools.product(SETTINGS, (4, 8, 32)):
        rates = {
            name: statistics.mean(
                Chain(setting, sessions, policy, seed).rate(options.seconds)
                for seed in range(options.seeds)
            )
            for name, policy in (("waits", Gathering), ("never waits", Never))
        }
        figures[f"{setting.name}, {sessions} sessions"] = rates
        ratio = rates["waits"] / rates["never waits"]
        rows.append((setting.name, str(sessions), f"{rates['never waits']:.0f}",
                     f"{rates['waits']:.0f}", f"{ratio:.2f}"))  # fmt: skip
    show("Tokens a second of all sessions, simulated",
         ("servers", "sessions", "never waits", "waits", "ratio"), rows)  # fmt: skip
    save("gathering", vars(options), figures)


if __name__ == "__main__":
    main()
