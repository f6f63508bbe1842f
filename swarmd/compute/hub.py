"""A model on the Hugging Face hub, of which only the shards that a span needs are downloaded.

`HF_ENDPOINT`, `HF_TOKEN`, `HF_HUB_CACHE` and `HF_HUB_OFFLINE` mean what they mean to
`huggingface_hub`. The hub's listing of a revision (commit, files, SHA-256 of each) is kept in
swarmd's cache folder, so that a model that was fetched once opens without a network.
"""

from __future__ import annotations

import contextlib
import os
import re
import threading
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from swarmd.blocks import Span
from swarmd.compute.manifest import (
    StageProgress,
    cache_root,
    file_hashes,
    read_json_object,
    write_json,
)
from swarmd.compute.model_folder import (
    INDEX_NAME,
    SINGLE_NAME,
    ModelFolder,
    TensorInfo,
    open_folder,
)
from swarmd.errors import ModelError, UsageError

__all__ = ["SMALL_FILES", "fetch_model", "main_commit", "stored_model"]

SMALL_FILES = (
    "config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json",
    "special_tokens_map.json", "added_tokens.json", "vocab.json", "vocab.txt", "merges.txt",
    "tokenizer.model", "spiece.model", "sentencepiece.bpe.model", "tiktoken.model",
    "chat_template.jinja", "chat_template.json",
)  # fmt: skip
"""What a model folder holds besides weights and index; no code (`*.py`) is ever fetched."""
LISTING_TIMEOUT_S = 20.0
_SHA256 = re.compile(r"[0-9a-f]{64}")

Headers = dict[str, dict[str, TensorInfo]]


@dataclass(frozen=True, slots=True)
class _Listing:
    """What the hub says of one revision: file sizes (bytes), and SHA-256 where it knows it.

    Not `online`: it is from an earlier run, and what is not on this disk cannot be had.
    """

    repo_id: str
    commit: str
    sizes: dict[str, int]
    hashes: dict[str, str]
    headers: Headers = field(default_factory=dict)
    online: bool = True


def fetch_model(
    repo_id: str,
    revision: str | None = None,
    span: Span | None = None,
    client: bool = False,
    progress: StageProgress | None = None,
) -> ModelFolder:
    """Download what `span` (None: no blocks) and `client` (the rest of the tensors) need.

    With neither, no weights are downloaded: config, tokenizer, index and the headers of the shards
    tell the model's id and the size of each block. The id is the same whatever was downloaded.
    Stages of `progress`: `download <file>` and `check`, in bytes. Raises ModelError.
    """
    with _errors_of(repo_id, revision):
        listing = _online_listing(repo_id, revision)
    if listing is None:
        listing = _saved_listing(repo_id, revision)
    with _errors_of(repo_id, revision):
        return _Fetch(listing, progress).model(span, client)


def stored_model(repo_id: str, revision: str) -> ModelFolder:
    """What is on this disk of a model that was fetched before; the hub is not asked. Raises
    ModelError for one that was not."""
    with _errors_of(repo_id, revision):
        return _Fetch(_saved_listing(repo_id, revision), None).stored()


def main_commit(repo_id: str) -> str | None:
    """The commit that the hub's `main` was when the model was last fetched; None: it never was."""
    with contextlib.suppress(ModelError):
        return _saved_listing(repo_id, None).commit
    return None


