"""A model folder in the Hugging Face layout, read without torch: config, headers, fingerprint.

Only `config.json`, the index and the safetensors headers are read; weights are read once for their
hashes (see :mod:`swarmd.compute.manifest`) and never unpickled.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from swarmd.blocks import Span
from swarmd.compute.manifest import ByteProgress, file_hashes, fingerprint, read_json_object
from swarmd.errors import BlocksOutOfRange, ModelError
from swarmd.peers import ModelId

__all__ = [
    "INDEX_NAME",
    "SINGLE_NAME",
    "UNLIMITED_POSITIONS",
    "ModelFolder",
    "TensorInfo",
    "block_prefix",
    "open_folder",
    "read_header",
    "safe_name",
    "tensors_of_header",
]

SINGLE_NAME = "model.safetensors"
INDEX_NAME = "model.safetensors.index.json"
UNLIMITED_POSITIONS = 1 << 20
"""`max_positions` of a model whose config states none (ALiBi models such as bloom)."""
MAX_HEADER_BYTES = 100 << 20
"""The safetensors library's own limit; a larger one is garbage read as a length."""
NAME_BYTES = 64

DTYPE_BITS = {
    "BOOL": 8, "U8": 8, "I8": 8, "F8_E5M2": 8, "F8_E4M3": 8, "F8_E8M0": 8, "I16": 16, "U16": 16,
    "F16": 16, "BF16": 16, "I32": 32, "U32": 32, "F32": 32, "C64": 64, "F64": 64, "I64": 64,
    "U64": 64, "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6,
}  # fmt: skip
"""Bits of one element, by the names of the safetensors format."""

