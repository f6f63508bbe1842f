"""`swarmd convert`."""

from __future__ import annotations

from pathlib import Path

import click

from swarmd.cli.runtime import ProgressBars, prepare_libraries, set_up_logging

__all__ = ["command"]


@click.command("convert")
@click.argument("source", type=click.Path(path_type=Path))
@click.argument("target", type=click.Path(path_type=Path))
@click.option(
    "--dtype",
    type=click.Choice(["float32", "bfloat16", "float16"]),
    default="float32",
    show_default=True,
    help="What a GGUF file's weights are turned into.",
)
def command(source: Path, target: Path, dtype: str) -> None:
    """Turn SOURCE (a .gguf file, or a model folder) into the folder TARGET with one file a block.

    Such a folder lets every node read, copy or fetch only the blocks that it serves.

    \b
    Examples:
      swarmd convert model.gguf ./model
      swarmd convert model.gguf ./model --dtype bfloat16
      swarmd convert ./llama ./llama-in-blocks
    """
    set_up_logging("text", verbose=False)
    prepare_libraries()
    from swarmd.compute.convert import convert_folder, convert_gguf

    with ProgressBars() as bars:
        if source.suffix.lower() == ".gguf":
            folder = convert_gguf(source, target, dtype, bars.update)
        else:
            folder = convert_folder(source, target, bars.update)
    click.echo(f"{folder.path}: {folder.name}, {folder.n_blocks} blocks, id {folder.model_id}")