@dataclass(frozen=True, slots=True)
class _Fetch:
    listing: _Listing
    progress: StageProgress | None

    def model(self, span: Span | None, client: bool) -> ModelFolder:
        listing = self.listing
        if "config.json" not in listing.sizes:
            raise ModelError(f"{listing.repo_id} on the hub has no config.json: no model to load")
        folder = Path(self._file("config.json")).parent
        for name in SMALL_FILES:
            if name in listing.sizes:
                self._file(name)
        files = self._weight_files(folder)
        hashes = {name: self._hash(name) for name in files}
        name = listing.repo_id.rsplit("/", 1)[-1]

        def opened(require: Collection[str], headers: Headers) -> ModelFolder:
            return open_folder(folder, require=require, name=name, hashes=hashes, headers=headers)

        headers = {} if files != [SINGLE_NAME] else self._headers(folder, files)
        planned = opened((), headers)
        wanted: set[str] = set()
        if span is not None:
            wanted |= planned.files_for(planned.block_tensors(span))
        if client:
            wanted |= planned.files_for(planned.client_tensors())
        if not wanted:
            return opened((), self._headers(folder, files))
        for file in sorted(wanted):
            self._file(file)
        self._check(folder, wanted, hashes)
        return opened(wanted, headers)

    def stored(self) -> ModelFolder:
        """The model with the weight files that happen to be here."""
        listing = self.listing
        folder = Path(self._file("config.json")).parent
        hashes = {name: self._hash(name) for name in self._weight_files(folder)}
        name = listing.repo_id.rsplit("/", 1)[-1]
        return open_folder(folder, require=(), name=name, hashes=hashes, headers=listing.headers)

    def _weight_files(self, folder: Path) -> list[str]:
        """The names of all weight files; a single file comes before an index, as transformers."""
        listing = self.listing
        if SINGLE_NAME in listing.sizes:
            return [SINGLE_NAME]
        if INDEX_NAME not in listing.sizes:
            raise ModelError(_no_safetensors(listing))
        self._file(INDEX_NAME)
        weight_map = read_json_object(folder / INDEX_NAME).get("weight_map")
        files = sorted(set(weight_map.values())) if isinstance(weight_map, dict) else []
        if not files or not set(files) <= listing.sizes.keys():
            raise ModelError(f"{listing.repo_id}: {INDEX_NAME} names files that the hub lacks")
        return files

    def _hash(self, name: str) -> str:
        """The SHA-256 of a weight file: LFS knows it, a plain git file must be read for it."""
        listing = self.listing
        if name not in listing.hashes:
            etag = _metadata_etag(listing, name)
            if etag is None:
                path = Path(self._file(name))
                etag = file_hashes(path.parent, [name])[name]
            listing.hashes[name] = etag
            _save_listing(listing)
        return listing.hashes[name]

    def _headers(self, folder: Path, files: Collection[str]) -> Headers:
        """The headers of the shards that are not on this disk, by range requests, cached."""
        known = self.listing.headers
        for file in files:
            if file not in known and not (folder / file).exists():
                known[file] = _remote_header(self.listing, file)
                _save_listing(self.listing)
        return known

    def _file(self, name: str) -> str:
        from huggingface_hub import hf_hub_download

        size = self.listing.sizes.get(name, 0)
        bar = _bar(self.progress, f"download {name}", size)
        try:
            path = hf_hub_download(
                self.listing.repo_id,
                name,
                revision=self.listing.commit,
                endpoint=_endpoint(),
                tqdm_class=bar,
                local_files_only=not self.listing.online,
            )
        except Exception:
            if bar.failure is not None:
                raise bar.failure from None
            raise
        if bar.failure is not None:
            raise bar.failure
        return str(path)

    def _check(self, folder: Path, files: Collection[str], hashes: Mapping[str, str]) -> None:
        """Compare what was downloaded with the hub's hashes: once a file, then by size and mtime.

        A damaged shard would otherwise serve wrong numbers under the right fingerprint.
        """
        progress = self.progress
        report = (lambda done, total: progress("check", done, total)) if progress else None
        for name, found in file_hashes(folder, files, report).items():
            if found != hashes[name]:
                raise ModelError(
                    f"{(folder / name).resolve()} differs from the hub's file; "
                    "delete it and start again"
                )


def _endpoint() -> str | None:
    """Read at each call: huggingface_hub itself reads it only when it is first imported."""
    return (os.environ.get("HF_ENDPOINT") or "").rstrip("/") or None


