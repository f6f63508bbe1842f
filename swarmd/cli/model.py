"""`swarmd model`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click
from rich.filesize import decimal

from swarmd.blocks import BlockRequest
from swarmd.cli.options import blocks_value
from swarmd.cli.runtime import ProgressBars, prepare_libraries, set_up_logging, stderr
from swarmd.errors import SwarmdError, UsageError
from swarmd.printable import printable

__all__ = ["command"]


@click.group("model")
def command() -> None:
    """Show the models on this disk, or fetch one.

    \b
    Examples:
      swarmd model list
      swarmd model pull HuggingFaceTB/SmolLM2-135M-Instruct
    """


@command.command("list")
@click.argument("folders", nargs=-1, type=click.Path(path_type=Path), metavar="[FOLDER]…")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def list_models(folders: tuple[Path, ...], as_json: bool) -> int:
    """Show the models in swarmd's cache, and those in each FOLDER: id, blocks, size.

    Nothing is fetched. A file whose hash is not known yet is read once. The exit code is 1 if a
    model cannot be read.

    \b
    Examples:
      swarmd model list
      swarmd model list ./models --json
    """
    set_up_logging("text", verbose=False, quiet=True)
    prepare_libraries()
    from swarmd.compute.stored_models import stored_models

    found: list[Any] = []
    faults: list[SwarmdError] = []
    with ProgressBars() as bars:
        for one in stored_models(folders, bars.update):
            faults.append(one) if isinstance(one, SwarmdError) else found.append(one)
    if as_json:
        click.echo(json.dumps({"models": [_as_json(one) for one in found]}, indent=1))
    elif not found:
        click.echo("no model is on this disk; fetch one: swarmd model pull OWNER/NAME", err=True)
    else:
        for one in found:
            name = printable(one.folder.name, 64)
            click.echo(f"{name}: {_parts(one)}, {decimal(one.n_bytes)}, id {one.folder.model_id}")
            click.echo(f"  --model {one.spec}")
    for fault in faults:
        stderr.print(f"swarmd: {fault}", markup=False, soft_wrap=True)
    return 1 if faults else 0


@command.command("pull")
@click.argument("model")
@click.option(
    "--blocks",
    default=None,
    callback=lambda ctx, param, value: None if value is None else blocks_value(ctx, param, value),
    metavar="RANGE",
    help="Only these blocks, such as 10:20, as a node needs them.",
)
@click.option("--client", is_flag=True, help="What a client needs: all but the blocks.")
def pull(model: str, blocks: BlockRequest | None, client: bool) -> None:
    """Fetch MODEL (owner/name or owner/name@revision on the hub) into the cache; of a .gguf file
    or smollm2, make its folder there.

    Of a hub model all is fetched, or what --blocks and --client name, in whole files. Files that
    are here already are not fetched again, and what was broken off goes on.

    \b
    Examples:
      swarmd model pull HuggingFaceTB/SmolLM2-135M-Instruct
      swarmd model pull HuggingFaceTB/SmolLM2-135M-Instruct --blocks 10:20
      swarmd model pull HuggingFaceTB/SmolLM2-135M-Instruct --client
    """
    set_up_logging("text", verbose=False, quiet=True)
    prepare_libraries()
    if blocks is not None and blocks.span is None:
        raise UsageError("--blocks takes a range here, such as 10:20")
    from swarmd.blocks import Span
    from swarmd.compute.source import resolve_model
    from swarmd.compute.stored_models import describe

    with ProgressBars() as bars:
        folder = resolve_model(model, progress=bars.update)
        span = None if blocks is None else blocks.span
        if blocks is None and not client:
            span, client = Span(0, folder.n_blocks), True
        if span is not None:
            span = BlockRequest(span=span).checked(folder.n_blocks).span
        folder = resolve_model(model, span=span, client=client, progress=bars.update)
    found = describe(model, folder)
    click.echo(
        f"{folder.name}: {_parts(found)}, {decimal(found.n_bytes)}, id {folder.model_id}, "
        f"in {folder.path}"
    )


def _parts(one: Any) -> str:
    """What of a model is here: `all of 30 blocks`, or `blocks 10:20 of 30, client`."""
    if one.complete:
        return f"all of {one.folder.n_blocks} blocks"
    spans = ", ".join(map(str, one.blocks))
    parts = f"blocks {spans} of {one.folder.n_blocks}" if spans else "no blocks"
    return parts + (", client" if one.client else "")


def _as_json(one: Any) -> dict[str, Any]:
    return {
        "model": one.spec,
        "name": one.folder.name,
        "id": str(one.folder.model_id),
        "type": one.folder.model_type,
        "n_blocks": one.folder.n_blocks,
        "blocks": [[span.start, span.end] for span in one.blocks],
        "client": one.client,
        "complete": one.complete,
        "bytes": one.n_bytes,
        "path": str(one.folder.path),
    }
