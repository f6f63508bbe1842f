"""`swarmd model`: what is on this disk, and fetching more of it."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from swarmd.blocks import Span
from swarmd.cli import main
from swarmd.compute.hub import fetch_model
from swarmd.compute.model_folder import open_folder
from swarmd.compute.stored_models import StoredModel, describe, stored_models
from swarmd.errors import ModelError, SwarmdError

from .fake_hub import COMMIT, FakeHub

REPO = "owner/tiny"


@pytest.fixture
def tiny_hub(hub: FakeHub, tiny: Path) -> FakeHub:
    hub.repos[REPO] = tiny
    return hub


def swarmd(*arguments: object) -> int:
    with pytest.raises(SystemExit) as ended:
        main([str(argument) for argument in arguments])
    return int(ended.value.code or 0)


def listed(capsys: pytest.CaptureFixture[str], *folders: Path) -> list[dict[str, object]]:
    capsys.readouterr()
    assert swarmd("model", "list", "--json", *folders) == 0
    found: list[dict[str, object]] = json.loads(capsys.readouterr().out)["models"]
    return found


def test_pull_and_list(tiny_hub: FakeHub, tiny: Path, capsys: pytest.CaptureFixture[str]) -> None:
    local = open_folder(tiny)
    assert swarmd("model", "list") == 0
    assert "model pull" in capsys.readouterr().err
    assert swarmd("model", "pull", REPO, "--blocks", "2:4") == 0
    assert "blocks 2:4 of 6" in capsys.readouterr().out
    assert tiny_hub.weights_fetched() == local.files_for(local.block_tensors(Span(2, 4)))
    (one,) = listed(capsys)
    assert (one["model"], one["id"], one["blocks"]) == (REPO, str(local.model_id), [[2, 4]])
    assert (one["client"], one["complete"]) == (False, False)
    assert swarmd("model", "pull", REPO, "--client") == 0
    assert listed(capsys)[0]["client"] is True
    assert swarmd("model", "pull", REPO) == 0
    assert "all of 6 blocks" in capsys.readouterr().out
    assert tiny_hub.weights_fetched() == local.files.keys()
    (one,) = listed(capsys)
    assert one["complete"] is True
    assert one["bytes"] == sum((tiny / name).stat().st_size for name in local.files)


def test_the_hub_is_not_asked_for_a_list(tiny_hub: FakeHub) -> None:
    fetch_model(REPO, None, Span(0, 2), False)
    before = (len(tiny_hub.fetched), len(tiny_hub.ranges))
    tiny_hub.refusals[REPO] = (401, "GatedRepo")
    (one,) = stored_models([])
    assert isinstance(one, StoredModel)
    assert (one.spec, one.blocks) == (REPO, (Span(0, 2),))
    assert (len(tiny_hub.fetched), len(tiny_hub.ranges)) == before


def test_another_revision_is_named(tiny_hub: FakeHub) -> None:
    fetch_model(REPO, COMMIT, None, True)
    (one,) = stored_models([])
    assert isinstance(one, StoredModel)
    assert one.spec == f"{REPO}@{COMMIT}"


def test_folders_and_what_is_wrong_with_them(
    tiny: Path, tmp_path: Path, own_cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = tmp_path / "all" / "broken"
    broken.mkdir(parents=True)
    (broken / "config.json").write_text("{")
    (tmp_path / "all" / "tiny").symlink_to(tiny)
    found = list(stored_models([tmp_path / "all", tmp_path / "none", tiny]))
    assert [isinstance(one, SwarmdError) for one in found] == [True, False, True, False]
    assert isinstance(found[2], ModelError)
    assert swarmd("model", "list", tmp_path / "all") == 1
    said = capsys.readouterr()
    assert "all of 6 blocks" in said.out
    assert re.search(r"broken.*JSON", said.err.replace("\n", " "))


def test_a_missing_shard_is_said(tiny: Path, tmp_path: Path) -> None:
    folder = open_folder(tiny)
    lost = folder.files_for(folder.block_tensors(Span(3, 4)))
    here = tmp_path / "part"
    here.mkdir()
    for path in tiny.iterdir():
        if path.name not in lost:
            (here / path.name).symlink_to(path)
    part = open_folder(here, require=(), hashes=folder.files)
    found = describe("part", part)
    assert Span(3, 4) not in found.blocks
    assert not found.complete
    assert found.n_bytes < describe("whole", folder).n_bytes


@pytest.mark.parametrize("blocks", ["auto", "3", "4:9"])
def test_pull_takes_a_range_that_the_model_has(tiny_hub: FakeHub, blocks: str) -> None:
    assert swarmd("model", "pull", REPO, "--blocks", blocks) == 2
    assert not tiny_hub.weights_fetched()