def _online_listing(repo_id: str, revision: str | None) -> _Listing | None:
    """The hub's listing, None if it cannot be reached. Raises huggingface_hub's errors."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

    http_error: type[Exception] = HfHubHTTPError.__bases__[0]
    try:
        info = HfApi(endpoint=_endpoint()).model_info(
            repo_id, revision=revision or "main", files_metadata=True, timeout=LISTING_TIMEOUT_S
        )
    except HfHubHTTPError as exc:
        if exc.response.status_code >= 500:
            return None
        raise
    except (http_error, OfflineModeIsEnabled, ConnectionError, TimeoutError):
        return None
    siblings = info.siblings or []
    listing = _Listing(
        repo_id=repo_id,
        commit=info.sha or revision or "main",
        sizes={file.rfilename: file.size or 0 for file in siblings},
        hashes={file.rfilename: file.lfs.sha256 for file in siblings if file.lfs},
    )
    with contextlib.suppress(ModelError):
        saved = _saved_listing(repo_id, listing.commit)
        listing.hashes.update(saved.hashes)
        listing.headers.update(saved.headers)
    _save_listing(listing)
    _save_listing(listing, revision or "main")
    return listing


def _metadata_etag(listing: _Listing, name: str) -> str | None:
    """The SHA-256 from `X-Linked-ETag`; None for a file outside LFS (its ETag is git's SHA-1)."""
    from huggingface_hub import get_hf_file_metadata, get_token, hf_hub_url

    url = hf_hub_url(listing.repo_id, name, revision=listing.commit, endpoint=_endpoint())
    etag = get_hf_file_metadata(url, token=get_token(), endpoint=_endpoint()).etag
    return etag if etag and _SHA256.fullmatch(etag) else None


def _remote_header(listing: _Listing, name: str) -> dict[str, TensorInfo]:
    from huggingface_hub import HfApi

    api = HfApi(endpoint=_endpoint())
    found = api.parse_safetensors_file_metadata(listing.repo_id, name, revision=listing.commit)
    return {
        tensor: TensorInfo(str(info.dtype), tuple(info.shape), info.data_offsets)
        for tensor, info in found.tensors.items()
    }


def _listing_path(repo_id: str, revision: str) -> Path:
    slug = re.sub(r"[^A-Za-z0-9._-]", "--", f"{repo_id}@{revision}")
    return cache_root() / "hub" / f"{slug}.json"


def _save_listing(listing: _Listing, revision: str | None = None) -> None:
    headers = {
        file: {name: [i.dtype, i.shape, i.offsets] for name, i in tensors.items()}
        for file, tensors in listing.headers.items()
    }
    value = {"commit": listing.commit, "sizes": listing.sizes, "hashes": listing.hashes}
    with contextlib.suppress(OSError):  # without the cache the next start asks the hub again
        path = _listing_path(listing.repo_id, revision or listing.commit)
        write_json(path, {**value, "headers": headers})


def _saved_listing(repo_id: str, revision: str | None) -> _Listing:
    """The listing of an earlier run. Raises ModelError."""
    try:
        commit = read_json_object(_listing_path(repo_id, revision or "main"))["commit"]
        saved = read_json_object(_listing_path(repo_id, commit))
        headers = {
            file: {n: TensorInfo(d, tuple(s), (o[0], o[1])) for n, (d, s, o) in tensors.items()}
            for file, tensors in saved["headers"].items()
        }
        return _Listing(repo_id, commit, saved["sizes"], saved["hashes"], headers, False)
    except (ModelError, KeyError, TypeError, ValueError, AttributeError) as exc:
        raise ModelError(_no_network(repo_id)) from exc


def _no_network(repo_id: str) -> str:
    return (
        f"cannot reach the hub at {_shown_endpoint()} for {repo_id}; check the network, "
        "HF_ENDPOINT and HF_HUB_OFFLINE, or give a local folder with --model"
    )


def _shown_endpoint() -> str:
    return _endpoint() or "https://huggingface.co"


def _no_safetensors(listing: _Listing) -> str:
    names = listing.sizes
    if any(name.endswith(".gguf") for name in names):
        return (
            f"{listing.repo_id} holds GGUF files; download one of them and give its path to --model"
        )
    why = "only pickled weights" if any(n.endswith(".bin") for n in names) else "no weights"
    return (
        f"{listing.repo_id} has {why}, and swarmd reads safetensors only; choose another revision "
        "(such as refs/pr/N with safetensors) or a copy of the model in that format"
    )


@contextlib.contextmanager
def _errors_of(repo_id: str, revision: str | None) -> Iterator[None]:
    """Map huggingface_hub's errors to ModelError, in the reader's words."""
    from huggingface_hub.errors import (
        EntryNotFoundError,
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
        SafetensorsParsingError,
    )

    base: type[Exception] = HfHubHTTPError.__bases__[0]
    where = _shown_endpoint()
    try:
        yield
    except HFValidationError as exc:
        raise UsageError(f"{repo_id!r} is not the name of a hub model: {exc}") from exc
    except GatedRepoError as exc:
        raise ModelError(
            f"no access to {repo_id}: accept its terms at {where}/{repo_id}, then set HF_TOKEN"
        ) from exc
    except RepositoryNotFoundError as exc:
        raise ModelError(
            f"{repo_id} was not found at {where}; check the name, or set HF_TOKEN if it is private"
        ) from exc
    except RevisionNotFoundError as exc:
        raise ModelError(f"{repo_id} has no revision {revision!r}; leave @… out for main") from exc
    except LocalEntryNotFoundError as exc:
        raise ModelError(_no_network(repo_id)) from exc
    except (EntryNotFoundError, SafetensorsParsingError) as exc:
        raise ModelError(f"{repo_id} on the hub is incomplete: {_first_line(exc)}") from exc
    except HfHubHTTPError as exc:
        if exc.response.status_code in (401, 403):
            raise ModelError(f"no access to {repo_id}: set HF_TOKEN to one that may read") from exc
        raise ModelError(f"{where} failed for {repo_id}: {_first_line(exc)}") from exc
    except base as exc:
        raise ModelError(_no_network(repo_id)) from exc
    except OSError as exc:
        if isinstance(exc, ConnectionError | TimeoutError):
            raise ModelError(_no_network(repo_id)) from exc
        raise ModelError(f"cannot store {repo_id}: {_first_line(exc)}") from exc


def _first_line(exc: BaseException) -> str:
    return (str(exc).strip().splitlines() or [type(exc).__name__])[0]


def _bar(progress: StageProgress | None, stage: str, size: int) -> type[Any]:
    """A tqdm that draws nothing and reports to `progress`.

    hf-xet opens two bars a file, so only what goes beyond the largest report is passed on. It
    calls them in a thread of its own, where an exception is lost: what `progress` raises there
    becomes `failure` and ends the download. The library removes what it had fetched of the file.
    """
    from tqdm import tqdm  # type: ignore[import-untyped,unused-ignore]

    reported = 0
    caller = threading.get_ident()

    class Bar(tqdm):  # type: ignore[type-arg,misc,unused-ignore]
        failure: ClassVar[Exception | None] = None

        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **{**kwargs, "disable": True})
            self.n = kwargs.get("initial", 0)

        def update(self, n: float | None = 1) -> None:
            nonlocal reported
            self.n += int(n or 0)
            if not progress or self.n <= reported or Bar.failure is not None:
                return
            reported = int(self.n)
            try:
                progress(stage, min(reported, size or reported), size or reported)
            except Exception as error:
                if threading.get_ident() == caller:
                    raise
                Bar.failure = error
                _abort_xet()

    return Bar


def _abort_xet() -> None:
    """End hf-xet's downloads; an older library goes on to the end of the file."""
    with contextlib.suppress(ImportError):
        from huggingface_hub.utils._xet import abort_xet_session

        abort_xet_session()
