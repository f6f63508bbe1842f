"""How long the choice of a chain takes in a large swarm, against networkx on the same swarm.

    python -m bench.routing [--peers 2000] [--blocks 80] [--rounds 20]

Peers of random speed and place hold 4 to 20 blocks each, as many as a card may. In a ring each
announces its trips to 16 others. The baseline is networkx's Dijkstra on a graph that is already
built: pairs of peers meet in one node for each block boundary, as they do in ours (hub only).
"""

from __future__ import annotations

import argparse
import random
import statistics
import time

import networkx as nx

from bench.report import save, show
from swarmd.blocks import Span
from swarmd.identity import PeerId
from swarmd.peers import Address, ModelId, PeerInfo, PeerState
from swarmd.routing.cost import Costs, Measurements, Mode
from swarmd.routing.dijkstra import find_chain
from swarmd.routing.query import RouteQuery
from swarmd.routing.view import View

MODEL = ModelId(b"swarmd bench rou")
GOAL = 0.05
"""Seconds."""


def swarm(n_peers: int, n_blocks: int, seed: int) -> tuple[View, Costs]:
    """A view of peers that hold random spans, and this client's trips to them."""
    rng = random.Random(seed)
    ids = [PeerId(rng.randbytes(20)) for _ in range(n_peers)]
    peers = []
    for number, peer_id in enumerate(ids):
        length = rng.randint(4, 20)
        start = rng.randint(0, n_blocks - length)
        peers.append(
            PeerInfo(
                peer_id=peer_id,
                address=Address("127.0.0.1", 1024 + number),
                model_id=MODEL,
                model_name="bench",
                n_blocks=n_blocks,
                span=Span(start, start + length),
                state=PeerState.ONLINE,
                decode_us=rng.randint(100, 20_000),
                prefill_us=rng.randint(10, 2_000),
                kv_free=4096,
                dtype="bfloat16",
                rtts={other: rng.uniform(0.001, 0.3) for other in rng.sample(ids, 16)},
            )
        )
    trips = {peer_id: rng.uniform(0.001, 0.3) for peer_id in ids}
    view = View.of(peers, n_blocks, model_id=MODEL)
    return view, Costs(measured=Measurements(client_rtt=trips))


def library_graph(view: View, costs: Costs) -> nx.DiGraph:
    """The same choice as a graph for networkx, hub mode."""
    graph: nx.DiGraph = nx.DiGraph()
    for peer in view.routable:
        own = peer.peer_id
        way_in = costs.enter(own) + costs.admit(peer)
        run = costs.run(peer, 1)
        for block in peer.span:
            graph.add_edge(block, (own, block + 1), weight=way_in + run)
            if block > peer.span.start:
                graph.add_edge((own, block), (own, block + 1), weight=run)
            graph.add_edge((own, block + 1), block + 1, weight=costs.leave(own))
    return graph


def timed(view: View, costs: Costs, mode: Mode) -> tuple[float, float]:
    """Seconds, and the cost of the chain."""
    began = time.perf_counter()
    chain = find_chain(view, costs, RouteQuery(mode=mode))
    return time.perf_counter() - began, chain.cost


def main() -> None:
    """Measure, print, save."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--peers", type=int, default=2000)
    parser.add_argument("--blocks", type=int, default=80)
    parser.add_argument("--rounds", type=int, default=20)
    options = parser.parse_args()
    taken: dict[str, list[float]] = {"hub": [], "ring": [], "networkx, hub": []}
    for seed in range(options.rounds):
        view, costs = swarm(options.peers, options.blocks, seed)
        graph = library_graph(view, costs)
        hub, price = timed(view, costs, "hub")
        began = time.perf_counter()
        shortest = nx.dijkstra_path_length(graph, 0, options.blocks)
        taken["networkx, hub"].append(time.perf_counter() - began)
        assert abs(shortest - price) < 1e-9 * price, (shortest, price)
        taken["hub"].append(hub)
        taken["ring"].append(timed(view, costs, "ring")[0])
    medians = {name: statistics.median(values) for name, values in taken.items()}
    show(
        f"{options.peers} peers, {options.blocks} blocks, medians of {options.rounds} swarms",
        ("search", "milliseconds", "longest", "of networkx", "goal"),
        [
            (
                name,
                f"{1e3 * value:.1f}",
                f"{1e3 * max(taken[name]):.1f}",
                f"{value / medians['networkx, hub']:.2f}",
                "" if name.startswith("networkx") else f"{1e3 * GOAL:.0f}",
            )
            for name, value in medians.items()
        ],
    )
    save("routing", vars(options), {"seconds": taken, "medians": medians})


if __name__ == "__main__":
    main()
