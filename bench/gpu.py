"""A model of Llama-3-8B's shape on GPUs: two daemons of 16 blocks each and a client, over loopback.

Weights are random bfloat16, made in place, so nothing is read from a disk. In the same run: the
library's own eager decoding in one process; the best case of offloading (how long it takes to bring
all weights from pinned host memory, transfer alone); and the floor (to read all weights once).

One stream is a whole client: embedding, chain (a ring), head, greedy choice. Many streams are
sessions of several client processes that send hidden states, to each daemon in turn, and have no
head, as if on machines of their own; they are compared with one such stream. They are counted after
some seconds, in which the daemons find out how long it pays to wait for one another's sessions.

    python -m bench.gpu [--seconds 10] [--devices cuda:0,cuda:1] [--blocks 32] [--streams 1,8,32]
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import subprocess
import sys
import time
from typing import Any

import torch
from transformers import AutoModelForCausalLM, LlamaConfig

from bench.report import save, show
from bench.sessions import Session, session
from swarmd.blocks import Span
from swarmd.cli.runtime import run
from swarmd.compute.cut_model import cut_class
from swarmd.peers import ModelId

DTYPE, HIDDEN = "bfloat16", 4096
MODEL = ModelId(b"swarmd bench gpu")
GOALS = {"one stream, tokens/s": 110.0, "8 streams": 5.0, "32 streams": 15.0, "offloading": 25.0}
PROMPT = 64
WARM_UP = 4.0


def config(n_blocks: int) -> LlamaConfig:
    return LlamaConfig(
        vocab_size=128256, hidden_size=HIDDEN, intermediate_size=14336,
        num_hidden_layers=n_blocks, num_attention_heads=32, num_key_value_heads=8,
        max_position_embeddings=8192, rope_theta=500000.0, rms_norm_eps=1e-5,
        tie_word_embeddings=False,
    )  # fmt: skip


def random_part(n_blocks: int, span: Span | None, device: str) -> Any:
    """The blocks of `span`, or (None) the two ends."""
    torch.manual_seed(0)
    with torch.device(device), torch.inference_mode():
        cls = cut_class(config(n_blocks), span)
        return cls._from_config(config(n_blocks), dtype=torch.bfloat16).eval()


# ---- a daemon ------------------------------------------------------------------------------------


class TurnLog:
    """Which turns `blocks` ran: of how many rows, for how long, after how long a rest."""

    def __init__(self, blocks: Any) -> None:
        self._run = blocks.run
        blocks.run = self.run
        self._ended = time.monotonic()
        self._turns: list[tuple[int, float, float]] = []

    def run(self, arena: Any, pieces: Any) -> Any:
        began = time.monotonic()
        outputs = self._run(arena, pieces)
        rested, self._ended = began - self._ended, time.monotonic()
        rows = sum(piece.tokens for piece in pieces)
        self._turns.append((rows, self._ended - began, rested))
        return outputs

    def told(self) -> str:
        """Since the last call: of turns of so many rows, their number, and medians in ms."""
        turns, self._turns = self._turns, []
        found = []
        for rows in sorted({one[0] for one in turns}):
            of = [one for one in turns if one[0] == rows]
            ran, rested = (1e3 * statistics.median(one[i] for one in of) for i in (1, 2))
            found.append(f"{rows}: {len(of)} x {ran:.1f} after {rested:.1f}")
        return "; ".join(found)


async def serve(n_blocks: int, span: Span, device: str, kv_tokens: int) -> None:
    """In a child: print port and peer id, and serve until stdin ends."""
    from swarmd.compute.block_span import BlockSpan
    from swarmd.compute.engine import Engine
    from swarmd.compute.throughput import measure
    from swarmd.identity import Identity, PeerId
    from swarmd.node.edge import Successors
    from swarmd.node.served import ServedModel
    from swarmd.node.sessions import SessionServer
    from swarmd.peers import Address
    from swarmd.tasks import TaskOwner
    from swarmd.wire.connection import Connection
    from swarmd.wire.pool import Pool
    from swarmd.wire.transport import Door, Greeting, bind, listen

    ports: dict[str, int] = {}

    async def whereis(peer_id: PeerId) -> Address | None:
        port = ports.get(peer_id.hex())
        return None if port is None else Address("127.0.0.1", port)

    door = Door(Identity.generate())
    blocks = BlockSpan.of_model(
        random_part(n_blocks, span, device), span, dtype=DTYPE, device=device
    )
    torch.cuda.empty_cache()
    async with Engine(blocks, kv_tokens=kv_tokens) as engine:
        speed = await engine.call(lambda: measure(blocks))
        engine.reckon_with(speed.turn_cost(batched=blocks.batched))
        model = ServedModel(MODEL, "bench", n_blocks, HIDDEN, 8192, DTYPE)
        server = SessionServer(door, model, engine)
        turns = TurnLog(blocks)
        async with (
            TaskOwner("bench") as owner,
            Pool(Greeting(MODEL, door.identity)) as edge_pool,
        ):
            server.successors = Successors(edge_pool, whereis)

            def accept(connection: Connection) -> None:
                owner.spawn(server.serve(connection), name="connection", errors="log")

            sock = bind(Address("127.0.0.1", 0))
            listener = await listen(sock, accept, door, limits=server.frame_limits())
            about = {
                "port": sock.getsockname()[1],
                "peer": door.identity.peer_id.hex(),
                "batched": blocks.batched,
                "decode_us": speed.decode_us,
                "prefill_us": speed.prefill_us,
                "memory_gb": torch.cuda.memory_allocated() / 1e9,
            }
            print(json.dumps(about), flush=True)
            while said := await asyncio.to_thread(sys.stdin.readline):
                if said.startswith("{"):
                    ports.update(json.loads(said))
                    continue
                print(f"turns of {span}, ms: {turns.told()}", file=sys.stderr, flush=True)
            graphs = list(blocks._graphs.values())
            print(f"graphs work: {[g.works for g in graphs]}", file=sys.stderr, flush=True)
            listener.close()


# ---- clients -------------------------------------------------------------------------------------


async def one_stream(
    servers: list[dict[str, Any]], spans: list[Span], n_blocks: int, device: str, tokens: int
) -> list[float]:
    """Seconds of each token after the first few, of a whole client."""
    import random

    from swarmd.client.chain_session import ChainSession
    from swarmd.client.forward import forward
    from swarmd.client.router import Router
    from swarmd.compute.ends import ModelEnds
    from swarmd.identity import PeerId
    from swarmd.peers import Address, PeerInfo, PeerState
    from swarmd.routing.chain import Chain, Hop
    from swarmd.wire.ping import ping
    from swarmd.wire.pool import Pool
    from swarmd.wire.transport import Greeting

    ends = ModelEnds.of_model(random_part(n_blocks, None, device), dtype=DTYPE, device=device)
    peers = [
        PeerInfo(
            peer_id=PeerId(bytes.fromhex(server["peer"])),
            address=Address("127.0.0.1", server["port"]),
            model_id=MODEL, model_name="bench", n_blocks=n_blocks, span=span,
            state=PeerState.ONLINE, decode_us=server["decode_us"],
            prefill_us=server["prefill_us"], kv_free=8192, dtype=DTYPE,
        )
        for server, span in zip(servers, spans, strict=True)
    ]  # fmt: skip

    async def fetch() -> list[PeerInfo]:
        return peers

    async with Pool(Greeting(MODEL)) as pool:
        router = Router(
            fetch, lambda peer: ping(peer, pool), model_id=MODEL, model_name="bench",
            n_blocks=n_blocks, bytes_per_token=2 * HIDDEN, rng=random.Random(1),
        )  # fmt: skip
        await router.refresh()
        chain = Chain(tuple(Hop(peer, peer.span) for peer in peers), 0.0)
        times: list[float] = []
        async with ChainSession(
            router, pool, chain, hidden_size=HIDDEN, max_length=1024
        ) as running:
            await running.open_links()
            if not await running.wait_for_links(10):
                raise RuntimeError("the daemons do not forward to one another")
            logits = await forward(ends, running, list(range(100, 100 + PROMPT)), 0)
            for number in range(tokens):
                began = time.perf_counter()
                token = int(logits.argmax())
                logits = await forward(ends, running, [token], PROMPT + number)
                times.append(time.perf_counter() - began)
    return times[8:]


async def streams(ports: list[int], spans: list[Span], count: int, seconds: float) -> None:
    """In a child: `count` streams through all servers; wait for a line, decode, print the count."""
    chains = []
    contexts = []
    for number in range(count):
        chain = []
        for port, span in zip(ports, spans, strict=True):
            context = session(port, 2048, blocks=(span.start, span.end))
            contexts.append(context)
            chain.append(await context.__aenter__())
        chains.append(chain)
        await through(chain, noise(PROMPT, 1000 * os.getpid() + number))
    for _ in range(4):
        await asyncio.gather(*(through(chain, noise(1, 7)) for chain in chains))
    print("ready", flush=True)
    await asyncio.to_thread(sys.stdin.readline)
    since = time.monotonic() + WARM_UP
    until = since + seconds
    hidden = noise(1, 8)

    async def run(chain: list[Session]) -> int:
        done = 0
        while (now := time.monotonic()) < until:
            await through(chain, hidden)
            done += now >= since
        return done

    print(sum(await asyncio.gather(*map(run, chains))), flush=True)
    for context in contexts:
        await context.__aexit__(None, None, None)


async def through(chain: list[Session], hidden: torch.Tensor) -> None:
    """One step through all servers; what the first gives is what the second takes."""
    for link in chain:
        output = await link.step(hidden)
        assert output is not None
        raw = link.payload
        hidden = torch.frombuffer(bytearray(raw), dtype=torch.bfloat16).reshape(hidden.shape)


def noise(tokens: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(1, tokens, HIDDEN, generator=generator).to(torch.bfloat16)


# ---- baselines -----------------------------------------------------------------------------------


def eager(n_blocks: int, device: str) -> float:
    """Tokens a second of the library's own decoding, one stream, one process."""
    with torch.device(device), torch.inference_mode():
        model = AutoModelForCausalLM.from_config(config(n_blocks), dtype=torch.bfloat16).eval()
        ids = torch.arange(100, 100 + PROMPT, device=device).unsqueeze(0)
        times = []
        for tokens in (8, 72):
            torch.cuda.synchronize()
            began = time.perf_counter()
            model.generate(
                ids, max_new_tokens=tokens, min_new_tokens=tokens, do_sample=False, pad_token_id=0
            )
            torch.cuda.synchronize()
            times.append(time.perf_counter() - began)
    weight_bytes = sum(p.numel() * p.element_size() for p in model.parameters())
    print(f"{weight_bytes / 1e9:.2f} GB of weights")
    return 64 / (times[1] - times[0])


