"""What the codecs save on real activations, how fast they are, and what int8 changes.

The activations are those that a chain of two sends between its hops: SmolLM2 after block 15, on a
text of 512 tokens. The baseline of zstandard over byte planes, in the same run, is zstandard over
the bytes as they lie. The figures are the constants of `swarmd/wire/tensors.py`.

What int8 changes is shown on a fixed text, as in `bench/quantize.py`: three hops, with each tensor
to and from each of them rounded, against the same hops and none.

    python -m bench.codec [--rounds 7]
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path

import torch
import zstandard

from bench.quantize import TEXT
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


def rounded(hidden: torch.Tensor) -> torch.Tensor:
    """Hidden states as they are after a transfer in int8."""
    name = str(hidden.dtype).removeprefix("torch.")
    meta = TensorMeta(name, tuple(hidden.shape), "int8")
    payload = encode(hidden.contiguous().view(torch.uint8).numpy().tobytes(), meta)
    raw = decode(bytearray(payload), meta, max_bytes=meta.n_bytes)
    return torch.frombuffer(raw, dtype=hidden.dtype).reshape(hidden.shape)


def int8(hidden: torch.Tensor, rounds: int) -> dict[str, float]:
    """Share saved, seconds a byte for both ends (median), and errors: of all values together, and
    the largest one, as shares of the values' norm and of the largest value."""
    name = str(hidden.dtype).removeprefix("torch.")
    meta = TensorMeta(name, tuple(hidden.shape), "int8")
    data = hidden.view(torch.uint8).numpy().tobytes()
    times = []
    for _ in range(rounds):
        began = time.perf_counter()
        after = rounded(hidden)
        times.append(time.perf_counter() - began)
    error = (after.double() - hidden.double()).abs()
    return {
        "saved": 1 - len(encode(data, meta)) / len(data),
        "seconds_per_byte": statistics.median(times) / len(data),
        "error": float(error.norm() / hidden.double().norm()),
        "largest_error": float(error.max() / hidden.double().abs().max()),
    }


def likelihoods() -> dict[str, float]:
    """Of a text in three hops, with and without int8: nats a token, and how often the likeliest
    next token is the same."""
    folder = resolve_model(None)
    ids = torch.tensor([TextCodec(folder.path, eos_token_ids=()).encode(TEXT)])
    ends = ModelEnds(folder, dtype="float32")
    hops = [BlockSpan(folder, Span(n, n + 10), dtype="float32") for n in (0, 10, 20)]
    likeliest, nats = [], []
    for through in (lambda hidden: hidden, rounded):
        hidden = ends.embed(ids, 0)
        for hop in hops:
            hidden = through(SoleSession(hop, ids.shape[1]).step(through(hidden)))
        scores = ends.logits(hidden).float().log_softmax(-1).reshape(ids.shape[1], -1)
        nats.append(float(-scores[:-1].gather(1, ids[0, 1:, None]).mean()))
        likeliest.append(scores.argmax(-1))
    same = (likeliest[0] == likeliest[1]).float().mean()
    return {
        "tokens": ids.shape[1], "nats": nats[0], "nats_int8": nats[1], "same_token": float(same),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    hidden = activations()
    figures: dict[str, dict[str, float]] = {}
    rows, rows8 = [], []
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
        of_int8 = int8(tensor, options.rounds)
        figures[f"{name}, int8"] = of_int8
        rows8.append((name, f"{100 * of_int8['saved']:.1f} %",
                      f"{1e-6 / of_int8['seconds_per_byte']:.0f} MB/s",
                      f"{100 * of_int8['error']:.2f} %",
                      f"{100 * of_int8['largest_error']:.2f} %"))  # fmt: skip
    show(
        f"zstd level {ZSTD_LEVEL} on activations of {TOKENS} tokens, both ends",
        ("dtype", "saved, planes", "saved, plain", "rate", "pays on links below"),
        rows,
    )
    show(
        f"int8 on activations of {TOKENS} tokens, both ends",
        ("dtype", "saved", "rate", "error", "largest error"),
        rows8,
    )
    figures["text"] = text = likelihoods()
    show(
        f"int8 on a text of {text['tokens']:.0f} tokens, three hops, float32",
        ("nats a token", "with int8", "same likeliest token"),
        [(f"{text['nats']:.4f}", f"{text['nats_int8']:.4f}", f"{100 * text['same_token']:.1f} %")],
    )
    save("codec", {"tokens": TOKENS, "rounds": options.rounds, "level": ZSTD_LEVEL}, figures)


if __name__ == "__main__":
    main()
