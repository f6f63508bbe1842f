"""A model's fingerprint, and the cache of file hashes that makes it cheap.

The fingerprint covers the architecture-relevant config and the SHA-256 of every weight file. Tensor
names and shapes need no entry of their own: they stand in the safetensors header, which the file's
hash covers. So a peer that holds two shards of forty, and knows the other hashes from the hub's
listing, gets the id that a peer with the whole folder gets.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from platformdirs import user_cache_dir

from swarmd.atomic_file import PUBLIC, write_file
from swarmd.errors import ModelError
from swarmd.peers import MODEL_ID_BYTES, ModelId

__all__ = [
    "CACHE_ENV",
    "MANIFEST_NAME",
    "ByteProgress",
    "StageProgress",
    "cache_root",
    "file_hashes",
    "fingerprint",
    "read_json_object",
    "write_json",
]

CACHE_ENV = "SWARMD_CACHE"
MANIFEST_NAME = "swarmd.json"
MANIFEST_VERSION = 1
CHUNK_BYTES = 8 << 20
"""Read size while hashing: large enough that SHA-256, not Python, is the cost."""

VOLATILE_KEYS = frozenset({"transformers_version", "torch_dtype", "dtype"})
"""Config keys that say who wrote the folder or how to load it, not what it computes. Keys that
start with an underscore (`_name_or_path`, `_attn_implementation`) are dropped as well."""

ByteProgress = Callable[[int, int], None]
"""(bytes done, bytes in all)."""
StageProgress = Callable[[str, int, int], None]
"""(stage, done, in all); the unit is bytes unless the function that calls it says otherwise."""


def cache_root() -> Path:
    """The folder for what can be made again: `SWARMD_CACHE`, or the user's cache folder."""
    override = os.environ.get(CACHE_ENV)
    return Path(override).expanduser() if override else Path(user_cache_dir("swarmd"))


def fingerprint(config: Mapping[str, Any], hashes: Mapping[str, str]) -> ModelId:
    """The model's id: 16 bytes of SHA-256 over canonical JSON of config and weight-file hashes."""
    content = {"config": _stable(config), "files": sorted(hashes.items())}
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return ModelId(hashlib.sha256(text.encode()).digest()[:MODEL_ID_BYTES])


def _stable(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {
            key: _stable(item)
            for key, item in value.items()
            if key not in VOLATILE_KEYS and not str(key).startswith("_")
        }
    if isinstance(value, list):
        return [_stable(item) for item in value]
    return value


def file_hashes(
    folder: Path, names: Iterable[str], progress: ByteProgress | None = None
) -> dict[str, str]:
    """SHA-256 (hex) of each named file of `folder`, read only where size or mtime changed.

    The results are kept in `swarmd.json` in the folder, or under the cache folder where that cannot
    be written. `progress` hears of bytes that are really read. Raises ModelError for a file that
    cannot be read or that changes meanwhile.
    """
    known = _load(folder)
    hashes: dict[str, str] = {}
    stale: list[tuple[str, int]] = []
    for name in sorted(set(names)):
        stat = _stat(folder / name)
        entry = known.get(name)
        if entry and (entry["size"], entry["mtime_ns"]) == (stat.st_size, stat.st_mtime_ns):
            hashes[name] = entry["sha256"]
        else:
            stale.append((name, stat.st_size))
    if not stale:
        return hashes

    done, total = 0, sum(size for _, size in stale)
    for name, size in stale:
        entry = _hash(folder / name, done, total, progress)
        hashes[name] = entry["sha256"]
        known[name] = entry
        done += size
    _save(folder, known)
    return hashes


def _hash(path: Path, before: int, total: int, progress: ByteProgress | None) -> dict[str, Any]:
    digest = hashlib.sha256()
    done = before
    try:
        with path.open("rb") as file:
            start = os.fstat(file.fileno())
            while chunk := file.read(CHUNK_BYTES):
                digest.update(chunk)
                done += len(chunk)
                if progress:
                    progress(min(done, total), total)
            end = os.fstat(file.fileno())
    except OSError as exc:
        raise _unreadable(path, exc) from exc
    if (start.st_size, start.st_mtime_ns) != (end.st_size, end.st_mtime_ns):
        raise ModelError(f"{path} is being written; try again when the copy is complete")
    return {"size": end.st_size, "mtime_ns": end.st_mtime_ns, "sha256": digest.hexdigest()}


def _stat(path: Path) -> os.stat_result:
    try:
        return path.stat()
    except OSError as exc:
        raise _unreadable(path, exc) from exc


def _unreadable(path: Path, exc: OSError) -> ModelError:
    return ModelError(f"cannot read {path}: {exc.strerror or exc}; check the file and its rights")


def _fallback(folder: Path) -> Path:
    key = hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:32]
    return cache_root() / "manifests" / f"{key}.json"


def _load(folder: Path) -> dict[str, dict[str, Any]]:
    """The cached entries; anything that is not a well-formed entry counts as absent."""
    entries: dict[str, dict[str, Any]] = {}
    for path in (_fallback(folder), folder / MANIFEST_NAME):
        try:
            manifest = json.loads(path.read_bytes())
        except (OSError, ValueError):
            continue
        files = manifest.get("files") if isinstance(manifest, dict) else None
        if not isinstance(files, dict) or manifest.get("version") != MANIFEST_VERSION:
            continue
        entries.update({name: entry for name, entry in files.items() if _well_formed(entry)})
    return entries


def _well_formed(entry: object) -> bool:
    return (
        isinstance(entry, dict)
        and isinstance(entry.get("size"), int)
        and isinstance(entry.get("mtime_ns"), int)
        and isinstance(entry.get("sha256"), str)
        and len(entry["sha256"]) == 64
    )


def _save(folder: Path, entries: dict[str, dict[str, Any]]) -> None:
    present = {name: entry for name, entry in entries.items() if (folder / name).exists()}
    manifest = {"version": MANIFEST_VERSION, "files": present}
    for path in (folder / MANIFEST_NAME, _fallback(folder)):
        try:
            write_json(path, manifest)
        except OSError:
            continue  # a read-only folder; without any cache the next start hashes again
        return


def write_json(path: Path, value: object) -> None:
    """Write JSON so that a reader sees the old file or the new one. Raises OSError."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_file(path, json.dumps(value, indent=1, sort_keys=True) + "\n", mode=PUBLIC)


def read_json_object(path: Path) -> dict[str, Any]:
    """The JSON object in `path`. Raises ModelError that names the file and the fault."""
    try:
        value = json.loads(path.read_bytes())
    except OSError as exc:
        raise _unreadable(path, exc) from exc
    except (ValueError, RecursionError) as exc:
        raise ModelError(f"{path} is not valid JSON ({exc}); fetch the file again") from exc
    if not isinstance(value, dict):
        raise ModelError(f"{path} holds no JSON object; fetch the file again")
    return value
