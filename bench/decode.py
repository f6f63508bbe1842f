"""Decode speed: `transformers.generate` in one process, one daemon, two daemons; interleaved.

Everything is measured in one run, round by round, and compared as ratios of medians. The daemons
of both swarms run all the time and are idle while another variant has its turn. Also reported:
what a hop adds besides compute, resident memory, seconds to ready and to the first token, and the
floor: the rate at which the model's weights could be read from memory.

    python -m bench.decode [--rounds 5] [--tokens 64]
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import threading
import time
from typing import Any

import psutil

from bench.bandwidth import seconds_to_read
from bench.nodes import SWARMD, Swarm, swarm
from bench.report import save, show

WEIGHT_BYTES = 4 * 134_515_008
"""Of the default model in float32; the head is the embedding, and all of it is read."""
PROMPT = "The history of the steam engine begins in"


class LocalGenerate:
    """`transformers.generate` on the whole model in a process of its own (the baseline)."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "bench.local_generate"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def run(self, tokens: int) -> float:
        """Tokens a second after the first token, greedy."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps({"prompt": PROMPT, "tokens": tokens}) + "\n")
        self._process.stdin.flush()
        return float(json.loads(self._process.stdout.readline())["tokens_per_second"])

    def stop(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(30)


def generate(running: Swarm, tokens: int) -> dict[str, Any]:
    """One `swarmd generate --json`, with the client's greatest resident memory."""
    process = subprocess.Popen(
        [
            *SWARMD,
            "generate",
            PROMPT,
            "--max-new-tokens",
            str(tokens),
            "--speculate",
            "0",
            "--json",
        ],
        env=running.environment,
        stdout=subprocess.PIPE,
        text=True,
    )
    peak = 0.0

    def watch() -> None:
        nonlocal peak
        while process.poll() is None:
            try:
                peak = max(peak, psutil.Process(process.pid).memory_info().rss / 1e6)
            except psutil.NoSuchProcess:
                return
            time.sleep(0.05)

    watcher = threading.Thread(target=watch)
    watcher.start()
    out, _ = process.communicate()
    watcher.join()
    answer: dict[str, Any] = json.loads(out)
    answer["client_mb"] = peak
    return answer


def first_text_seconds(running: Swarm) -> float:
    """From the start of `swarmd generate` to the first text on its stdout."""
    began = time.monotonic()
    process = subprocess.Popen(
        [*SWARMD, "generate", PROMPT, "--max-new-tokens", "4"],
        env=running.environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    assert process.stdout is not None
    process.stdout.read(1)
    seconds = time.monotonic() - began
    process.communicate()
    return seconds


def hop_overhead_us(answer: dict[str, Any]) -> float:
    """Microseconds that a hop adds to a decode step besides its compute."""
    chain = answer["chain"]
    spent = chain["decode_seconds"] - chain["compute_seconds"]
    return 1e6 * float(spent) / chain["decode_steps"] / len(answer["route"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=64)
    options = parser.parse_args()
    rates: dict[str, list[float]] = {"generate": [], "one": [], "two": []}
    overheads: dict[str, list[float]] = {"one": [], "two": []}
    client_mb, first = 0.0, []
    local = LocalGenerate()
    with swarm("0:30") as one, swarm("0:15", "15:30") as two:
        local.run(8)
        floors = [seconds_to_read(WEIGHT_BYTES)]
        for _ in range(options.rounds):
            rates["generate"].append(local.run(options.tokens))
            for name, running in (("one", one), ("two", two)):
                answer = generate(running, options.tokens)
                rates[name].append(answer["tokens_per_second"])
                overheads[name].append(hop_overhead_us(answer))
                client_mb = max(client_mb, answer["client_mb"])
            first.append(first_text_seconds(two))
            floors.append(seconds_to_read(WEIGHT_BYTES))
        daemons = {node.blocks: round(node.resident_mb, 1) for node in [*one.nodes, *two.nodes]}
        ready = {node.blocks: round(node.ready_seconds, 2) for node in [*one.nodes, *two.nodes]}
    local.stop()
    floor = 1 / min(floors)
    median = {name: statistics.median(values) for name, values in rates.items()}
    ratio = {name: median[name] / median["generate"] for name in ("one", "two")}
    show(
        f"decode, SmolLM2-135M fp32, {options.tokens} tokens, medians of {options.rounds} rounds",
        ("variant", "tokens/s", "ratio", "hop adds"),
        [
            ("floor by memory bandwidth", f"{floor:.2f}", f"{floor / median['generate']:.2f}", "-"),
            ("(a) transformers.generate, one process", f"{median['generate']:.2f}", "1.00", "-"),
            *(
                (
                    text,
                    f"{median[name]:.2f}",
                    f"{ratio[name]:.2f}",
                    f"{statistics.median(overheads[name]):.0f} µs",
                )
                for name, text in (("one", "(b) one daemon"), ("two", "(c) two daemons"))
            ),
        ],
    )
    print(f"resident MB by blocks: {daemons}; client at most {client_mb:.0f} MB")
    print(f"seconds to ready by blocks: {ready}; to the first text {statistics.median(first):.2f}")
    save(
        "decode",
        {"rounds": options.rounds, "tokens": options.tokens, "prompt": PROMPT, "link": "loopback"},
        {
            "tokens_per_second": rates,
            "ratio_to_generate": ratio,
            "floor_tokens_per_second": floor,
            "hop_overhead_us": overheads,
            "daemon_resident_mb": daemons,
            "client_peak_resident_mb": client_mb,
            "seconds_to_ready": ready,
            "seconds_to_first_text": first,
        },
    )


if __name__ == "__main__":
    main()
