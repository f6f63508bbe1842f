"""What quantization and bfloat16 cost and gain on the default model: memory, speed, likelihood.

    python -m bench.quantize [--rounds 5] [--threads N]

All blocks in one process, each variant in turn in each round, so ratios hold on a noisy machine;
the baseline is float32 as it is served (laid out for one row). Resident memory is that of a process
of its own that holds all blocks. The log-likelihood is that of `TEXT` below, which no model has
seen, in nats a token, from one prefill.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time
from collections import defaultdict
from typing import Any

from swarmd.cli.runtime import prepare_libraries

prepare_libraries()  # as `swarmd serve` does, before torch is imported

import psutil
import torch

from bench.report import save, show
from swarmd.blocks import Span
from swarmd.client.text import TextCodec
from swarmd.compute.block_span import BlockSpan
from swarmd.compute.ends import ModelEnds
from swarmd.compute.model_folder import ModelFolder
from swarmd.compute.sole_session import SoleSession
from swarmd.compute.source import resolve_model
from swarmd.node.memory_probe import release_unused_memory, use_one_arena
from swarmd.peers import Arithmetic

VARIANTS = (
    Arithmetic("float32"),
    Arithmetic("bfloat16"),
    Arithmetic("float32", "int8"),
    Arithmetic("float32", "int4"),
)
CONTEXT, STEPS, CHUNK = 64, 24, 256
TEXT = """The harbour office opened at six, long before the ferry, because the man who kept the
tide book could not sleep. He wrote the height of the water in ink and the weather in pencil, since
the weather, he said, was only an opinion. That morning the pencil line read: fog, thin, from the
north-east, gulls quiet. By the time the first passengers came down the hill with their baskets the
fog had thickened, and the lamp at the end of the pier was a pale coin that seemed to hang in the
air without a post.

Nobody worried. The ferry had a bell, and the captain knew the channel as a baker knows the way
from the oven to the counter. But the bell did not ring at seven, and it did not ring at half
past. A woman who sold eggs on the other shore asked whether anyone had looked at the book. The
keeper turned the pages back and found what he had feared: the water had stood a hand lower than
it should for three days in a row, and the sandbank off the old mill must have grown. A boat that
drew as much as the ferry would have to wait for the flood.

