"""A client inside a site: greedy tokens and the seconds of each, and a prefill for comparison.

    python -m bench.wan.client --peer HOST:PORT --tokens N [--prompt-tokens N] [--standby]
        [--pause-at K] [--prefill-at K]

Prints lines of JSON. After K tokens `--pause-at` says `{"tail": HOST:PORT}`, the address of the
chain's last hop, and waits for a line on stdin, so that whoever started it can do harm just then;
with `--standby`, once the peer that stands by for that hop holds what it holds.
`--prefill-at` runs the prompt and the first K tokens again through a new session: what a failure
costs a client that keeps nothing. The last line holds all that was found.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import time
from typing import Any

from swarmd.client.chain_session import ChainSession
from swarmd.client.forward import forward
from swarmd.client.generate import decode_tokens
from swarmd.client.loading import ClientModel, load_client, resolve_client_folder
from swarmd.client.router import Router
from swarmd.client.sampling import Sampler, SamplingConfig
from swarmd.client.session_config import SessionConfig
from swarmd.client.swarm import SwarmClient, choose_chain
from swarmd.peers import Address, parse_address
from swarmd.wire.pool import Pool

__all__ = ["main"]

PROMPT = "Write a long story about a lighthouse keeper and the sea.\n\nOnce upon a time,"


async def open_session(
    router: Router, pool: Pool, model: ClientModel, max_length: int, *, standby: bool = False
) -> ChainSession:
    chain = await choose_chain(router, wait=60)
    return ChainSession(
        router, pool, chain, hidden_size=model.folder.hidden_size, max_length=max_length,
        config=SessionConfig(standby=standby),
    )  # fmt: skip


async def ready_to_take_over(session: ChainSession) -> None:
    """Wait until the last hop's standby lacks nothing. Raises TimeoutError."""
    key, _ = session._machine.hops[-1]
    async with asyncio.timeout(60):
        while session._spares.held(key) != session._machine.arrived(key):
            await asyncio.sleep(0.01)


async def answer(
    peer: Address,
    tokens: int,
    *,
    prompt_tokens: int | None,
    standby: bool,
    pause_at: int | None,
    prefill_at: int | None,
) -> dict[str, Any]:
    """Tokens, the seconds of each (pauses aside), what was recovered, and the prefill's seconds."""
    folder = await resolve_client_folder(None, None)
    model = await load_client(folder, "float32")
    async with SwarmClient([peer], lan=False) as client:
        pool = await client.pool(folder.model_id)
        router = client.router(
            pool, model_id=folder.model_id, model_name=folder.name,
            n_blocks=folder.n_blocks, bytes_per_token=folder.hidden_size * 4,
        )  # fmt: skip
        prompt_ids = model.text.encode(PROMPT)
        if prompt_tokens is not None:
            prompt_ids = (prompt_ids * (prompt_tokens // len(prompt_ids) + 1))[:prompt_tokens]
        found: list[int] = []
        times: list[float] = []
        length = len(prompt_ids) + tokens
        async with await open_session(router, pool, model, length, standby=standby) as session:
            await session.open_links()
            began = time.perf_counter()
            async for token in decode_tokens(
                model.ends, session, prompt_ids, Sampler(SamplingConfig()),
                max_new_tokens=tokens, eos_token_ids=frozenset(),
            ):  # fmt: skip
                times.append(time.perf_counter() - began)
                found.append(token)
                if pause_at == len(found):
                    if standby:
                        await ready_to_take_over(session)
                    print(json.dumps({"tail": str(session.chain[-1].peer.address)}), flush=True)
                    await asyncio.to_thread(sys.stdin.readline)
                began = time.perf_counter()
        result: dict[str, Any] = {
            "tokens": found,
            "times": times,
            "recoveries": len(session.statistics.recoveries),
            "replayed": session.statistics.replayed_positions,
        }
        if prefill_at is not None:
            ids = [*prompt_ids, *found[:prefill_at]]
            async with await open_session(router, pool, model, len(ids) + 1) as session:
                await session.open_links()
                began = time.perf_counter()
                await forward(model.ends, session, ids, 0)
                result["prefill"] = time.perf_counter() - began
        return result


def main() -> None:
    """Answer once, and print what was found."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--peer", type=parse_address, required=True)
    parser.add_argument("--tokens", type=int, required=True)
    parser.add_argument("--prompt-tokens", type=int)
    parser.add_argument("--standby", action="store_true")
    parser.add_argument("--pause-at", type=int)
    parser.add_argument("--prefill-at", type=int)
    options = parser.parse_args()
    found = asyncio.run(answer(**vars(options)))
    print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main()
