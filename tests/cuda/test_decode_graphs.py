"""On a GPU: batches and graphs give what the stock modules give session by session."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import transformers
from packaging.version import Version

from swarmd.blocks import Span
from swarmd.compute.block_span import BlockSpan
from swarmd.compute.kv_arena import KvArena
from swarmd.compute.kv_cache import SessionCache
from swarmd.compute.model_folder import open_folder
from swarmd.compute.ragged_batch import Piece
from tests.families import save_tiny

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")

ALL = Span(0, 6)
SPANS = [ALL, Span(2, 6), Span(0, 4), ALL, ALL]
FAMILIES = [
    "llama", "mistral", "qwen3", "gemma2", "gemma3_text", "gpt_oss", "deepseek_v3", "mixtral",
    "gpt2", "gpt_neox", "granite", "bloom",
]  # fmt: skip
GRAPHED = {"llama", "mistral", "qwen3", "gemma2", "gemma3_text", "gpt2", "gpt_neox", "granite"}


def values(tokens: int, seed: int) -> torch.Tensor:
    return torch.randn((1, tokens, 32), generator=torch.Generator().manual_seed(seed))


def plan() -> list[list[tuple[int, int]]]:
    """For each turn and session: where its step starts, relative to its position, and its length.
    Prompts, single tokens, a few at once (speculation), cuts."""
    prompts = [(0, 20), (0, 7), (0, 33), (0, 1), (0, 300)]
    turns = [prompts]
    for turn in range(12):
        turns.append(
            [(-2 if turn == 5 + n else 0, 3 if (turn + n) % 7 == 0 else 1) for n in range(5)]
        )
    return turns


def outputs(blocks: BlockSpan, *, together: bool) -> list[torch.Tensor]:
    arena: KvArena = blocks.new_arena(2048)
    caches: list[SessionCache] = [arena.new_cache(span, 500) for span in SPANS]
    found = []
    for number, turn in enumerate(plan()):
        pieces = []
        for n, (back, tokens) in enumerate(turn):
            start = caches[n].position + back
            caches[n].prepare(start, tokens)
            pieces.append(Piece(caches[n], start, values(tokens, 100 * number + n)))
        groups = [pieces] if together else [[piece] for piece in pieces]
        for group in groups:
            found += [output.cpu() for output in blocks.run(arena, group)]
    return found


@pytest.mark.parametrize("family", FAMILIES)
def test_together_on_the_gpu_is_alone_on_the_cpu(family: str, tmp_path: Path) -> None:
    if family == "gemma2" and Version(transformers.__version__) < Version("5.20"):
        pytest.skip("the stock attention of this version leaves the soft-cap out")
    folder = open_folder(save_tiny(family, tmp_path / family))
    stock = BlockSpan(folder, ALL, dtype="float32")
    if stock.batched:
        stock.batched = False
        stock._attend_by(stock._stock_attention)
    expected = outputs(stock, together=False)
    blocks = BlockSpan(folder, ALL, dtype="float32", device="cuda")
    found = outputs(blocks, together=True)
    for one, other in zip(found, expected, strict=True):
        assert torch.allclose(one, other, atol=2e-4), (one - other).abs().max()
    works = [graphs.works for graphs in blocks._graphs.values()]
    print(family, "batched", blocks.batched, "graphs", works)
    if family in GRAPHED:
        assert blocks.batched
        assert all(works)
