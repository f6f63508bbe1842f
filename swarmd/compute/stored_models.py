"""The models on this disk: converted ones and those of the hub in the caches, and given folders."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from swarmd.blocks import Span
from swarmd.compute.hub import main_commit, stored_model
from swarmd.compute.manifest import StageProgress, cache_root
from swarmd.compute.model_folder import ModelFolder, open_folder
from swarmd.errors import ModelError, SwarmdError

__all__ = ["StoredModel", "describe", "stored_models"]


@dataclass(frozen=True, slots=True)
class StoredModel:
    """A model and what of it is here: `blocks` as spans, whether a client's part is, bytes of
    weights. `spec` is what `--model` takes."""

    spec: str
    folder: ModelFolder
    blocks: tuple[Span, ...]
    client: bool
    n_bytes: int

    @property
    def complete(self) -> bool:
        """Whether nothing is missing."""
        return self.client and self.blocks == (Span(0, self.folder.n_blocks),)


def describe(spec: str, folder: ModelFolder) -> StoredModel:
    """What of a model is on this disk."""
    here = {name for name in folder.files if (folder.path / name).exists()}
    blocks = []
    for block in range(folder.n_blocks):
        needed = folder.files_for(folder.block_tensors(Span(block, block + 1)))
        if needed and needed <= here:
            blocks.append(block)
    client = folder.files_for(folder.client_tensors())
    n_bytes = sum((folder.path / name).stat().st_size for name in here)
    return StoredModel(spec, folder, _spans(blocks), bool(client) and client <= here, n_bytes)


def stored_models(
    folders: Sequence[Path], progress: StageProgress | None = None
) -> Iterator[StoredModel | SwarmdError]:
    """The models of the caches, then those of `folders` (each a model, or a folder of models); for
    one that cannot be read, why. The hub is not asked. Files whose hash is not known are read."""
    yield from _below(cache_root() / "models", progress)
    yield from _of_the_hub()
    for place in folders:
        if place.is_dir():
            yield from _below(place, progress)
        else:
            yield ModelError(f"{place} is no folder; give one that holds models")


def _below(place: Path, progress: StageProgress | None) -> Iterator[StoredModel | SwarmdError]:
    for path in _model_folders(place):
        try:
            yield describe(str(path), _opened(path, progress))
        except SwarmdError as error:
            yield error


def _opened(path: Path, progress: StageProgress | None) -> ModelFolder:
    if progress is None:
        return open_folder(path)
    report = progress
    return open_folder(path, progress=lambda done, total: report("hash", done, total))


def _model_folders(place: Path) -> list[Path]:
    """The folder itself if it holds a model, else those right below it that do."""
    if (place / "config.json").exists():
        return [place]
    try:
        below = sorted(place.iterdir())
    except OSError:  # there is no cache yet
        return []
    return [path for path in below if (path / "config.json").exists()]


def _of_the_hub() -> Iterator[StoredModel | SwarmdError]:
    """Those that swarmd fetched; what other programs left in the hub's cache is not ours."""
    from huggingface_hub import constants, scan_cache_dir
    from huggingface_hub.errors import CacheNotFound

    try:
        cache = scan_cache_dir(constants.HF_HUB_CACHE)
    except CacheNotFound:
        return
    for repo in sorted(cache.repos, key=lambda repo: repo.repo_id):
        for revision in sorted(repo.revisions, key=lambda one: one.commit_hash):
            try:
                folder = stored_model(repo.repo_id, revision.commit_hash)
            except SwarmdError:
                continue
            main = revision.commit_hash == main_commit(repo.repo_id)
            spec = repo.repo_id if main else f"{repo.repo_id}@{revision.commit_hash}"
            yield describe(spec, folder)


def _spans(blocks: Sequence[int]) -> tuple[Span, ...]:
    """Runs of consecutive numbers, which ascend."""
    spans: list[Span] = []
    for block in blocks:
        if spans and spans[-1].end == block:
            spans[-1] = Span(spans[-1].start, block + 1)
        else:
            spans.append(Span(block, block + 1))
    return tuple(spans)
