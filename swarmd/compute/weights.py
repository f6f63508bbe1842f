"""Reading a part of a model from its folder: only the tensors of that part touch the disk."""

from __future__ import annotations

import contextlib
import copy
import functools
import logging
import re
import threading
from collections import defaultdict
from collections.abc import Callable, Iterator
from typing import Any, Protocol

import torch
from safetensors import SafetensorError, safe_open
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.utils import logging as library_logging

from swarmd.blocks import Span
from swarmd.compute.cut_model import cut_class, parse_config
from swarmd.compute.dry_run import check_can_be_cut
from swarmd.errors import ModelError, UnsupportedModel

__all__ = ["DTYPES", "BlockProgress", "WeightFolder", "load_part", "torch_dtype"]

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
"""The compute dtypes, by the names that travel in announcements and tensors."""

BlockProgress = Callable[[int, int], None]
"""(blocks read, blocks in all). Called from several threads, one at a time; it may raise to stop
the loading."""

_BLOCK = re.compile(r"^(.*?\b(?:layers|h|blocks)\.)(\d+)(\..*)$")


class WeightFolder(Protocol):
    """The part of :class:`swarmd.compute.model_folder.ModelFolder` that loading needs."""

    @property
    def path(self) -> Any: ...
    @property
    def name(self) -> str: ...
    @property
    def config(self) -> dict[str, Any]: ...
    def block_tensors(self, span: Span) -> dict[str, str]: ...
    def client_tensors(self) -> dict[str, str]: ...


def torch_dtype(name: str) -> torch.dtype:
    """The torch dtype of one of :data:`DTYPES`. Raises UnsupportedModel for any other name."""
    try:
        return DTYPES[name]
    except KeyError:
        raise UnsupportedModel(f"--dtype {name}: use one of {', '.join(DTYPES)}") from None


def load_part(
    folder: WeightFolder,
    span: Span | None,
    *,
    dtype: str,
    device: str = "cpu",
    progress: BlockProgress | None = None,
    task: Any = AutoModelForCausalLM,
) -> PreTrainedModel:
    """The model (of the library's auto class `task`) with only the blocks of `span`, or (None) with
    all but the blocks.

    `progress` is called before each tensor and after each block. Raises what it raises,
    ModelError for tensors that are missing or unreadable, and, before one is read,
    UnsupportedModel for a model that cannot be cut.
    """
    check_can_be_cut(folder.config)
    config = parse_config(folder.config)
    names = folder.client_tensors() if span is None else folder.block_tensors(span)
    cls = cut_class(config, span, task)
    with _open_tensors(folder, names, span) as tensors, _quiet_loading():
        if progress is not None and span is not None:
            tensors = _watched(tensors, progress)
        try:
            model, info = cls.from_pretrained(
                None,
                config=copy.deepcopy(config),
                state_dict=tensors,
                dtype=torch_dtype(dtype),
                device_map=None,
                output_loading_info=True,
            )
        except (RuntimeError, ValueError, SafetensorError, OSError) as error:
            raise ModelError(f"{folder.name}: cannot load its weights: {error}") from error
    if info["missing_keys"] or info["mismatched_keys"]:
        wrong = sorted(map(str, [*info["missing_keys"], *info["mismatched_keys"]]))
        raise ModelError(
            f"{folder.name}: {len(wrong)} tensors are missing or misshapen, such as {wrong[0]}; "
            "download the model folder anew"
        )
    placed: PreTrainedModel = model.to(device).eval().requires_grad_(False)
    return placed


@contextlib.contextmanager
def _open_tensors(
    folder: WeightFolder, names: dict[str, str], span: Span | None
) -> Iterator[dict[str, Any]]:
    """Lazy tensors by name; block numbers are counted from the span's start."""
    with contextlib.ExitStack() as stack:
        files: dict[str, Any] = {}
        tensors: dict[str, Any] = {}
        for name, file in names.items():
            try:
                if file not in files:
                    opened = safe_open(str(folder.path / file), framework="pt", device="cpu")
                    files[file] = stack.enter_context(opened)
                value = files[file].get_slice(name)
            except (SafetensorError, OSError) as error:
                raise ModelError(f"{folder.path / file}: unreadable: {error}") from error
            tensors[_renumber(name, span)] = value
        yield tensors


class _Watched:
    """A lazy tensor that tells before and after it is read; all else is the tensor's own."""

    def __init__(self, tensor: Any, before: Callable[[], None], after: Callable[[], None]) -> None:
        self._tensor = tensor
        self._before = before
        self._after = after

    def __getitem__(self, key: Any) -> Any:
        self._before()
        value = self._tensor[key]
        self._after()
        return value

    def __getattr__(self, name: str) -> Any:
        return getattr(self._tensor, name)


def _watched(tensors: dict[str, Any], progress: BlockProgress) -> dict[str, Any]:
    """The same tensors, which tell `progress` of the blocks whose last one was read."""
    blocks = {name: match[2] for name in tensors if (match := _BLOCK.match(name))}
    unread: defaultdict[str, set[str]] = defaultdict(set)
    for name, block in blocks.items():
        unread[block].add(name)
    total = len(unread)
    lock = threading.RLock()  # the library reads in several threads

    def report() -> None:
        with lock:
            progress(total - sum(map(bool, unread.values())), total)

    def was_read(name: str) -> None:
        with lock:
            left = unread[blocks[name]]
            left.discard(name)
            if not left:
                report()

    return {
        name: _Watched(tensor, report, functools.partial(was_read, name))
        if name in blocks
        else tensor
        for name, tensor in tensors.items()
    }


def _renumber(name: str, span: Span | None) -> str:
    match = _BLOCK.match(name)
    if span is None or match is None or int(match[2]) not in span:
        return name
    return f"{match[1]}{int(match[2]) - span.start}{match[3]}"


@contextlib.contextmanager
def _quiet_loading() -> Iterator[None]:
    """Keep the library from reporting as unexpected what the cut has left out on purpose."""
    level = library_logging.get_verbosity()
    bars = library_logging.is_progress_bar_enabled()
    library_logging.set_verbosity(logging.ERROR)
    library_logging.disable_progress_bar()
    try:
        yield
    finally:
        library_logging.set_verbosity(level)
        if bars:
            library_logging.enable_progress_bar()
