"""Loading a span with quantized weights: a part at a time, so that memory never holds the whole
span in the dtype."""

from __future__ import annotations

from collections.abc import Iterator

from transformers import PreTrainedModel

from swarmd.blocks import Span
from swarmd.compute.block_sizes import block_bytes
from swarmd.compute.cut_model import joined, parse_config
from swarmd.compute.quantize import quantize_layers
from swarmd.compute.weights import BlockProgress, WeightFolder, load_part

__all__ = ["load_quantized", "loading_bytes"]

PART_BYTES = 128 << 20
"""Weights in the dtype that are in memory at a time, or one block where that is larger."""


def load_quantized(
    folder: WeightFolder,
    span: Span,
    *,
    dtype: str,
    quantization: str,
    device: str = "cpu",
    progress: BlockProgress | None = None,
) -> PreTrainedModel:
    """As :func:`load_part`, with the linear layers of the blocks quantized (`int8`, `int4`)."""
    step = max(1, PART_BYTES // block_bytes(folder.config, dtype))

    def parts() -> Iterator[PreTrainedModel]:
        for start in range(span.start, span.end, step):
            part = Span(start, min(start + step, span.end))

            def report(done: int, _: int, before: int = start - span.start) -> None:
                if progress is not None:
                    progress(before + done, len(span))

            model = load_part(folder, part, dtype=dtype, device=device, progress=report)
            quantize_layers(model, quantization)
            yield model

    return joined(parts(), parse_config(folder.config), span)


def loading_bytes(folder: WeightFolder, dtype: str) -> int:
    """Bytes that :func:`load_quantized` needs beside the quantized weights while it loads: a part
    in the dtype, and its largest layer in float32 twice over; a block is more than that."""
    block = block_bytes(folder.config, dtype)
    return max(PART_BYTES, block) + 2 * block
