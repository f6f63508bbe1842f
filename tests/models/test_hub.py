"""Fetching from a hub on loopback: only the shards that are needed, and errors in plain words."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from swarmd.blocks import Span
from swarmd.compute.hub import fetch_model
from swarmd.compute.model_folder import open_folder
from swarmd.compute.source import resolve_model
from swarmd.errors import ModelError, UsageError

from .fake_hub import FakeHub

REPO = "owner/tiny"


@pytest.fixture
def tiny_hub(hub: FakeHub, tiny: Path) -> FakeHub:
    hub.repos[REPO] = tiny
    return hub


def test_only_the_shards_of_the_span_are_fetched(tiny_hub: FakeHub, tiny: Path) -> None:
    local = open_folder(tiny)
    wanted = local.files_for(local.block_tensors(Span(2, 4)))
    assert wanted < local.files.keys()
    stages: list[tuple[str, int, int]] = []
    folder = fetch_model(REPO, None, Span(2, 4), False, lambda *step: stages.append(step))
    assert tiny_hub.weights_fetched() == wanted
    assert len(tiny_hub.fetched) == len(set(tiny_hub.fetched))
    assert (folder.name, folder.model_id) == ("tiny", local.model_id)
    assert folder.block_bytes(2) == local.block_bytes(2)
    for file in wanted:
        size = (tiny / file).stat().st_size
        assert (f"download {file}", size, size) in stages
    assert stages[-1][0] == "check" and stages[-1][1] == stages[-1][2]


def test_peers_with_other_shards_have_the_same_id(
    tiny_hub: FakeHub, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    ids = set()
    for peer, (span, client) in enumerate([(Span(0, 1), False), (Span(5, 6), False), (None, True)]):
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / f"hf{peer}"))
        monkeypatch.setenv("SWARMD_CACHE", str(tmp_path / f"cache{peer}"))
        ids.add(fetch_model(REPO, None, span, client).model_id)
    assert ids == {open_folder(tiny).model_id}


def test_the_client_fetches_the_rest(tiny_hub: FakeHub, tiny: Path) -> None:
    local = open_folder(tiny)
    fetch_model(REPO, "main", None, True)
    assert tiny_hub.weights_fetched() == local.files_for(local.client_tensors())


def test_planning_fetches_headers_only(tiny_hub: FakeHub, tiny: Path) -> None:
    local = open_folder(tiny)
    plan = fetch_model(REPO)
    assert tiny_hub.weights_fetched() == set() and set(tiny_hub.ranges) == set(local.files)
    assert plan.model_id == local.model_id
    assert [plan.block_bytes(n) for n in range(6)] == [local.block_bytes(n) for n in range(6)]
    asked = len(tiny_hub.ranges)
    fetch_model(REPO)
    assert len(tiny_hub.ranges) == asked


def test_a_model_in_one_file(hub: FakeHub, single_source: Path) -> None:
    hub.repos[REPO] = single_source
    local = open_folder(single_source)
    assert fetch_model(REPO).model_id == local.model_id and hub.weights_fetched() == set()
    folder = fetch_model(REPO, None, Span(0, 1))
    assert hub.weights_fetched() == {"model.safetensors"}
    assert folder.model_id == local.model_id and folder.weight_map == local.weight_map


def test_hashes_from_file_metadata_where_the_listing_has_none(
    tiny_hub: FakeHub, tiny: Path
) -> None:
    tiny_hub.listed_hashes = False
    folder = fetch_model(REPO, None, Span(0, 1))
    local = open_folder(tiny)
    assert folder.model_id == local.model_id
    assert tiny_hub.weights_fetched() == local.files_for(local.block_tensors(Span(0, 1)))


def test_files_outside_lfs_are_read_for_their_hash(tiny_hub: FakeHub, tiny: Path) -> None:
    tiny_hub.lfs = False
    assert fetch_model(REPO).model_id == open_folder(tiny).model_id


def test_nothing_is_fetched_twice_and_the_network_may_go(tiny_hub: FakeHub) -> None:
    first = fetch_model(REPO, None, Span(0, 2), True)
    fetched = list(tiny_hub.fetched)
    assert fetch_model(REPO, None, Span(0, 2), True) == first
    assert tiny_hub.fetched == fetched
    tiny_hub.stop()
    assert fetch_model(REPO, None, Span(0, 2), True) == first
    with pytest.raises(ModelError, match="cannot reach the hub"):
        fetch_model(REPO, None, Span(4, 6))


def test_a_damaged_download_is_refused(tiny_hub: FakeHub, tiny: Path) -> None:
    local = open_folder(tiny)
    tiny_hub.corrupt = set(local.files)
    with pytest.raises(ModelError, match="differs from the hub's file; delete it"):
        fetch_model(REPO, None, Span(0, 1))


def test_the_token_is_sent(tiny_hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    fetch_model(REPO)
    assert tiny_hub.tokens == {"hf_secret"}


@pytest.mark.parametrize(
    ("status", "code", "says"),
    [
        (404, "RepoNotFound", "was not found"),
        (401, "RepoNotFound", "was not found"),
        (403, "GatedRepo", "accept its terms"),
        (403, "", "HF_TOKEN"),
        (503, "", "cannot reach the hub"),
    ],
)
def test_refusals(tiny_hub: FakeHub, status: int, code: str, says: str) -> None:
    tiny_hub.refusals[REPO] = (status, code)
    with pytest.raises(ModelError, match=says) as caught:
        fetch_model(REPO)
    assert "\n" not in str(caught.value)


def test_an_unknown_revision(tiny_hub: FakeHub) -> None:
    with pytest.raises(ModelError, match="no revision 'v9'"):
        fetch_model(REPO, "v9")


def test_an_impossible_name(hub: FakeHub) -> None:
    with pytest.raises(UsageError, match="not the name of a hub model"):
        fetch_model("owner/-bad-.git")


def test_no_network(hub: FakeHub) -> None:
    hub.stop()
    with pytest.raises(ModelError, match=r"cannot reach the hub at http://127\.0\.0\.1"):
        fetch_model(REPO)


@pytest.mark.parametrize(
    ("file", "says"),
    [("pytorch_model.bin", "only pickled"), ("m.gguf", "GGUF"), ("README.md", "no weights")],
)
def test_a_repository_without_safetensors(
    hub: FakeHub, tiny: Path, tmp_path: Path, file: str, says: str
) -> None:
    hub.repos[REPO] = tmp_path / "repo"
    hub.repos[REPO].mkdir()
    (hub.repos[REPO] / "config.json").write_bytes((tiny / "config.json").read_bytes())
    (hub.repos[REPO] / file).write_bytes(b"x")
    with pytest.raises(ModelError, match=says):
        fetch_model(REPO)
    assert file not in hub.fetched


def test_an_index_that_names_what_the_hub_lacks(tiny_hub: FakeHub, tiny: Path) -> None:
    index = tiny / "model.safetensors.index.json"
    value = json.loads(index.read_text())
    value["weight_map"]["model.norm.weight"] = "../../x.safetensors"
    index.write_text(json.dumps(value))
    with pytest.raises(ModelError, match="the hub lacks"):
        fetch_model(REPO)


def test_resolve_model_takes_a_revision(tiny_hub: FakeHub, tiny: Path) -> None:
    folder = resolve_model(f"{REPO}@main", span=Span(0, 1))
    assert folder.model_id == open_folder(tiny).model_id
    assert os.path.commonpath([folder.path, tiny]) != str(tiny)
