"""The cheapest chain of peers, by Dijkstra's algorithm (Numerische Mathematik 1, 1959).

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

Costs are above zero, hence Dijkstra is exact. A peer may occur twice in a chain with another one
between, where that one is faster by more than two hops cost; neighbouring hops of one peer are
one hop. Equal costs fall to the lower PeerId.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from heapq import heapify, heappop, heappush

from swarmd.blocks import Span, coverage, holes
from swarmd.errors import NoRoute
from swarmd.identity import PeerId
from swarmd.peers import PeerInfo
from swarmd.routing.chain import Chain, Hop, no_route
from swarmd.routing.cost import Costs
from swarmd.routing.query import WHOLE_MODEL, RouteQuery
from swarmd.routing.view import View

__all__ = ["best_chain", "find_chain"]

_CONTINUED = -1  # the node was reached by the same peer running on
_CLIENT = -2  # the node was reached from the client, or from the hop before the range


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
    ring, tokens = query.mode == "ring", query.tokens
    before = view.get(query.previous) if query.previous is not None else None
    admits = [
        costs.admit(peer, query.kv_needed, avoided=peer.peer_id in query.avoid) for peer in peers
    ]

    graph = _Graph(wanted, peers, _pairs(peers, admits, factors, costs, tokens) if ring else None)
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
    return _dijkstra(graph)


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


def _pairs(
    peers: Sequence[PeerInfo],
    admits: Sequence[float],
    factors: Mapping[PeerId, float],
    costs: Costs,
    tokens: int,
) -> Callable[[int], dict[int, float]]:
    """Of the peer of an index: the prices of hops over its known links, by the other's index."""
    measured: dict[PeerId, dict[PeerId, float]] = {}
    for (source, target), rtt in costs.measured.edge_rtt.items():
        measured.setdefault(source, {})[target] = rtt
    least, most = costs.model.min_rtt, costs.model.max_rtt
    # by id: index, factor, and what each hop into the peer costs apart from the link's trip
    into = {
        peer.peer_id: (i, factors[peer.peer_id], admit + costs.transfer(peer.peer_id, tokens))
        for i, (peer, admit) in enumerate(zip(peers, admits, strict=True))
    }

    def pairs(i: int) -> dict[int, float]:
        source, found = peers[i], {}
        known = source.rtts
        if source.peer_id in measured:
            known = {**known, **measured[source.peer_id]}
        for target, rtt in known.items():  # as Costs.edge
            if target in into and 0 <= rtt < math.inf:
                j, factor, fixed = into[target]
                if j != i:
                    found[j] = factor * (fixed + min(max(rtt, least), most) / 2)
        return found

    return pairs


@dataclass(slots=True)
class _Graph:
    """Prices in seconds by the index of a peer. In a ring, `pairs(p)[q]` is the price of a hop
    over the link from p to q where that is known."""

    span: Span
    peers: list[PeerInfo]
    pairs: Callable[[int], dict[int, float]] | None
    first: list[float] = field(default_factory=list)  # into q at the start of the range
    enter: list[float] = field(default_factory=list)  # into q from the client
    step: list[float] = field(default_factory=list)  # one block
    leave: list[float] = field(default_factory=list)  # back to the client
    last: list[float] = field(default_factory=list)  # out of the range


def _dijkstra(graph: _Graph) -> Chain:
    """Shortest path; boundaries are counted from the start of the range, 0 to `length`.

    The loops are written out where a large swarm spends its time (`bench/routing.py`).
    """
    length, n = len(graph.span), len(graph.peers)
    width = length + 1
    low = [max(peer.span.start - graph.span.start, 0) for peer in graph.peers]
    high = [min(peer.span.end - graph.span.start, length) for peer in graph.peers]
    step, leave = graph.step, graph.leave
    ways_in = [enter + run for enter, run in zip(graph.enter, step, strict=True)]

    # Node p * width + b is (p, b); behind those come the boundaries of a hub, then the goal.
    boundary, goal = n * width, (n + 1) * width
    # At each boundary, who holds the block behind it: the node after that block, and the peer.
    waiting: list[list[tuple[int, int]]] = [[] for _ in range(length)]
    for q in range(n):
        for b in range(low[q], high[q]):
            waiting[b].append((q * width + b + 1, q))
    # ring: from p into q, and q's first block: its blocks, its node 1, the price
    known: dict[int, list[tuple[int, int, int, float]]] = {}

    distance = [math.inf] * (goal + 1)
    came_from = [_CLIENT] * (goal + 1)
    heap: list[tuple[float, int]] = []
    for after, q in waiting[0]:
        distance[after] = graph.first[q] + step[q]
        heap.append((distance[after], after))
    heapify(heap)
    while heap:
        cost, node = heappop(heap)
        if cost > distance[node]:
            continue  # a cheaper way to this node was found after this one was pushed
        if node == goal:
            break
        p, b = divmod(node, width)
        if node >= boundary:
            source = came_from[node]
            for after, q in waiting[b]:
                new = cost + ways_in[q]
                if new < distance[after]:
                    distance[after], came_from[after] = new, source
                    heappush(heap, (new, after))
            continue
        if b == length:
            new = cost + graph.last[p]
            if new < distance[goal]:
                distance[goal], came_from[goal] = new, p
                heappush(heap, (new, goal))
            continue
        if b < high[p]:
            new = cost + step[p]
            if new < distance[node + 1]:
                distance[node + 1], came_from[node + 1] = new, _CONTINUED
                heappush(heap, (new, node + 1))
        new, after = cost + leave[p], boundary + b
        if new < distance[after]:
            distance[after], came_from[after] = new, p
            heappush(heap, (new, after))
        if graph.pairs is None:
            continue
        if p not in known:  # of those, who may follow in p's blocks, and not as cheaply by a hub
            known[p] = [
                (low[q], high[q], q * width + 1, hop + step[q])
                for q, hop in graph.pairs(p).items()
                if low[q] <= high[p] and low[p] < high[q] and hop < leave[p] + graph.enter[q]
            ]
        for lowest, highest, first, hop in known[p]:
            if lowest <= b < highest and (new := cost + hop) < distance[first + b]:
                distance[first + b], came_from[first + b] = new, p
                heappush(heap, (new, first + b))

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
