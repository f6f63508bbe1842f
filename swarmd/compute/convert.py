"""Turn a GGUF file, or a model folder, into a folder with one shard a block.

A peer that serves eight blocks then reads eight files, and a hub copy of the folder costs it only
those. The work happens in a sibling folder that is renamed at the end, under a file lock, so a
target exists whole or not at all.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import importlib
import json
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from swarmd.blocks import Span
from swarmd.compute.gguf_tokenizer import write_tokenizer
from swarmd.compute.hub import SMALL_FILES
from swarmd.compute.manifest import StageProgress, read_json_object, write_json
from swarmd.compute.model_folder import (
    DTYPE_BITS,
    INDEX_NAME,
    ModelFolder,
    TensorInfo,
    open_folder,
    safe_name,
)
from swarmd.errors import ModelError, StateError, UnsupportedModel, UsageError

__all__ = ["CLIENT_SHARD", "ORIGIN_NAME", "convert_folder", "convert_gguf"]

CLIENT_SHARD = "client.safetensors"
ORIGIN_NAME = "conversion.json"
"""In a converted folder: what it was made from, so that the same work is not done twice."""
FORMAT = 1
"""Raised when the conversion writes something else than before."""
COPY_BYTES = 8 << 20
DTYPES = ("float32", "bfloat16", "float16")
LOCK_POLL_S = 0.5
"""How often `progress` is called while another process converts the same model."""


def convert_gguf(
    gguf_path: str | Path,
    out_dir: str | Path,
    dtype: str = "float32",
    progress: StageProgress | None = None,
) -> ModelFolder:
    """Dequantize a GGUF file into the folder `out_dir`, or reuse the folder made from it before.

    Takes memory for the whole model in `dtype` and, for a while, twice the disk of the result.
    Stages of `progress`: `wait` (for another process), `read`, `dequantize` (in tensors), `write`
    and `hash` (in bytes). Raises ModelError, UnsupportedModel, and UsageError where `out_dir` holds
    something else.
    """
    path, out = Path(gguf_path).expanduser(), Path(out_dir).expanduser()
    if dtype not in DTYPES:
        raise UsageError(f"dtype {dtype!r}: choose one of {', '.join(DTYPES)}")
    try:
        stat = path.stat()
    except OSError as exc:
        raise ModelError(f"cannot read {path}: {exc.strerror or exc}") from exc
    origin = {
        "format": FORMAT, "gguf": path.name, "size": stat.st_size, "mtime_ns": stat.st_mtime_ns,
        "dtype": dtype,
    }  # fmt: skip

    def make(folder: Path) -> None:
        _report(progress, "read", 0, 1)
        with tempfile.TemporaryDirectory(prefix=".whole-", dir=folder) as whole:
            with _library_at_work(progress):
                write_tokenizer(path, folder)
                _report(progress, "read", 1, 1)
                _save_whole(path, Path(whole), dtype)
            hashes = dict.fromkeys((file.name for file in Path(whole).glob("*.safetensors")), "")
            _reshard(open_folder(whole, hashes=hashes), folder, progress)

    return _build(out, origin, make, progress)


def convert_folder(
    src: str | Path, out: str | Path, progress: StageProgress | None = None
) -> ModelFolder:
    """Re-shard a model folder by blocks, byte for byte and without torch; see `convert_gguf`.

    The result has another fingerprint than `src`: the fingerprint covers the files. Blocks beyond
    the config's number (prediction layers) are left out.
    """
    source = open_folder(src, progress=lambda done, total: _report(progress, "hash", done, total))
    target = Path(out).expanduser()
    if target.resolve() == source.path.resolve():
        raise UsageError(f"{target} is the source itself; choose another folder")
    origin = {"format": FORMAT, "model_id": source.model_id.hex()}
    return _build(target, origin, lambda folder: _reshard(source, folder, progress), progress)


def _build(
    out: Path,
    origin: dict[str, Any],
    make: Callable[[Path], None],
    progress: StageProgress | None,
) -> ModelFolder:
    """Let `make` fill a sibling of `out` and rename it; one process at a time, others reuse it."""
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with _locked(out.parent / f".{out.name}.lock", progress):
            if (done := _reusable(out, origin)) is not None:
                return done
            _make_renamed(out, origin, make, progress)
        return open_folder(out)
    except OSError as exc:
        raise StateError(
            f"cannot write {out}: {exc.strerror or exc}; free space or choose another folder"
        ) from exc


@contextlib.contextmanager
def _locked(path: Path, progress: StageProgress | None) -> Iterator[None]:
    """Hold the file lock; the system frees it when its holder dies, so it is waited for."""
    from filelock import FileLock, Timeout

    lock = FileLock(path)
    try:
        try:
            lock.acquire(timeout=0)
        except Timeout:
            _report(progress, "wait", 0, 1)
            while not lock.is_locked:
                with contextlib.suppress(Timeout):
                    lock.acquire(timeout=LOCK_POLL_S)
                _report(progress, "wait", int(lock.is_locked), 1)  # may raise to end the wait
        yield
    finally:
        lock.release()


def _reusable(out: Path, origin: dict[str, Any]) -> ModelFolder | None:
    """The finished conversion in `out`, None if there is none (a damaged one is removed)."""
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return None
    try:
        same = read_json_object(out / ORIGIN_NAME) == origin
    except ModelError:
        same = False
    if not same:
        raise UsageError(f"{out} holds something else; remove it or choose another folder")
    try:
        return open_folder(out)
    except ModelError:
        shutil.rmtree(out)
        return None


def _make_renamed(
    out: Path,
    origin: dict[str, Any],
    make: Callable[[Path], None],
    progress: StageProgress | None,
) -> None:
    prefix = f".{out.name}.partial-"
    for stale in out.parent.glob(f"{prefix}*"):  # of a process that was killed: we hold the lock
        shutil.rmtree(stale, ignore_errors=True)
    folder = Path(tempfile.mkdtemp(prefix=prefix, dir=out.parent))
    try:
        make(folder)
        write_json(folder / ORIGIN_NAME, origin)
        open_folder(folder, progress=lambda done, total: _report(progress, "hash", done, total))
        folder.chmod(0o755)
        if out.exists():
            out.rmdir()
        folder.rename(out)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise


def _save_whole(path: Path, whole: Path, dtype: str) -> None:
    """Load the GGUF by transformers and save it by transformers: its names, its tied weights."""
    import torch
    from transformers import AutoModelForCausalLM

    try:
        model = AutoModelForCausalLM.from_pretrained(
            str(path.parent), gguf_file=path.name, dtype=getattr(torch, dtype)
        )
    except (ValueError, NotImplementedError) as exc:
        raise UnsupportedModel(f"transformers cannot load {path.name}: {exc}") from exc
    except (KeyError, IndexError, RuntimeError, OSError) as exc:
        raise ModelError(f"{path} is damaged or truncated ({exc}); fetch it again") from exc
    model.config.__dict__.pop("quantization_config", None)  # the weights are dequantized
    model.__dict__.pop("hf_quantizer", None)
    model.save_pretrained(str(whole), max_shard_size="4GB")
    config = read_json_object(whole / "config.json")
    config = {key: value for key, value in config.items() if not key.startswith("_")}
    write_json(whole / "config.json", {**config, "_name_or_path": safe_name(path.stem)})


@contextlib.contextmanager
def _library_at_work(progress: StageProgress | None) -> Iterator[None]:
    """Hear of transformers' dequantizing loop, which only knows tqdm, and halve its time.

    It parses the whole file anew for tokenizer, config and weights (3 s each for SmolLM2), and
    builds its table of names once a submodule (397 times, 4 s): both are kept for the while.
    """
    gguf = importlib.import_module("gguf")
    loader = importlib.import_module("transformers.modeling_gguf_pytorch_utils")
    library = importlib.import_module("transformers.utils.logging")

    def counted(tensors: Iterable[Any], **_: object) -> Iterator[Any]:
        tensors = list(tensors)
        for done, tensor in enumerate(tensors):
            _report(progress, "dequantize", done, len(tensors))
            yield tensor
        _report(progress, "dequantize", len(tensors), len(tensors))

    bars = library.is_progress_bar_enabled()
    library.disable_progress_bar()
    try:
        with (
            _replaced(loader, "tqdm", lambda _: counted),
            _replaced(gguf, "GGUFReader", functools.cache),
            _replaced(gguf, "get_tensor_name_map", functools.cache),
        ):
            yield
    finally:
        if bars:
            library.enable_progress_bar()


@contextlib.contextmanager
def _replaced(module: Any, name: str, wrap: Callable[[Any], Any]) -> Iterator[None]:
    """Replace a function of a library for the while; one that it lacks is left out."""
    original = getattr(module, name, None)
    if original is None:
        yield
        return
    setattr(module, name, wrap(original))
    try:
        yield
    finally:
        setattr(module, name, original)


@dataclass(frozen=True, slots=True)
class _Piece:
    """A tensor and where its bytes stand: `start` counts from the beginning of `file`."""

    name: str
    info: TensorInfo
    file: Path
    start: int


def _reshard(source: ModelFolder, out: Path, progress: StageProgress | None) -> None:
    """Write `source`'s tensors as one shard a block and one for the rest, and the small files."""
    shards = {
        f"block-{block:05d}.safetensors": _pieces(
            source, source.block_tensors(Span(block, block + 1))
        )
        for block in range(source.n_blocks)
    }
    shards[CLIENT_SHARD] = _untied(source, _pieces(source, source.client_tensors()))
    total = sum(piece.info.n_bytes for pieces in shards.values() for piece in pieces)
    done = 0
    for name, pieces in shards.items():
        _write_shard(out / name, pieces)
        done += sum(piece.info.n_bytes for piece in pieces)
        _report(progress, "write", done, total)
    weight_map = {piece.name: name for name, pieces in shards.items() for piece in pieces}
    write_json(out / INDEX_NAME, {"metadata": {"total_size": total}, "weight_map": weight_map})
    for small in SMALL_FILES:
        if (source.path / small).exists():
            shutil.copyfile(source.path / small, out / small)
    write_json(out / "config.json", {**source.config, "_name_or_path": source.name})


