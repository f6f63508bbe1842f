"""The client of :mod:`bench.wan_prefill`, at its own site: prompts in one piece and in chunks.

python -m bench.wan.prefill_client --peer HOST:PORT --tokens 1024 --rounds 3
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import time
from dataclasses import dataclass

from swarmd.client.chain_session import ChainSession, SessionConfig
from swarmd.client.forward import forward
from swarmd.client.loading import load_client, resolve_client_folder
from swarmd.client.swarm import SwarmClient, choose_chain
from swarmd.peers import Address, parse_address
from swarmd.routing.edges import Route

__all__ = ["WAYS", "main"]


@dataclass(frozen=True, slots=True)
class Way:
    """How a prompt goes through the chain: in chunks of so many tokens, or (None) as the client
    itself cuts it."""

    route: Route
    chunk: int | None


WHOLE = 2048
WAYS = {
    "hub, one piece": Way("hub", WHOLE),
    "ring, one piece": Way("ring", WHOLE),
    "ring, chunks of 64": Way("ring", 64),
    "ring, chunks of 128": Way("ring", 128),
    "ring, chunks of 256": Way("ring", 256),
    "hub, chosen chunks": Way("hub", None),
    "ring, chosen chunks": Way("ring", None),
}


async def measure(peer: Address, tokens: int, rounds: int) -> dict[str, dict[str, list[float]]]:
    """Seconds of each round, and the size of chunks, by way. The first round is not counted: it
    measures the hops' pace, which the size of chunks follows."""
    folder = await resolve_client_folder(None, None)
    model = await load_client(folder, "float32")
    found: dict[str, dict[str, list[float]]] = {name: {"seconds": [], "chunk": []} for name in WAYS}
    rng = random.Random(tokens)
    async with SwarmClient([peer], lan=False) as client:
        pool = await client.pool(folder.model_id)
        router = client.router(
            pool, model_id=folder.model_id, model_name=folder.name,
            n_blocks=folder.n_blocks, bytes_per_token=folder.hidden_size * 4,
        )  # fmt: skip
        chain = await choose_chain(router, wait=60)
        for number in range(rounds + 1):
            for name, way in WAYS.items():
                router.route = way.route
                # Nothing that a peer has seen before: it would keep the common beginning.
                ids = [rng.randrange(1000, 40000) for _ in range(tokens)]
                config = SessionConfig(chunk_tokens=way.chunk)
                async with ChainSession(
                    router, pool, chain, hidden_size=folder.hidden_size,
                    max_length=tokens + 1, config=config,
                ) as session:  # fmt: skip
                    await session.open_links()
                    linked = await session.wait_for_links(10)
                    if linked != (way.route == "ring"):
                        raise RuntimeError(f"{name}: linked is {linked}")
                    began = time.perf_counter()
                    await forward(model.ends, session, ids, 0)
                    if number:
                        found[name]["seconds"].append(time.perf_counter() - began)
                        found[name]["chunk"].append(session._machine.chunk_tokens)
    return found


def main() -> None:
    """Measure, and print what was found."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--peer", type=parse_address, required=True)
    parser.add_argument("--tokens", type=int, required=True)
    parser.add_argument("--rounds", type=int, required=True)
    options = parser.parse_args()
    found = asyncio.run(measure(options.peer, options.tokens, options.rounds))
    print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main()