def seconds_to_bring(n_bytes: int, device: str) -> float:
    """From pinned host memory, best case: one large copy after another."""
    host = torch.empty(1 << 30, dtype=torch.uint8).pin_memory()
    there = torch.empty(1 << 30, dtype=torch.uint8, device=device)
    there.copy_(host)
    torch.cuda.synchronize()
    times = []
    for _ in range(5):
        began = time.perf_counter()
        there.copy_(host, non_blocking=True)
        torch.cuda.synchronize()
        times.append(time.perf_counter() - began)
    return statistics.median(times) * n_bytes / (1 << 30)


def seconds_to_read(n_bytes: int, device: str) -> float:
    """The floor: device memory, read once (a copy reads and writes)."""
    one = torch.empty(4 << 30, dtype=torch.uint8, device=device)
    two = torch.empty_like(one)
    times = []
    for _ in range(6):
        torch.cuda.synchronize()
        began = time.perf_counter()
        two.copy_(one)
        torch.cuda.synchronize()
        times.append(time.perf_counter() - began)
    return min(times) * n_bytes / (2 * (4 << 30))


# ---- the run -------------------------------------------------------------------------------------


def child(*arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "bench.gpu", *arguments],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip


def line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    found = process.stdout.readline()
    if not found:
        raise SystemExit("a child ended early")
    return found