_BLOCK = re.compile(r"^((?:.*?\.)?(?:layers|h|blocks))\.(\d+)\.")
_OTHER_TOWER = re.compile(r"vision|visual|audio|image|speech|encoder|mtp", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """One entry of a safetensors header: `offsets` are bytes from the end of the header."""

    dtype: str
    shape: tuple[int, ...]
    offsets: tuple[int, int]

    @property
    def n_bytes(self) -> int:
        return self.offsets[1] - self.offsets[0]

    @property
    def n_parameters(self) -> int:
        return math.prod(self.shape)


@dataclass(frozen=True, slots=True)
class ModelFolder:
    """A model of `n_blocks` blocks in the folder `path`.

    `files` maps every weight file of the model to its SHA-256, also those that are not on this disk
    (a hub model of which only some shards were fetched). `weight_map` maps each tensor to its file,
    `tensors` each tensor whose file's header is known to its shape and size. `prefix` is what
    stands before the block number in tensor names, such as `model.layers`.
    """

    path: Path
    name: str
    config: dict[str, Any] = field(repr=False)
    n_blocks: int
    hidden_size: int
    model_type: str
    max_positions: int
    model_id: ModelId
    files: dict[str, str] = field(repr=False)
    weight_map: dict[str, str] = field(repr=False)
    tensors: dict[str, TensorInfo] = field(repr=False)
    prefix: str

    def block_tensors(self, span: Span) -> dict[str, str]:
        """The tensors of these blocks, by their checkpoint names, and the file of each.

        Raises BlocksOutOfRange.
        """
        if span.end > self.n_blocks:
            raise BlocksOutOfRange(f"blocks {span}: {self.name} has blocks 0:{self.n_blocks}")
        return {name: file for name, file in self.weight_map.items() if self.block_of(name) in span}

    def client_tensors(self) -> dict[str, str]:
        """All tensors outside the blocks: embeddings, final norm, head, and what else there is.

        Blocks beyond `n_blocks` (the extra prediction layer of DeepSeek-V3) belong to nobody.
        """
        return {name: file for name, file in self.weight_map.items() if self.block_of(name) is None}

    def block_of(self, tensor: str) -> int | None:
        """The block that a tensor belongs to, or None for the client's."""
        return _block_of(tensor, self.prefix)

    def files_for(self, tensors: Iterable[str]) -> set[str]:
        """The weight files that hold these tensors. KeyError for a tensor the model lacks."""
        return {self.weight_map[name] for name in tensors}

    def block_bytes(self, block: int) -> int:
        """Stored bytes of one block. Raises ModelError where its header is not known here."""
        return sum(info.n_bytes for info in self._infos(block))

    def block_parameters(self, block: int) -> int:
        """Parameters of one block. Raises ModelError where its header is not known here."""
        return sum(info.n_parameters for info in self._infos(block))

    def _infos(self, block: int) -> list[TensorInfo]:
        return [self._info(name) for name in self.block_tensors(Span(block, block + 1))]

    def _info(self, name: str) -> TensorInfo:
        try:
            return self.tensors[name]
        except KeyError:
            file = self.weight_map[name]
            raise ModelError(
                f"{self.path / file} is not on this disk, so the size of {name} is not known; "
                "resolve the model with the blocks that need it"
            ) from None


def open_folder(
    path: str | Path,
    *,
    require: Collection[str] | None = None,
    name: str | None = None,
    hashes: Mapping[str, str] | None = None,
    headers: Mapping[str, Mapping[str, TensorInfo]] | None = None,
    progress: ByteProgress | None = None,
) -> ModelFolder:
    """Open and check a model folder.

    `require` names the weight files that must be present (None: all of them); of any other that is
    absent, `hashes` must hold the SHA-256, and may `headers` hold the tensors. `hashes` wins over
    reading the file. `name` overrides the model's name. `progress` hears of bytes hashed. Raises
    ModelError, in one line that says what to do.
    """
    folder = Path(path).expanduser()
    if not folder.is_dir():
        kind = "is not a folder" if folder.exists() else "does not exist"
        raise ModelError(f"model folder {folder} {kind}; give one that holds config.json")
    if not (folder / "config.json").exists():
        raise ModelError(_no_config(folder))
    config = read_json_object(folder / "config.json")
    known = dict(headers or {})

    index = _read_index(folder, known)
    files = set(index.values()) if index is not None else {SINGLE_NAME}
    present = {file for file in files if (folder / file).exists()}
    needed = files if require is None else files & set(require)
    if missing := sorted(needed - present):
        raise ModelError(
            f"{folder}: {len(missing)} of {len(files)} weight files missing ({missing[0]}…); "
            "copy or download the folder again"
        )
    for file in present:
        known[file] = read_header(folder / file)
    weight_map = index if index is not None else dict.fromkeys(known[SINGLE_NAME], SINGLE_NAME)

    tensors: dict[str, TensorInfo] = {}
    for tensor, file in weight_map.items():
        if file in known:
            if tensor not in known[file]:
                raise ModelError(
                    f"{folder}: the index says that {file} holds {tensor}, but it does not; "
                    "index and weights are of different versions, fetch both again"
                )
            tensors[tensor] = known[file][tensor]

    n_blocks = _positive(folder, config, "num_hidden_layers", "n_layer", "num_layers", "n_layers")
    given = dict(hashes or {})
    to_hash = sorted(present - given.keys())
    if unknown := sorted(files - present - given.keys()):
        raise ModelError(f"{folder}: neither the file nor the hash of {unknown[0]} is here")
    sums = {**file_hashes(folder, to_hash, progress), **{f: given[f] for f in files & set(given)}}
    return ModelFolder(
        path=folder,
        name=safe_name(name or _config_name(config) or folder.resolve().name),
        config=config,
        n_blocks=n_blocks,
        hidden_size=_positive(folder, config, "hidden_size", "n_embd", "d_model", "n_embed"),
        model_type=str(config.get("model_type", "")),
        max_positions=_max_positions(config),
        model_id=fingerprint(config, sums),
        files=sums,
        weight_map=weight_map,
        tensors=tensors,
        prefix=_checked_prefix(folder, weight_map, n_blocks),
    )


def block_prefix(tensors: Iterable[str], n_blocks: int) -> tuple[str, list[int]]:
    """What stands before the block number in tensor names, and the blocks that have no tensor.

    Of several stacks (a vision tower has layers too) it is the one that covers most of the blocks
    0..n_blocks, then one not named like another tower, then the one with the most tensors. The
    prefix is empty when no name looks like a block's.
    """
    found: dict[str, dict[int, int]] = {}
    for tensor in tensors:
        if match := _BLOCK.match(tensor):
            counts = found.setdefault(match[1], {})
            counts[int(match[2])] = counts.get(int(match[2]), 0) + 1

    def rank(prefix: str) -> tuple[int, bool, int, str]:
        counts = found[prefix]
        covered = sum(1 for block in counts if block < n_blocks)
        return covered, not _OTHER_TOWER.search(prefix), sum(counts.values()), prefix

    prefix = max(found, key=rank, default="")
    return prefix, [block for block in range(n_blocks) if block not in found.get(prefix, {})]


def read_header(path: Path) -> dict[str, TensorInfo]:
    """The tensors of a safetensors file, from its header alone.

    Raises ModelError for a file that is unreadable, is not safetensors, or ends too early.
    """
    try:
        with path.open("rb") as file:
            size = path.stat().st_size
            length = int.from_bytes(file.read(8), "little")
            if size < 8 or length > min(MAX_HEADER_BYTES, size - 8):
                raise ModelError(f"{path} is truncated or not safetensors; fetch the file again")
            raw = file.read(length)
    except OSError as exc:
        why = exc.strerror or exc
        raise ModelError(f"cannot read {path}: {why}; check the file and its rights") from exc
    tensors = tensors_of_header(raw, path)
    end = 8 + length + max((info.offsets[1] for info in tensors.values()), default=0)
    if end > size:
        raise ModelError(
            f"{path} is truncated: its header says {end} bytes, it has {size}; fetch it again"
        )
    return tensors


def tensors_of_header(raw: bytes, path: Path | str) -> dict[str, TensorInfo]:
    """Decode and check the JSON of a safetensors header; `path` is for the ModelError's line."""
    tensors: dict[str, TensorInfo] = {}
    try:
        for name, entry in json.loads(raw).items():
            if name == "__metadata__":
                continue
            dtype, shape = entry["dtype"], tuple(entry["shape"])
            begin, end = entry["data_offsets"]
            if not all(isinstance(n, int) and n >= 0 for n in (*shape, begin, end)):
                raise ValueError(f"tensor {name} has a bad shape or offset")
            bits = math.prod(shape) * DTYPE_BITS.get(dtype, 0)
            if begin > end or (dtype in DTYPE_BITS and bits != 8 * (end - begin)):
                raise ValueError(f"tensor {name} has {end - begin} bytes for {dtype} {shape}")
            tensors[name] = TensorInfo(dtype, shape, (begin, end))
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as exc:
        why = f"{type(exc).__name__}: {exc}"
        raise ModelError(f"{path} has no valid safetensors header ({why}); fetch it again") from exc
    return tensors


def safe_name(text: str) -> str:
    """`text` cut down to letters, digits, `.`, `_` and `-`, at most 64 bytes; never empty."""
    slug = re.sub(r"[^A-Za-z0-9._-]+", "-", text).strip("-.")[:NAME_BYTES].strip("-.")
    return slug or "model"


def _block_of(tensor: str, prefix: str) -> int | None:
    if not prefix or not tensor.startswith(prefix + "."):
        return None
    number, dot, _ = tensor[len(prefix) + 1 :].partition(".")
    return int(number) if dot and number.isascii() and number.isdigit() else None


def _checked_prefix(folder: Path, weight_map: Mapping[str, str], n_blocks: int) -> str:
    prefix, missing = block_prefix(weight_map, n_blocks)
    if missing:
        shown = ", ".join(map(str, missing[:5])) + ("…" if len(missing) > 5 else "")
        raise ModelError(
            f"{folder}: config.json says {n_blocks} blocks, the weights lack {shown}; "
            "fetch index and config of the same version"
        )
    return prefix


def _read_index(folder: Path, known: Mapping[str, object]) -> dict[str, str] | None:
    """The index's weight map; None for a model in the single file (which transformers prefers)."""
    path = folder / INDEX_NAME
    if SINGLE_NAME in known or (folder / SINGLE_NAME).exists():
        return None
    if not path.exists():
        raise ModelError(_no_safetensors(folder))
    weight_map = read_json_object(path).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise ModelError(f"{path} has no weight_map; fetch the file again")
    for file in weight_map.values():
        if not isinstance(file, str) or not re.fullmatch(r"[\w][\w.-]*\.safetensors", file):
            raise ModelError(f"{path} names {file!r}, which is no safetensors file of the folder")
    return weight_map


def _no_config(folder: Path) -> str:
    if gguf := sorted(folder.glob("*.gguf")):
        return f"{folder} has no config.json; for a GGUF model give the file itself: {gguf[0]}"
    return f"{folder} has no config.json; give a model folder as transformers saves it"


def _no_safetensors(folder: Path) -> str:
    if any(folder.glob("*.bin")) or any(folder.glob("*.pt")) or any(folder.glob("*.pth")):
        return (
            f"{folder} has only pickled weights, which swarmd never unpickles because they can run "
            'code; if you trust them, convert once: python -c "from transformers import '
            f"AutoModelForCausalLM as M; M.from_pretrained('{folder}').save_pretrained('OUT')\""
        )
    if any(folder.glob("*.safetensors")):
        return f"{folder} has safetensors files but no {INDEX_NAME}; copy the index as well"
    return f"{folder} has no weights; it must hold {SINGLE_NAME} or {INDEX_NAME} and its files"


def _text_config(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The language model's part of a config that nests it (`text_config`, `llm_config`)."""
    for key in ("text_config", "llm_config", "language_config"):
        if isinstance(config.get(key), dict):
            nested: Mapping[str, Any] = config[key]
            return nested
    return config


def _positive(folder: Path, config: Mapping[str, Any], *keys: str) -> int:
    for source in (_text_config(config), config):
        for key in keys:
            value = source.get(key)
            if value is None:
                continue
            if isinstance(value, int) and not isinstance(value, bool) and value > 0:
                return value
            raise ModelError(f"{folder}/config.json: {key} is {value!r}, not a positive number")
    raise ModelError(f"{folder}/config.json names no {keys[0]}; it is no language model's config")


def _max_positions(config: Mapping[str, Any]) -> int:
    keys = ("max_position_embeddings", "n_positions", "n_ctx", "max_seq_len", "seq_length")
    text = _text_config(config)
    stated = (text.get(key) for key in keys)
    found = [value for value in stated if isinstance(value, int) and value > 0][:1]
    return min([*found, *_before_longrope(text)], default=UNLIMITED_POSITIONS)


def _before_longrope(config: Mapping[str, Any]) -> list[int]:
    """Up to where LongRoPE (arXiv 2402.13753) rotates by its short factors. Beyond, the library
    rotates all positions of a step by the long ones, and those of a step before it stay as they
    were: what comes out depends on how positions were divided into steps, here by chunks."""
    rope = config.get("rope_parameters") or config.get("rope_scaling")
    if not isinstance(rope, dict) or "longrope" not in (rope.get("rope_type"), rope.get("type")):
        return []
    key = "original_max_position_embeddings"
    stated = (rope.get(key), config.get(key))
    return [value for value in stated if isinstance(value, int) and value > 0][:1]


def _config_name(config: Mapping[str, Any]) -> str:
    value = config.get("_name_or_path")
    return re.split(r"[/\\]", value.rstrip("/\\"))[-1] if isinstance(value, str) else ""
