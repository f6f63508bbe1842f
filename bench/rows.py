"""Which layout and kernel multiply one row fastest, for each shape of the default model's weights.

    python -m bench.rows [--rounds 5]

All four are tried in turn in each round; the baseline is the checkpoint's layout with torch. The
last lines are whole decode steps over all blocks, without and with the choice.
"""

from __future__ import annotations

import argparse
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


def step_ms(blocks: BlockSpan) -> float:
    """Median milliseconds of a decode step over all blocks."""
    session, times = SoleSession(blocks, STEPS), []
    for _ in range(STEPS):
        began = time.perf_counter()
        session.step(torch.ones(1, 1, blocks.hidden_size))
        times.append(time.perf_counter() - began)
    return 1e3 * statistics.median(times)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    folder = resolve_model(None)
    bandwidth = shapes(folder, rounds)
    whole = Span(0, folder.n_blocks)
    plain = BlockSpan(folder, whole, dtype="float32", faster_rows=False)
    fast = BlockSpan(folder, whole, dtype="float32")
    steps: dict[str, list[float]] = {"plain": [], "fast": []}
    for _ in range(rounds):
        steps["plain"].append(step_ms(plain))
        steps["fast"].append(step_ms(fast))
    kernels = list(next(iter(bandwidth.values())))
    show(
        f"one row times the default model's weights, fp32, GB/s, medians of {rounds} rounds",
        ("shape", *kernels, "best ratio"),
        [
            (shape, *(f"{of[k]:.1f}" for k in kernels), f"{max(of.values()) / of[kernels[0]]:.2f}")
            for shape, of in bandwidth.items()
        ],
    )
    median = {variant: statistics.median(times) for variant, times in steps.items()}
    ratio = median["plain"] / median["fast"]
    print(
        f"a decode step over all blocks: {median['plain']:.1f} ms as loaded, "
        f"{median['fast']:.1f} ms as chosen, {ratio:.2f} times as fast"
    )
    figures: dict[str, Any] = {
        "gigabytes_per_second": bandwidth,
        "step_ms": steps,
        "step_ratio": ratio,
    }
    save("rows", {"rounds": rounds, "steps": STEPS, "dtype": "float32"}, figures)


if __name__ == "__main__":
    main()
