"""What an encrypted link costs a decode step, against plain TCP; interleaved in one run.

One process serves SmolLM2's blocks from one engine at two ports of loopback: one with knock,
TLS 1.3 and proofs, one plaintext (which swarmd refuses elsewhere). This process sends the same
decode steps to both in turn, so that whatever else the machine does meets both alike. Also: the
same round trip without any compute, and making a link.

    python -m bench.links [--rounds 10] [--tokens 32]
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import subprocess
import sys
import time
from typing import Any

from bench.report import save, show
from swarmd.blocks import Span
from swarmd.identity import Identity, PeerId
from swarmd.peers import Address
from swarmd.wire.connection import Connection
from swarmd.wire.messages import Close, Closed, Open, Opened, Output, Ping, Pong, Step
from swarmd.wire.tensors import TensorMeta
from swarmd.wire.transport import Door, Greeted, Greeting, bind, dial, listen

HIDDEN = 576
BLOCKS = Span(0, 15)
PINGS = 200


async def serve() -> None:
    """In the child: print both ports and the peer id, and serve until stdin ends."""
    from swarmd.compute.block_span import BlockSpan
    from swarmd.compute.engine import Engine
    from swarmd.compute.source import resolve_model
    from swarmd.node.served import ServedModel
    from swarmd.node.sessions import SessionServer
    from swarmd.tasks import TaskOwner

    folder = resolve_model(None, span=BLOCKS)
    door = Door(Identity.generate())
    async with Engine(BlockSpan(folder, BLOCKS, dtype="float32"), kv_tokens=4096) as engine:
        model = ServedModel(
            folder.model_id, folder.name, folder.n_blocks, folder.hidden_size,
            folder.max_positions, "float32",
        )  # fmt: skip
        server = SessionServer(door, model, engine)
        async with TaskOwner("bench") as owner:

            def accept(connection: Connection) -> None:
                owner.spawn(server.serve(connection), name="connection", errors="log")

            ports = []
            listeners = []
            for plaintext in (False, True):
                sock = bind(Address("127.0.0.1", 0))
                ports.append(sock.getsockname()[1])
                listeners.append(
                    await listen(
                        sock, accept, door, limits=server.frame_limits(), plaintext=plaintext
                    )
                )
            print(json.dumps([*ports, door.identity.peer_id.hex()]), flush=True)
            await asyncio.to_thread(sys.stdin.read)
            for listener in listeners:
                listener.close()


async def decode(links: dict[str, Greeted], tokens: int, number: int) -> dict[str, float]:
    """The median decode step by variant in milliseconds. A session on each link; step by step the
    links take turns, and who is first changes each time."""
    session, meta = number.to_bytes(16, "big"), TensorMeta("float32", (1, 1, HIDDEN))
    times: dict[str, list[float]] = {name: [] for name in links}
    for greeted in links.values():
        await greeted.connection.send(Open(session, BLOCKS.start, BLOCKS.end, 256))
        assert isinstance((await greeted.connection.receive())[0], Opened)
    for position in range(tokens):
        for name in list(links)[:: 1 if position % 2 else -1]:
            connection = links[name].connection
            began = time.perf_counter()
            await connection.send(Step(session, position, position, 0, meta), bytes(meta.n_bytes))
            message, _ = await connection.receive()
            times[name].append(1e3 * (time.perf_counter() - began))
            assert isinstance(message, Output), message
    for greeted in links.values():
        await greeted.connection.send(Close(session))
        assert isinstance((await greeted.connection.receive())[0], Closed)
    return {name: statistics.median(values[1:]) for name, values in times.items()}


async def ping_us(greeted: Greeted) -> float:
    """The median round trip of a message in microseconds."""
    times = []
    for nonce in range(PINGS):
        began = time.perf_counter()
        await greeted.connection.send(Ping(nonce))
        assert (await greeted.connection.receive())[0] == Pong(nonce)
        times.append(1e6 * (time.perf_counter() - began))
    return statistics.median(times)


async def dial_ms(address: Address, greeting: Greeting, peer: PeerId) -> float:
    """Milliseconds from nothing to a greeted connection."""
    began = time.perf_counter()
    greeted = await dial(address, greeting, expected=peer)
    spent = 1e3 * (time.perf_counter() - began)
    await greeted.connection.close()
    return spent


async def measure(ports: list[int], peer: PeerId, rounds: int, tokens: int) -> dict[str, Any]:
    """Lists by variant: `tls` and `plain`."""
    found: dict[str, dict[str, list[float]]] = {
        what: {"plain": [], "tls": []} for what in ("step_ms", "ping_us", "dial_ms")
    }
    address = {
        "tls": Address("127.0.0.1", ports[0]),
        "plain": Address("127.0.0.1", ports[1]),
    }
    greeting = {"tls": Greeting(), "plain": Greeting(plaintext=True)}
    links = {
        name: await dial(address[name], greeting[name], expected=peer) for name in ("plain", "tls")
    }
    await decode(links, 4, 1)  # the first steps warm caches
    for turn in range(rounds):
        order = ("plain", "tls") if turn % 2 else ("tls", "plain")
        for name, step_ms in (await decode(links, tokens, turn + 2)).items():
            found["step_ms"][name].append(step_ms)
        for name in order:
            found["ping_us"][name].append(await ping_us(links[name]))
        for name in order:
            found["dial_ms"][name].append(await dial_ms(address[name], greeting[name], peer))
    for greeted in links.values():
        await greeted.connection.close()
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    from swarmd.cli.runtime import prepare_libraries, run

    prepare_libraries()
    if options.serve:
        run(serve())
        return
    child = subprocess.Popen(
        [sys.executable, "-m", "bench.links", "--serve"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert child.stdin is not None
    assert child.stdout is not None
    try:
        *ports, peer = json.loads(child.stdout.readline())
        figures = run(measure(ports, PeerId(bytes.fromhex(peer)), options.rounds, options.tokens))
    finally:
        child.stdin.close()
        child.wait(30)
    median = {
        what: {name: statistics.median(values) for name, values in by_name.items()}
        for what, by_name in figures.items()
    }
    ratios = [
        tls / plain
        for tls, plain in zip(figures["step_ms"]["tls"], figures["step_ms"]["plain"], strict=True)
    ]
    ratio = statistics.median(ratios)
    added = median["ping_us"]["tls"] - median["ping_us"]["plain"]
    show(
        f"links, SmolLM2-135M blocks {BLOCKS} fp32, medians of {options.rounds} rounds",
        ("", "plain TCP", "TLS 1.3", "ratio"),
        [
            (text, *(f"{median[what][name]:.{digits}f}" for name in ("plain", "tls")),
             f"{median[what]['tls'] / median[what]['plain']:.3f}")
            for text, what, digits in (
                ("a decode step, ms", "step_ms", 2),
                ("a round trip without compute, µs", "ping_us", 0),
                ("making a link, ms", "dial_ms", 2),
            )
        ],
    )  # fmt: skip
    print(
        f"a decode step with TLS takes {ratio:.3f} of one without (median of the rounds' ratios);"
    )
    print(f"TLS adds {added:.0f} µs to a round trip")
    save(
        "links",
        {"rounds": options.rounds, "tokens": options.tokens, "blocks": str(BLOCKS),
         "link": "loopback"},
        {**figures, "step_ratios": ratios, "step_ratio": ratio, "tls_adds_us": added},
    )  # fmt: skip


if __name__ == "__main__":
    main()