So they rowed. Two fishermen took the school teacher, the eggs and a length of rope, and went out
slowly, calling every minute and listening for the answer. When they heard it, it was not a bell but
a song, badly out of tune: the captain had set his crew to singing so that nobody would be afraid.
"""


def all_blocks(folder: ModelFolder, variant: Arithmetic) -> BlockSpan:
    whole = Span(0, folder.n_blocks)
    return BlockSpan(folder, whole, dtype=variant.dtype, quantization=variant.quantization)


def weight_bytes(blocks: BlockSpan) -> int:
    tensors = (*blocks._model.parameters(), *blocks._model.buffers())
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


@torch.inference_mode()
def speeds(blocks: BlockSpan) -> dict[str, float]:
    """Tokens a second through all blocks: single ones, eight rows at a time, and a chunk."""
    length = CONTEXT + STEPS + 3 * 8 + CHUNK
    session = SoleSession(blocks, length)
    hidden = torch.randn(1, length, blocks.hidden_size, generator=torch.Generator().manual_seed(0))

    def seconds(tokens: int, start: int | None = None) -> float:
        began = time.perf_counter()
        session.step(hidden[:, :tokens], start)
        return time.perf_counter() - began

    seconds(CONTEXT)
    decode = statistics.median(seconds(1) for _ in range(STEPS))
    eight = min(seconds(8) for _ in range(3))
    prefill = seconds(CHUNK, CONTEXT)
    return {"decode": 1 / decode, "eight_rows": 8 / eight, "prefill": CHUNK / prefill}


@torch.inference_mode()
def log_likelihood(
    folder: ModelFolder, blocks: BlockSpan, ids: list[int]
) -> tuple[float, torch.Tensor]:
    """Nats a token of `ids` after the first one, and the likeliest token at each position."""
    ends = ModelEnds(folder, dtype=blocks.dtype)
    hidden = SoleSession(blocks, len(ids)).step(ends.embed(torch.tensor([ids]), 0))
    scores = ends.logits(hidden)
    chosen = scores[:-1].log_softmax(-1).gather(1, torch.tensor(ids[1:]).unsqueeze(1))
    return float(chosen.mean()), scores.argmax(-1)


def resident(folder: ModelFolder, variant: Arithmetic) -> None:
    """Print the bytes that are resident before and after all blocks are loaded."""
    use_one_arena()
    torch.nn.Linear(8, 8)(torch.ones(1, 8))
    before = psutil.Process().memory_info().rss
    blocks = all_blocks(folder, variant)
    speeds(blocks)
    release_unused_memory()
    print(before, psutil.Process().memory_info().rss)


def resident_mb(variant: Arithmetic, threads: int) -> float:
    """Resident megabytes of a process that holds all blocks."""
    done = subprocess.run(
        [
            *(sys.executable, "-m", "bench.quantize", "--threads", str(threads)),
            *("--resident", variant.dtype, variant.quantization),
        ],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    return int(done.stdout.split()[1]) / 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--resident", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    folder = resolve_model(None)
    if options.resident:
        resident(folder, Arithmetic(*options.resident))
        return
    ids = TextCodec(folder.path, eos_token_ids=[]).encode(TEXT)
    spans = {variant: all_blocks(folder, variant) for variant in VARIANTS}
    rates: dict[Arithmetic, dict[str, list[float]]] = {v: defaultdict(list) for v in VARIANTS}
    for _ in range(options.rounds):
        for variant, blocks in spans.items():
            for what, rate in speeds(blocks).items():
                rates[variant][what].append(rate)
    figures: dict[str, Any] = {}
    base = VARIANTS[0]
    exact, likeliest = log_likelihood(folder, spans[base], ids)
    rows = []
    for variant, blocks in spans.items():
        nats, tops = log_likelihood(folder, blocks, ids)
        found: dict[str, Any] = {
            "weight_mb": weight_bytes(blocks) / 1e6,
            "resident_mb": resident_mb(variant, options.threads),
            "log_likelihood": nats,
            "change": nats - exact,
            "same_likeliest_token": float((tops == likeliest).float().mean()),
        }
        for what, measured in rates[variant].items():
            pairs = zip(measured, rates[base][what], strict=True)
            found[what] = {
                "tokens_per_second": statistics.median(measured),
                "ratio": statistics.median(rate / of_base for rate, of_base in pairs),
                "rounds": measured,
            }
        figures[str(variant)] = found
        rows.append(
            (
                str(variant),
                f"{found['weight_mb']:.0f}",
                f"{found['resident_mb']:.0f}",
                *(
                    f"{found[what]['tokens_per_second']:.1f} ({found[what]['ratio']:.2f})"
                    for what in ("decode", "eight_rows", "prefill")
                ),
                f"{nats:.4f} ({found['change']:+.4f})",
                f"{found['same_likeliest_token']:.1%}",
            )
        )
    show(
        f"all blocks of SmolLM2-135M, {options.threads} threads, medians of {options.rounds} "
        "rounds; ratios to float32 in brackets",
        ("weights", "MB", "resident MB", "decode tok/s", "8 rows tok/s", f"prefill {CHUNK} tok/s",
         "nats a token", "same choice"),
        rows,
    )  # fmt: skip
    settings = {
        "rounds": options.rounds, "threads": options.threads, "context": CONTEXT, "steps": STEPS,
        "chunk": CHUNK, "text_tokens": len(ids),
    }  # fmt: skip
    save("quantize", settings, figures)


if __name__ == "__main__":
    main()