def _pieces(source: ModelFolder, tensors: Mapping[str, str]) -> list[_Piece]:
    """The tensors in the order of the format: larger elements first, which keeps all aligned."""
    starts = {file: _data_start(source.path / file) for file in set(tensors.values())}
    pieces = [
        _Piece(name, info, source.path / file, starts[file] + info.offsets[0])
        for name, file in tensors.items()
        for info in (source.tensors[name],)
    ]
    return sorted(pieces, key=lambda p: (-DTYPE_BITS.get(p.info.dtype, 0), p.name))


def _data_start(path: Path) -> int:
    with path.open("rb") as file:
        return 8 + int.from_bytes(file.read(8), "little")


def _untied(source: ModelFolder, pieces: list[_Piece]) -> list[_Piece]:
    """Without a head that the config ties to the embeddings and that holds the same bytes."""
    if source.config.get("tie_word_embeddings") is not True:
        return pieces
    heads = [piece for piece in pieces if piece.name.endswith("lm_head.weight")]
    same = {
        head.name
        for head in heads
        for piece in pieces
        if piece.name != head.name
        and (piece.info.dtype, piece.info.shape) == (head.info.dtype, head.info.shape)
        and _digest(piece) == _digest(head)
    }
    return [piece for piece in pieces if piece.name not in same]


