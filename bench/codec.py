"""What zstandard over byte planes saves on real activations, and how fast it is.

The activations are those that a chain of two sends between its hops: SmolLM2 after block 15, on a
text of 512 tokens. The baseline in the same run is zstandard over the bytes as they lie. The
figures are the constants of `swarmd/wire/tensors.py`.

    python -m bench.codec [--rounds 7]
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path

import torch
import zstandard

from bench.report import save, show
from swarmd.blocks import Span
from swarmd.client.text import TextCodec
from swarmd.compute.block_span import BlockSpan
from swarmd.compute.ends import ModelEnds
from swarmd.compute.sole_session import SoleSession
from swarmd.compute.source import resolve_model
from swarmd.wire.tensors import ZSTD_LEVEL, TensorMeta, decode, encode

TOKENS = 512


def activations() -> torch.Tensor:
    """Hidden states `(1, TOKENS, hidden size)` after block 15 of the default model."""
    folder = resolve_model(None)
    text = TextCodec(folder.path, eos_token_ids=())
    ids = text.encode(Path(__file__).read_text() * 4)[:TOKENS]
    blocks = BlockSpan(folder, Span(0, 15), dtype="float32")
    embedded = ModelEnds(folder, dtype="float32").embed(torch.tensor([ids]), 0)
    return SoleSession(blocks, TOKENS).step(embedded)


def measure(data: bytes, meta: TensorMeta, rounds: int) -> tuple[float, float, float]:
    """Share saved, and seconds a byte to encode and decode (medians)."""
    both: list[float] = []
    payload = encode(data, meta)
    for _ in range(rounds):
        began = time.perf_counter()
        payload = encode(data, meta)
        raw = decode(bytearray(payload), meta, max_bytes=meta.n_bytes)
        both.append(time.perf_counter() - began)
        if raw != data:
            raise SystemExit("the codec is not lossless")
    plain = zstandard.ZstdCompressor(level=ZSTD_LEVEL).compress(data)
    return (
        1 - len(payload) / len(data),
        statistics.median(both) / len(data),
        1 - len(plain) / len(data),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    hidden = activations()
    figures, rows = {}, []
    for name, dtype in (("float32", torch.float32), ("bfloat16", torch.bfloat16)):
        tensor = hidden.to(dtype).contiguous()
        data = tensor.view(torch.uint8).numpy().tobytes()
        saved, seconds, plain = measure(
            data, TensorMeta(name, tuple(tensor.shape), "zstd"), options.rounds
        )
        pays_below = saved / seconds
        figures[name] = {
            "saved": saved,
            "seconds_per_byte": seconds,
            "saved_without_planes": plain,
            "pays_below_bytes_per_second": pays_below,
        }
        rows.append(
            (
                name,
                f"{100 * saved:.1f} %",
                f"{100 * plain:.1f} %",
                f"{1e-6 / seconds:.0f} MB/s",
                f"{8e-6 * pays_below:.0f} Mbit/s",
            )
        )
    show(
        f"zstd level {ZSTD_LEVEL} on activations of {TOKENS} tokens, both ends",
        ("dtype", "saved, planes", "saved, plain", "rate", "pays on links below"),
        rows,
    )
    save("codec", {"tokens": TOKENS, "rounds": options.rounds, "level": ZSTD_LEVEL}, figures)


if __name__ == "__main__":
    main()
