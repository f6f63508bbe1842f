"""`swarmd bench`."""

from __future__ import annotations

import json
from typing import Any

import click
from rich.filesize import decimal

from swarmd.blocks import BlockRequest, Span
from swarmd.cli.options import blocks_value, log_options, model_option
from swarmd.cli.runtime import ProgressBars, prepare_libraries, set_up_logging, stdout
from swarmd.config import DaemonConfig
from swarmd.peers import QUANTIZATIONS
from swarmd.sizes import parse_size

__all__ = ["command"]

_defaults = DaemonConfig()


@click.command("bench")
@model_option
@click.option(
    "--blocks",
    default="4",
    show_default=True,
    callback=blocks_value,
    metavar="RANGE",
    help="Blocks to load and measure: a range such as 10:20, a count from block 0 on, or auto for "
    "all that fit.",
)
@click.option(
    "--memory",
    callback=lambda _ctx, _param, value: None if value is None else parse_size(value),
    metavar="SIZE",
    help="As with serve.",
)
@click.option(
    "--dtype",
    type=click.Choice(["auto", "float32", "bfloat16", "float16"]),
    default=_defaults.dtype,
    show_default=True,
    help="Precision to compute in; auto takes the faster one of float32 and bfloat16 here.",
)
@click.option(
    "--quantize",
    "quantization",
    type=click.Choice(QUANTIZATIONS),
    default=_defaults.quantization,
    show_default=True,
    help="As with serve.",
)
@click.option("--device", default=_defaults.device, show_default=True, help="cpu, cuda, cuda:1, …")
@click.option("--threads", type=click.IntRange(1, 1024), help="CPU threads. [default: all cores]")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@log_options
def command(
    model: str | None,
    blocks: BlockRequest,
    memory: int | None,
    dtype: str,
    quantization: str,
    device: str,
    threads: int | None,
    as_json: bool,
    verbose: bool,
    log_format: str,
) -> None:
    """Measure how fast this machine runs a model's blocks, and say what serve would announce.

    A short prompt and single tokens go through some blocks, as when a node starts. No swarm is
    asked. Other programs make the figures worse.

    \b
    Examples:
      swarmd bench
      swarmd bench --model ./llama --quantize int8
      swarmd bench --blocks 0:10 --dtype float32 --json
    """
    set_up_logging(log_format, verbose=verbose, quiet=True)
    prepare_libraries(threads)
    config = DaemonConfig(
        model=model, memory=memory, dtype=dtype, quantization=quantization, device=device,
        threads=threads,
    )  # fmt: skip
    from swarmd.compute.quantize import check_quantization
    from swarmd.node.device import check_device

    check_device(device)
    check_quantization(quantization, device)
    found = _measure(config, blocks)
    if as_json:
        click.echo(json.dumps(_as_json(found, config), indent=1))
    else:
        _show(found, config)


def _measure(config: DaemonConfig, request: BlockRequest) -> Any:
    from swarmd.compute.source import resolve_model
    from swarmd.node.dtype_choice import measured_dtype
    from swarmd.node.joining import block_count
    from swarmd.node.memory_probe import memory_plan
    from swarmd.node.speed import speed

    with ProgressBars() as bars:
        folder = resolve_model(config.model, progress=bars.update)
        dtype = config.dtype
        if dtype == "auto":
            dtype = measured_dtype(folder, config.quantization, config.device).dtype
        span = request.checked(folder.n_blocks).span if request.span is not None else None
        if span is None:
            wanted = request.count and min(request.count, folder.n_blocks)
            plan = memory_plan(config, folder, dtype)
            span = Span(0, block_count(BlockRequest(count=wanted), plan))
        folder = resolve_model(config.model, span=span, progress=bars.update)
    return speed(config, folder, span, dtype)


def _show(found: Any, config: DaemonConfig) -> None:
    rates, plan = found.throughput, found.plan
    weights = "" if config.quantization == "none" else f" {config.quantization}"
    lines = [
        f"{found.folder.name}, blocks {found.span} of {plan.n_blocks}, {found.dtype}{weights}",
        f"decode    {rates.decode_us} us for a token in a block",
        f"prefill   {rates.prefill_us} us for a token in a block",
        f"memory    {decimal(int(found.bandwidth))}/s read; "
        f"decoding reads {decimal(int(found.decode_bandwidth))}/s of weights",
    ]
    if plan.blocks:
        lines.append(
            f"serve     {plan.blocks} blocks fit: {found.decode_tokens_per_second:.1f} tokens/s "
            f"through them, {found.prefill_tokens_per_second:.0f} of a prompt"
        )
    else:
        lines.append("serve     not even one block fits: see swarmd doctor --model")
    for line in lines:
        stdout.print(line, markup=False, soft_wrap=True)


def _as_json(found: Any, config: DaemonConfig) -> dict[str, Any]:
    return {
        "model": found.folder.name,
        "id": str(found.folder.model_id),
        "blocks": [found.span.start, found.span.end],
        "dtype": found.dtype,
        "quantization": config.quantization,
        "decode_us": found.throughput.decode_us,
        "prefill_us": found.throughput.prefill_us,
        "memory_bytes_per_second": round(found.bandwidth),
        "decode_bytes_per_second": round(found.decode_bandwidth),
        "serve": {
            "blocks": found.plan.blocks,
            "tokens_per_second": round(found.decode_tokens_per_second, 2),
            "prefill_tokens_per_second": round(found.prefill_tokens_per_second, 2),
        },
    }