def tell(nodes: list[subprocess.Popen[str]]) -> None:
    """Have the daemons say which turns they ran since the last time."""
    for node in nodes:
        assert node.stdin is not None
        node.stdin.write("turns\n")
        node.stdin.flush()


def rate_of(ports: list[int], count: int, seconds: float, blocks: int) -> float:
    """Tokens a second of so many streams in all, from several processes."""
    each = [len(range(n, count, 6)) for n in range(6)]
    children = [
        child("--role", "streams", "--ports", ",".join(map(str, ports)), "--count", str(n),
              "--seconds", str(seconds), "--blocks", str(blocks))
        for n in each if n
    ]  # fmt: skip
    for one in children:
        line(one)
    for one in children:
        assert one.stdin is not None
        one.stdin.write("go\n")
        one.stdin.flush()
    total = sum(int(line(one)) for one in children)
    for one in children:
        one.wait(60)
    return total / seconds


def spans_of(blocks: int) -> list[Span]:
    return [Span(0, blocks // 2), Span(blocks // 2, blocks)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=8.0)
    parser.add_argument("--devices", default="cuda:0")
    parser.add_argument("--blocks", type=int, default=32)
    parser.add_argument("--streams", default="1,8,32")
    parser.add_argument("--tokens", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--role", default="")
    parser.add_argument("--span", default="0:16")
    parser.add_argument("--ports", default="")
    parser.add_argument("--count", type=int, default=1)
    options = parser.parse_args()
    devices, spans = options.devices.split(","), spans_of(options.blocks)
    if options.role == "serve":
        start, _, end = options.span.partition(":")
        run(serve(options.blocks, Span(int(start), int(end)), devices[0], 65536))
        return
    if options.role == "streams":
        ports = [int(port) for port in options.ports.split(",")]
        run(streams(ports, spans, options.count, options.seconds))
        return
    n_bytes = 2 * sum(p.numel() for p in _on_meta(options.blocks).parameters())
    figures: dict[str, Any] = {"weights, GB": n_bytes / 1e9}
    figures["floor, tokens/s"] = 1 / seconds_to_read(n_bytes, devices[0])
    figures["offloading, tokens/s"] = 1 / seconds_to_bring(n_bytes, devices[0])
    figures["eager generate, tokens/s"] = eager(options.blocks, devices[0])
    torch.cuda.empty_cache()
    nodes = [
        child("--role", "serve", "--span", f"{span.start}:{span.end}", "--devices",
              devices[n % len(devices)], "--blocks", str(options.blocks))
        for n, span in enumerate(spans)
    ]  # fmt: skip
    try:
        servers = [json.loads(line(node)) for node in nodes]
        print(servers)
        figures["servers"] = servers
        ports = [server["port"] for server in servers]
        for node in nodes:
            assert node.stdin is not None
            node.stdin.write(json.dumps({one["peer"]: one["port"] for one in servers}) + "\n")
            node.stdin.flush()
        rounds: dict[str, list[float]] = {}
        for _ in range(options.rounds):
            times = run(one_stream(servers, spans, options.blocks, devices[0], options.tokens))
            torch.cuda.empty_cache()
            rounds.setdefault("one stream, tokens/s", []).append(1 / statistics.median(times))
            for count in map(int, options.streams.split(",")):
                tell(nodes)
                rate = rate_of(ports, count, options.seconds, options.blocks)
                tell(nodes)
                rounds.setdefault(f"{count} streams", []).append(rate)
            print({name: [round(v, 1) for v in values] for name, values in rounds.items()})
    finally:
        for node in nodes:
            assert node.stdin is not None
            node.stdin.close()
        for node in nodes:
            node.wait(60)
    figures["rounds"] = rounds
    medians = {name: statistics.median(values) for name, values in rounds.items()}
    one, bare = medians["one stream, tokens/s"], medians["1 streams"]
    rows = [
        ("floor by bandwidth, tokens/s", f"{figures['floor, tokens/s']:.1f}", "", ""),
        ("eager generate, tokens/s", f"{figures['eager generate, tokens/s']:.1f}", "", ""),
        ("one stream, tokens/s", f"{one:.1f}",
         f"{one / figures['eager generate, tokens/s']:.2f} of eager", "110"),
        ("one stream against offloading", f"{figures['offloading, tokens/s']:.2f}",
         f"{one / figures['offloading, tokens/s']:.1f} times", "25 times"),
        *(
            (f"{count} streams without head, tokens/s", f"{medians[f'{count} streams']:.1f}",
             f"{medians[f'{count} streams'] / bare:.2f} of one",
             GOALS.get(f"{count} streams", ""))
            for count in map(int, options.streams.split(","))
        ),
    ]  # fmt: skip
    device = torch.cuda.get_device_name(devices[0])
    show(f"{options.blocks} blocks of Llama-3-8B's shape, {device}, {options.devices}",
         ("what", "figure", "ratio", "goal"), rows)  # fmt: skip
    name = "gpu" if len(devices) == 1 else f"gpu_{len(devices)}"
    settings = {**vars(options), "device": device, "torch": torch.__version__}
    save(name, settings, figures)


def _on_meta(n_blocks: int) -> Any:
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config(n_blocks), dtype=torch.bfloat16)


if __name__ == "__main__":
    main()
