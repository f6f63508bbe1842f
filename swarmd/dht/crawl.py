"""The iterative lookup: which live nodes are nearest to a key."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from dataclasses import dataclass

from kademlia.crawling import SpiderCrawl
from kademlia.node import Node

from swarmd.dht.messages import QueryReply, QueryRequest, Want
from swarmd.dht.protocol import SwarmProtocol
from swarmd.dht.reading import Reading

__all__ = ["MergeCrawl"]

_OUR_TABLE = b""
"""The informant of what we knew ourselves; it is never blamed."""

MIN_BLAMED = 10
"""Failed referrals before a node is blamed. Those who died lately near the key are named by every
honest node: at 30 % dead, 5 blamed so many that 4 % of the nearest were missed (simulated)."""
MAX_BAD = 4
"""Failed referrals for each good one beyond which a node is blamed."""


@dataclass(frozen=True, slots=True)
class _Query:
    node: Node
    late_at: float
    slow_at: float


class MergeCrawl(SpiderCrawl):  # type: ignore[misc, unused-ignore]
    """Finds the `want` live nodes nearest to a key, and what each knows of the key.

    Queries run side by side, not in rounds. A peer that is late frees its place for another; one
    that is silent for its soft timeout no longer holds up the end, though its answer still counts
    if it comes. Only if fewer than `want` answered are the slow ones awaited to their hard
    timeout. A node most of whose hints lead to nobody is put last, with all that it alone named.
    """

    def __init__(
        self,
        protocol: SwarmProtocol,
        node: Node,
        peers: list[Node],
        ksize: int,
        alpha: int,
        *,
        want: int,
        timeout: float,
        reading: Reading | None = None,
    ) -> None:
        """`timeout` in seconds ends it with what it has; `reading` takes records on the way."""
        super().__init__(protocol, node, peers, ksize, alpha)
        self._want = want
        self._timeout = timeout
        self._reading = reading
        self._answers: dict[bytes, tuple[Node, QueryReply]] = {}
        self._running: dict[asyncio.Task[QueryReply | None], _Query] = {}
        self._slow: set[bytes] = set()
        self._informants: defaultdict[bytes, set[bytes]] = defaultdict(set)
        self._blames = True
        self._blamed: set[bytes] = set()
        self._doubtful: list[Node] = []
        self._good: defaultdict[bytes, int] = defaultdict(int)
        self._bad: defaultdict[bytes, int] = defaultdict(int)
        self._elsewhere: defaultdict[bytes, dict[tuple[str, int], Node]] = defaultdict(dict)
        for peer in peers:
            self._informants[peer.id].add(_OUR_TABLE)

    async def find(self) -> list[tuple[Node, QueryReply]]:
        """The nearest live nodes with their answers, nearest first. Raises DhtError if closed."""
        finished = False
        try:
            async with asyncio.timeout(self._timeout):
                await self._run()
            finished = True
        except TimeoutError:
            pass
        finally:
            if not finished:  # nobody waits for these answers any more
                for task in self._running:
                    task.cancel()
        found = list(self._answers.values())
        found.sort(key=lambda a: (a[0].id in self._blamed, self.node.distance_to(a[0])))
        return found[: self._want]

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        while not self._is_settled():
            now = loop.time()
            late = {q.node.id for q in self._running.values() if q.late_at <= now}
            self._slow = {q.node.id for q in self._running.values() if q.slow_at <= now}
            while len(self._running) - len(late) < self.alpha:
                peer = self._next(late)
                if peer is None:
                    break
                self._start(peer, now)
            if not self._running and not self._give_second_chance():
                return
            if not self._running:
                continue
            ahead = [t for q in self._running.values() for t in (q.late_at, q.slow_at) if t > now]
            if not ahead and len(self._answers) >= self._want:
                return
            timeout = min(ahead) - now if ahead else None
            done, _ = await asyncio.wait(
                self._running, timeout=timeout, return_when=asyncio.FIRST_COMPLETED
            )
            for task in done:
                peer = self._running.pop(task).node
                self._slow.discard(peer.id)
                failed = task.cancelled() or task.exception() is not None
                self._handle(peer, None if failed else task.result())

    def _nearest(self, without: set[bytes]) -> list[Node]:
        return [node for node in self.nearest if node.id not in without][: self._want]

    def _is_settled(self) -> bool:
        nearest = self._nearest(self._slow)
        return len(nearest) >= self._want and all(n.id in self._answers for n in nearest)

    def _next(self, late: set[bytes]) -> Node | None:
        contacted = self.nearest.contacted
        return next((n for n in self._nearest(late) if n.id not in contacted), None)

    def _start(self, peer: Node, now: float) -> None:
        self.nearest.mark_contacted(peer)
        request = QueryRequest(self.node.id, Want.NODES)
        token = self.protocol.token_of(peer)
        if self._reading is not None and token is not None:
            request = self._reading.request(Want.NODES | Want.RECORDS, token)
        task = self.protocol.spawn(self.protocol.call_query(peer, request), "query")
        host, patience = (peer.ip, peer.port), self.protocol.patience
        self._running[task] = _Query(
            peer, now + patience.late_after(host), now + patience.soft_timeout(host)
        )

    def _handle(self, peer: Node, reply: QueryReply | None) -> None:
        if reply is None:
            self._drop(peer)
            return
        self._answers[peer.id] = (peer, reply)
        if self._reading is not None:
            self._reading.take(reply.records)
        for informant in self._informants[peer.id]:
            self._good[informant] += 1
        for node_id, host, port in reply.nodes:
            node = Node(node_id, host, port)
            if self.protocol.believes(peer, node):
                self._hear_of(node, peer)

    def _hear_of(self, node: Node, informant: Node) -> None:
        self._informants[node.id].add(informant.id)
        known = self.nearest.get_node(node.id)
        if known is None and node.id not in self.nearest.contacted:
            self.nearest.push([node])
            return
        others = self._elsewhere[node.id]
        if known is not None and not known.same_home_as(node) and len(others) < self._want:
            others[(node.ip, node.port)] = node  # somebody is wrong about its address

    def _drop(self, peer: Node) -> None:
        self.nearest.remove([peer.id])
        if others := self._elsewhere[peer.id]:
            _, node = others.popitem()
            self.nearest.contacted.discard(peer.id)
            self.nearest.push([node])
            return
        for informant in self._informants[peer.id] - {_OUR_TABLE}:
            self._bad[informant] += 1
            bad, good = self._bad[informant], self._good[informant]
            if self._blames and bad >= MIN_BLAMED and bad > MAX_BAD * good:
                self._blame(informant)

    def _blame(self, informant: bytes) -> None:
        self._blamed.add(informant)
        gone = [informant]
        for node_id, named_by in self._informants.items():
            if named_by <= self._blamed and node_id not in self.nearest.contacted:
                gone.append(node_id)
        self._doubtful += [node for node in map(self.nearest.get_node, gone) if node is not None]
        self.nearest.remove(gone)

    def _give_second_chance(self) -> bool:
        """With too few answers, follow doubtful hints after all: most peers may be dead."""
        if not self._doubtful or len(self._answers) >= self._want:
            return False
        self._blames = False
        self.nearest.push(self._doubtful)
        self._doubtful = []
        return True
