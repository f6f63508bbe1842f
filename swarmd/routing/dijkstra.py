"""The cheapest chain of peers, by Dijkstra's algorithm (Numerische Mathematik 1, 1959), led by a
bound of what is left (A*; Hart, Nilsson and Raphael, IEEE Trans. SSC 4, 1968).

A node `(peer, b)` means "this peer has just run block b - 1". Its edges:

* `(p, b) -> (p, b + 1)`: the same peer runs block b as well, if it holds it.
* `(p, b) -> (q, b + 1)`: the activations hop to q, which runs block b. Hopping and running are
  one edge, so that a hop without a block (a relay) does not exist.
* client `-> (q, start + 1)`, and `(p, end) ->` client, or the hop after a lost range.

All pairs of peers at all blocks would be O(peers^2 x blocks) edges. Fewer carry the same minimum:
a hop by the client is `leave(p) + enter(q)`, a sum of a part of p and a part of q. One virtual
node for each boundary b, reached by `leave(p)` and left by `enter(q)`, keeps every path and its
cost, with O(peers x blocks) edges. A ring adds one edge for each pair of peers whose own link is
known, at each boundary where the one may follow the other.

Costs are at least zero and the bound (:mod:`swarmd.routing.bounds`) never exceeds what is left, so
the search is exact. Of a hub it is what is left, so that little but the best path is walked. A peer
may occur twice in a chain with another one between, where that one is faster by more than two hops
cost; neighbouring hops of one peer are one hop. Equal costs fall to the lower PeerId.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from heapq import heapify, heappop, heappush

import numpy as np

from swarmd.blocks import Span, coverage, holes
from swarmd.errors import NoRoute
from swarmd.peers import PeerInfo
from swarmd.routing.bounds import Links, Prices, rest_of
from swarmd.routing.chain import Chain, Hop, no_route
from swarmd.routing.cost import Costs
from swarmd.routing.query import WHOLE_MODEL, RouteQuery
from swarmd.routing.view import View

__all__ = ["best_chain", "find_chain"]

_CONTINUED = -1  # the node was reached by the same peer running on
_CLIENT = -2  # the node was reached from the client, or from the hop before the range

SLACK = 1e-9
"""By which share a bound may be wrong, as sums of floats are."""


def find_chain(view: View, costs: Costs, query: RouteQuery = WHOLE_MODEL) -> Chain:
    """The cheapest hops that run the query's blocks on the view's routable peers.

    For the replacement of a lost range take `view.with_arithmetic(...)` of the lost hop, or
    `view.with_dtype(...)`: a session never mixes dtypes.

    Raises NoRoute if and only if some block of the range is held by no routable peer that is
    not banned; ValueError for a range outside the model.
    """
    start, end = query.start, view.n_blocks if query.end is None else query.end
    if not 0 <= start < end <= view.n_blocks:
        raise ValueError(f"not a range of the model's {view.n_blocks} blocks: {start}:{end}")
    wanted = Span(start, end)
    peers = [
        peer
        for peer in view.routable
        if peer.peer_id not in query.banned and peer.span.start < end and start < peer.span.end
    ]
    held = coverage((peer.span for peer in peers), view.n_blocks)
    missing = holes([held[block] if block in wanted else 1 for block in range(view.n_blocks)])
    if missing:
        raise no_route(view, missing, banned=query.banned, wall=query.wall)

    # Drawn for every routable peer, so that a ban does not reshuffle the luck of the others.
    factors = {peer.peer_id: costs.jitter(query.rng) for peer in view.routable}
    tokens = query.tokens
    before = view.get(query.previous) if query.previous is not None else None
    admits = [
        costs.admit(peer, query.kv_needed, avoided=peer.peer_id in query.avoid) for peer in peers
    ]

    graph = _Graph(wanted, peers)
    for peer, admit in zip(peers, admits, strict=True):
        own, f = peer.peer_id, factors[peer.peer_id]
        way = costs.enter(own, tokens)
        way_in = costs.hop(before, own, tokens=tokens, mode=query.mode) if before else way
        way_out = costs.hop(peer, query.next, tokens=tokens, mode=query.mode) if query.next else way
        graph.step.append(f * costs.run(peer, 1, tokens))
        graph.leave.append(f * way)
        graph.enter.append(f * (admit + way))
        graph.first.append(f * (admit + way_in))
        graph.last.append(f * way_out)
    links = None
    if query.mode == "ring":
        links = Links.between(
            peers, costs, [factors[peer.peer_id] for peer in peers], admits, tokens
        )
    return _search(graph, links)


def best_chain(
    view: View, costs: Costs, query: RouteQuery = WHOLE_MODEL, *, mixed: bool = False
) -> Chain:
    """The cheapest chain whose hops all compute in one dtype and, unless `mixed`, with one
    quantization.

    A session never mixes dtypes, so that a replayed hop equals the lost one. Equal costs fall to
    the arithmetic that sorts first. Raises NoRoute if none covers the range alone: for the blocks
    that nobody holds at all, else for those that the most complete one lacks.
    """
    found: list[Chain] = []
    lacking: list[tuple[int, str, NoRoute]] = []
    kinds = (
        {dtype: view.with_dtype(dtype) for dtype in view.dtypes()}
        if mixed
        else {str(one): view.with_arithmetic(one) for one in view.arithmetics()}
    )
    for kind, part in kinds.items():
        try:
            chain = find_chain(part, costs, query)
        except NoRoute as error:
            gaps = [gap for gap in error.missing if isinstance(gap, Span)]
            named = no_route(view, gaps, banned=query.banned, wall=query.wall, arithmetic=kind)
            lacking.append((sum(map(len, gaps)), kind, named))
        else:
            found.append(chain)
    if found:
        return min(found, key=lambda chain: chain.cost)
    # Tells of blocks that nobody holds in any arithmetic, if there are such.
    find_chain(view, costs, query)
    raise min(lacking, key=lambda entry: entry[:2])[2]


@dataclass(slots=True)
class _Graph:
    """Prices in seconds by the index of a peer."""

    span: Span
    peers: list[PeerInfo]
    first: list[float] = field(default_factory=list)  # into q at the start of the range
    enter: list[float] = field(default_factory=list)  # into q from the client
    step: list[float] = field(default_factory=list)  # one block
    leave: list[float] = field(default_factory=list)  # back to the client
    last: list[float] = field(default_factory=list)  # out of the range

    def prices(self) -> Prices:
        start, length = self.span.start, len(self.span)
        low = np.array([max(peer.span.start - start, 0) for peer in self.peers])
        high = np.array([min(peer.span.end - start, length) for peer in self.peers])
        step, enter, leave, last = map(np.array, (self.step, self.enter, self.leave, self.last))
        return Prices(low, high, step, enter, leave, last)


def _search(graph: _Graph, links: Links | None) -> Chain:
    """Shortest path by A*; boundaries are counted from the start of the range, 0 to `length`."""
    length, n = len(graph.span), len(graph.peers)
    width = length + 1
    prices = graph.prices()
    rest = rest_of(prices, length)
    start = np.array(graph.first) + prices.step
    start[prices.low > 0] = math.inf  # who does not hold the first block
    best = (start + rest.of_peers[1]).min()  # of the hub's chains: nothing dearer can win
    if links is not None:
        links = links.useful(prices)
        rest = rest_of(prices, length, links)
    most = best * (1 + SLACK)

    # Node p * width + b is (p, b); behind those come the boundaries of a hub, then the goal.
    boundary, goal = n * width, (n + 1) * width
    left = [*rest.of_peers.T.ravel().tolist(), *rest.of_hub.tolist(), 0.0]
    step, leave, last = graph.step, graph.leave, graph.last
    high = prices.high.tolist()
    known: dict[int, list[tuple[int, int, int, float]]] = {}

    distance = [math.inf] * (goal + 1)
    came_from = [_CLIENT] * (goal + 1)
    heap: list[tuple[float, int]] = []
    for q in np.flatnonzero(start + rest.of_peers[1] <= most).tolist():
        distance[q * width + 1] = float(start[q])
        heap.append((distance[q * width + 1] + left[q * width + 1], q * width + 1))
    heapify(heap)
    while heap:
        total, node = heappop(heap)
        cost = distance[node]
        if total > cost + left[node]:
            continue  # a cheaper way to this node was found after this one was pushed
        if node == goal:
            break
        p, b = divmod(node, width)
        ways: list[tuple[int, float, int]] = []  # to which node, at what cost, coming from whom
        if node >= boundary:
            ahead = rest.ahead[b]
            for q in np.flatnonzero(cost + prices.enter + ahead <= most).tolist():
                ways.append((q * width + b + 1, cost + graph.enter[q] + step[q], came_from[node]))
        elif b == length:
            ways.append((goal, cost + last[p], p))
        else:
            if b < high[p]:
                ways.append((node + 1, cost + step[p], _CONTINUED))
            ways.append((boundary + b, cost + leave[p], p))
            if links is not None:
                if p not in known:
                    known[p] = links.out_of(p)
                ways += [
                    (q * width + b + 1, cost + hop + step[q], p)
                    for q, lowest, highest, hop in known[p]
                    if lowest <= b < highest
                ]
        for after, new, source in ways:
            if new < distance[after] and (ends := new + left[after]) <= most:
                distance[after], came_from[after] = new, source
                heappush(heap, (ends, after))

    hops: list[Hop] = []
    p, b, stop = came_from[goal], length, length
    while p != _CLIENT:
        source = came_from[p * width + b]
        b -= 1
        if source in (_CONTINUED, p):
            continue
        peer = graph.peers[p]
        hops.append(Hop(peer, Span(graph.span.start + b, graph.span.start + stop)))
        p, stop = source, b
    return Chain(tuple(reversed(hops)), distance[goal])