def _digest(piece: _Piece) -> bytes:
    digest = hashlib.sha256()
    with piece.file.open("rb") as file:
        for chunk in _chunks(file, piece):
            digest.update(chunk)
    return digest.digest()


def _chunks(file: BinaryIO, piece: _Piece) -> Iterator[bytes]:
    file.seek(piece.start)
    left = piece.info.n_bytes
    while left:
        chunk = file.read(min(COPY_BYTES, left))
        if not chunk:
            raise ModelError(f"{piece.file} ends within {piece.name}; fetch the file again")
        left -= len(chunk)
        yield chunk


def _write_shard(path: Path, pieces: list[_Piece]) -> None:
    """A safetensors file with the bytes of `pieces`, copied from where they stand."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for piece in pieces:
        begin, end = end, end + piece.info.n_bytes
        info = piece.info
        header[piece.name] = {
            "dtype": info.dtype, "shape": list(info.shape), "data_offsets": [begin, end],
        }  # fmt: skip
    raw = json.dumps(header, separators=(",", ":")).encode()
    raw += b" " * (-len(raw) % 8)  # the data starts at a multiple of 8 bytes
    with path.open("wb") as target, contextlib.ExitStack() as stack:
        target.write(len(raw).to_bytes(8, "little") + raw)
        sources: dict[Path, BinaryIO] = {}
        for piece in pieces:
            if piece.file not in sources:
                sources[piece.file] = stack.enter_context(piece.file.open("rb"))
            for chunk in _chunks(sources[piece.file], piece):
                target.write(chunk)


def _report(progress: StageProgress | None, stage: str, done: int, total: int) -> None:
    if progress:
        progress(stage, done, total)
