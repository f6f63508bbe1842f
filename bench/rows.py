"""Which layout and kernel multiply one row fastest, for each shape of the default model's weights.

    python -m bench.rows [--rounds 5] [--threads 2]

All four are tried in turn in each round; the baseline is the checkpoint's layout with torch. The
second table has whole steps of one row and of several over all blocks: as loaded, as chosen for one
row, and with the second layout for several.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import time
from typing import Any

from swarmd.cli.runtime import prepare_libraries

prepare_libraries()  # as `swarmd serve` does, before torch is imported

import torch

from bench.report import save, show
from swarmd.blocks import Span
from swarmd.compute.block_span import BlockSpan
from swarmd.compute.model_folder import ModelFolder
from swarmd.compute.row_linear import Kernel, kernel_seconds, linear_shapes
from swarmd.compute.sole_session import SoleSession
from swarmd.compute.source import resolve_model
from swarmd.compute.weights import load_part

STEPS = 24
ROWS = (1, 2, 4, 8, 16, 64, 256)
VARIANTS = ("plain", "fast", "packed")


def shapes(folder: ModelFolder, rounds: int) -> dict[str, dict[str, float]]:
    """GB/s by shape and kernel, medians over the rounds."""
    figures = {}
    for part, span in (("blocks", Span(0, folder.n_blocks)), ("head", None)):
        layers = linear_shapes(load_part(folder, span, dtype="float32", device="cpu"))
        for (outputs, inputs), of_shape in layers.items():
            seconds: dict[Kernel, list[float]] = {}
            for _ in range(rounds):
                for kernel, times in kernel_seconds(of_shape).items():
                    seconds.setdefault(kernel, []).extend(times)
            figures[f"{part} {outputs}x{inputs}"] = {
                name(kernel): 4e-9 * outputs * inputs / statistics.median(times)
                for kernel, times in seconds.items()
            }
    return figures


def name(kernel: Kernel) -> str:
    layout = "columns" if kernel.by_columns else "rows"
    return f"{'numpy' if kernel.by_numpy else 'torch'}, {layout}"


def step_ms(blocks: BlockSpan, rows: int) -> float:
    """Median milliseconds of a step of so many rows over all blocks, each from the beginning."""
    session, times = SoleSession(blocks, max(ROWS)), []
    for _ in range(max(2, STEPS // rows)):
        began = time.perf_counter()
        session.step(torch.ones(1, rows, blocks.hidden_size), 0)
        times.append(time.perf_counter() - began)
    return 1e3 * statistics.median(times)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int)
    options = parser.parse_args()
    rounds = options.rounds
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    folder = resolve_model(None)
    bandwidth = shapes(folder, rounds)
    whole = Span(0, folder.n_blocks)
    plain = BlockSpan(folder, whole, dtype="float32", faster_rows=False)
    fast, packed = (BlockSpan(folder, whole, dtype="float32") for _ in range(2))
    packed.use_room(1 << 40)
    variants = dict(zip(VARIANTS, (plain, fast, packed), strict=True))
    steps: dict[str, dict[int, list[float]]] = {name: {n: [] for n in ROWS} for name in VARIANTS}
    for _ in range(rounds):
        for n, (name_of, blocks) in itertools.product(ROWS, variants.items()):
            steps[name_of][n].append(step_ms(blocks, n))
    kernels = list(next(iter(bandwidth.values())))
    show(
        f"one row times the default model's weights, fp32, GB/s, medians of {rounds} rounds",
        ("shape", *kernels, "best ratio"),
        [
            (shape, *(f"{of[k]:.1f}" for k in kernels), f"{max(of.values()) / of[kernels[0]]:.2f}")
            for shape, of in bandwidth.items()
        ],
    )
    median = {
        variant: {n: statistics.median(times) for n, times in of.items()}
        for variant, of in steps.items()
    }
    show(
        f"a step over all blocks, ms, {torch.get_num_threads()} threads, medians of {rounds}; the "
        f"second layout takes {packed.packed_bytes / 1e6:.0f} MB",
        ("rows", "as loaded", "chosen for one row", "and a second layout", "ratio to before it"),
        [
            (str(n), *(f"{median[variant][n]:.1f}" for variant in VARIANTS),
             f"{median['fast'][n] / median['packed'][n]:.2f}")
            for n in ROWS
        ],
    )  # fmt: skip
    figures: dict[str, Any] = {
        "gigabytes_per_second": bandwidth,
        "step_ms": steps,
        "step_ratio": median["plain"][1] / median["fast"][1],
        "packed_bytes": packed.packed_bytes,
    }
    settings = {"rounds": rounds, "threads": torch.get_num_threads(), "dtype": "float32"}
    save("rows", settings, figures)


if __name__ == "__main__":
    main()
