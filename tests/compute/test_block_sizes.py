"""What blocks and a run of them take, reckoned from shapes, against what they really take."""

from __future__ import annotations

import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from swarmd.blocks import Span
from swarmd.compute.block_sizes import activation_bytes, block_bytes
from swarmd.compute.block_span import BlockSpan
from swarmd.compute.model_folder import open_folder
from swarmd.compute.ragged_batch import Piece
from tests.families import CHARACTERISTIC, N_BLOCKS, save_tiny

ROWS = 192
WHOLE = Span(0, N_BLOCKS)


class Peak(TorchDispatchMode):
    """The most bytes of new tensors that were alive at the same time."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.most = 0
        self._known: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, (tuple, list)) else (result,):
            if isinstance(tensor, torch.Tensor):
                self._watch(tensor.untyped_storage())
        return result

    def _watch(self, storage: torch.UntypedStorage) -> None:
        address, size = storage.data_ptr(), storage.nbytes()
        if address in self._known or not size:
            return
        self._known.add(address)
        self.now += size
        self.most = max(self.most, self.now)

        def gone() -> None:
            self.now -= size
            self._known.discard(address)

        weakref.finalize(storage, gone)


@pytest.mark.parametrize("family", CHARACTERISTIC)
def test_a_run_holds_no_more_than_reckoned(family: str, tmp_path: Path) -> None:
    folder = open_folder(save_tiny(family, tmp_path / "m"))
    blocks = BlockSpan(folder, WHOLE, dtype="float32")
    arena = blocks.new_arena(512)
    cache = arena.new_cache(WHOLE, 512)
    hidden = torch.randn(1, ROWS, blocks.hidden_size)
    for start in (0, ROWS):
        cache.prepare(start, ROWS)
        with Peak() as peak:
            blocks.run(arena, [Piece(cache, start, hidden)])
        assert 0 < peak.most <= activation_bytes(folder.config, "float32", ROWS, 2 * ROWS)


def test_the_largest_block_counts(tmp_path: Path) -> None:
    """The first block of DeepSeek-V3 is dense, the others hold experts."""
    folder = open_folder(save_tiny("deepseek_v3", tmp_path / "m"))
    each = [folder.block_bytes(number) for number in range(folder.n_blocks)]
    assert min(each) < max(each)
    assert block_bytes(folder.config, "float32") == pytest.approx(max(each), rel=0.01)
