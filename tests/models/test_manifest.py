"""The fingerprint and its cache of hashes."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

import pytest

from swarmd.compute import manifest
from swarmd.compute.manifest import cache_root, file_hashes, fingerprint, write_json
from swarmd.compute.model_folder import open_folder
from swarmd.errors import ModelError


def weights(folder: Path) -> dict[str, bytes]:
    files = {"a.safetensors": b"a" * 1000, "b.safetensors": b"b" * 10}
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return files


def reads(folder: Path, names: list[str]) -> list[int]:
    seen: list[int] = []
    file_hashes(folder, names, lambda done, total: seen.append(done))
    return seen


def test_hashes_are_sha256_and_read_once(tmp_path: Path) -> None:
    files = weights(tmp_path)
    seen: list[tuple[int, int]] = []
    hashes = file_hashes(tmp_path, files, lambda *step: seen.append(step))
    assert hashes == {name: hashlib.sha256(data).hexdigest() for name, data in files.items()}
    assert seen == [(1000, 1010), (1010, 1010)]
    assert reads(tmp_path, list(files)) == []
    assert json.loads((tmp_path / "swarmd.json").read_text())["files"].keys() == files.keys()


def test_changed_size_or_mtime_is_read_again(tmp_path: Path) -> None:
    files = weights(tmp_path)
    before = file_hashes(tmp_path, files)
    os.utime(tmp_path / "a.safetensors", ns=(1, 1))
    assert reads(tmp_path, list(files)) == [1000]
    (tmp_path / "b.safetensors").write_bytes(b"c" * 11)
    assert file_hashes(tmp_path, files)["b.safetensors"] != before["b.safetensors"]


@pytest.mark.parametrize(
    "garbage", [b"", b"[]", b'{"version": 1, "files": 3}', b'{"version": 9}', b"\xff", b"nul",
                b'{"version": 1, "files": {"a.safetensors": {"size": 1000}}}'],
)  # fmt: skip
def test_a_garbage_manifest_counts_as_none(tmp_path: Path, garbage: bytes) -> None:
    files = weights(tmp_path)
    (tmp_path / "swarmd.json").write_bytes(garbage)
    assert reads(tmp_path, list(files)) == [1000, 1010]
    assert reads(tmp_path, list(files)) == []


def test_a_read_only_folder_is_cached_elsewhere(
    tmp_path: Path, own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    files = weights(folder)
    real = manifest.write_json

    def refuse(path: Path, value: object) -> None:
        if path.parent == folder:
            raise PermissionError(13, "Permission denied")
        real(path, value)

    monkeypatch.setattr(manifest, "write_json", refuse)
    file_hashes(folder, files)
    assert not (folder / "swarmd.json").exists()
    assert list((own_cache / "manifests").iterdir())
    assert reads(folder, list(files)) == []


def test_an_interrupted_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    write_json(path, {"a": 1})
    with pytest.raises(TypeError):
        write_json(path, {"a": object()})
    assert json.loads(path.read_text()) == {"a": 1} and list(tmp_path.iterdir()) == [path]


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="cannot read"):
        file_hashes(tmp_path, ["x"])


def test_a_file_that_grows_while_it_is_hashed(tmp_path: Path) -> None:
    weights(tmp_path)

    def grow(done: int, total: int) -> None:
        with (tmp_path / "a.safetensors").open("ab") as file:
            file.write(b"!")

    monkey = manifest.CHUNK_BYTES
    manifest.CHUNK_BYTES = 999
    try:
        with pytest.raises(ModelError, match="being written"):
            # the growth is bounded: each read of 999 bytes adds one
            file_hashes(tmp_path, ["a.safetensors"], lambda d, t: grow(d, t) if d < 1000 else None)
    finally:
        manifest.CHUNK_BYTES = monkey


def test_the_fingerprint_covers_what_matters() -> None:
    hashes = {"a": "1", "b": "2"}
    config = {"hidden_size": 4, "text_config": {"dtype": "float32", "n": 1}, "_x": 1}
    same = {"text_config": {"n": 1, "torch_dtype": "x"}, "hidden_size": 4, "dtype": "bfloat16",
            "_name_or_path": "other", "transformers_version": "9"}  # fmt: skip
    one = fingerprint(config, hashes)
    assert one == fingerprint(same, {"b": "2", "a": "1"}) and len(one) == 16
    assert one != fingerprint({**config, "hidden_size": 5}, hashes)
    assert one != fingerprint({**config, "architectures": ["A"]}, hashes)
    assert one != fingerprint(config, {"a": "1", "b": "3"})
    assert one != fingerprint(config, {"a": "1"})


def test_one_changed_weight_changes_the_id(tiny: Path) -> None:
    before = open_folder(tiny)
    assert open_folder(tiny).model_id == before.model_id
    file = sorted(tiny.glob("model-*.safetensors"))[-1]
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    os.utime(file, ns=(5, 5))
    assert open_folder(tiny).model_id != before.model_id


def test_the_cache_folder(own_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert cache_root() == own_cache
    monkeypatch.delenv("SWARMD_CACHE")
    assert cache_root().name == "swarmd"
