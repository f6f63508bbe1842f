"""Every decoder-only family of the library works as the stock model does, or is refused in time."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NoReturn

import pytest
import torch
from transformers import AutoModelForCausalLM

from scripts.make_families_docs import PAGE, documented, make_page
from swarmd.blocks import Span
from swarmd.compute import dry_run
from swarmd.compute import family as facts
from swarmd.compute.cut_model import layer_stack
from swarmd.compute.dry_run import check_can_be_cut
from swarmd.compute.family import Family
from swarmd.compute.model_folder import open_folder
from swarmd.compute.weights import load_part
from swarmd.errors import UnsupportedModel
from tests.families import FAMILIES, save_tiny, stock_config, tiny_config
from tests.family_walk import TOLERANCE, is_exact, walk

PAGE_TEXT = PAGE.read_text(encoding="utf-8")
AT_LEAST = {
    "llama", "mistral", "mixtral", "qwen2", "qwen3", "qwen3_moe", "gemma", "gemma2", "gemma3_text",
    "phi", "phi3", "bloom", "falcon", "gpt2", "gpt_neox", "gptj", "opt", "olmo2", "granite",
    "cohere", "cohere2", "starcoder2", "stablelm", "deepseek_v3", "gpt_oss", "glm4", "smollm3",
    "llama4_text",
}  # fmt: skip
"""What swarmd promises to run."""
FUSED = ["mixtral", "deepseek_v3", "gpt_oss", "qwen3_moe", "granitemoe", "llama4_text", "jetmoe"]
"""Families whose weights the library stacks, splits or renames when it reads them."""


VARIANTS: list[tuple[str, dict[str, Any]]] = [
    ("falcon", {"alibi": True}),
    ("falcon", {"new_decoder_architecture": True, "num_kv_heads": 2}),
    ("gpt2", {"scale_attn_by_inverse_layer_idx": True}),
    ("opt", {"do_layer_norm_before": False}),
    ("qwen2", {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 3}),
    ("qwen3_moe", {"mlp_only_layers": [1, 4]}),
    ("llama", {"tie_word_embeddings": True}),
    ("llama4_text", {"attn_temperature_tuning": False}),
]
LONGROPE: dict[str, Any] = {
    "original_max_position_embeddings": 64,
    "rope_parameters": {
        "rope_type": "longrope",
        "rope_theta": 10000.0,
        "original_max_position_embeddings": 64,
        "short_factor": [1.0, 1.1, 1.2, 1.3],
        "long_factor": [4.0, 5.0, 6.0, 7.0],
    },
}


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Tiny matrices gain nothing from a second core."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_gives_what_the_stock_model_gives(family: str) -> None:
    found = walk(family)
    assert found.error < TOLERANCE
    assert found.tokens, "greedy decoding took another way"
    if found.together is not None:
        assert found.together < TOLERANCE
    reckoned, stored = found.kv_bytes
    assert reckoned == stored
    assert documented(PAGE_TEXT)[family] == (found.together is not None), (
        "docs/families.md is stale: run scripts/make_families_docs.py"
    )


@pytest.mark.parametrize(("family", "options"), VARIANTS)
def test_an_unusual_config_gives_what_the_stock_model_gives(
    family: str, options: dict[str, Any]
) -> None:
    assert is_exact(walk(family, **options))


def test_longrope_is_served_up_to_where_it_changes(tmp_path: Path) -> None:
    """The walk's sessions of 64 tokens stay below; nobody can open a longer one."""
    assert is_exact(walk("phi3", **LONGROPE))
    folder = open_folder(save_tiny("phi3", tmp_path / "m", **LONGROPE))
    assert folder.config["max_position_embeddings"] == 256
    assert folder.max_positions == 64


def test_the_page_is_what_would_be_written() -> None:
    """So every causal model of the library works or is refused with the reason on the page."""
    working = documented(PAGE_TEXT)
    assert set(working) == set(FAMILIES)
    assert set(working) >= AT_LEAST
    assert make_page(working) == PAGE_TEXT, "run scripts/make_families_docs.py"


@pytest.mark.parametrize(
    "family", ["mamba", "jamba", "deepseek_v32", "gemma3n_text", "bert", "bart"]
)
@pytest.mark.parametrize("span", [Span(0, 1), None])
def test_a_refusal_comes_before_any_weight_is_read(family: str, span: Span | None) -> None:
    def read(*_args: object) -> NoReturn:
        raise AssertionError("the weights were looked at")

    folder: Any = SimpleNamespace(
        name=family, config=stock_config(family), block_tensors=read, client_tensors=read
    )
    with pytest.raises(UnsupportedModel):
        load_part(folder, span, dtype="float32")


@pytest.mark.parametrize("family", facts.FAMILIES)
def test_without_its_facts_a_family_is_refused(
    family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The table cannot lack an entry in silence: what it says is what a trial would miss."""
    raw = stock_config(family) if family == "moshi" else tiny_config(family).to_dict()
    fact = facts.FAMILIES[family]
    dry_run._stored_shapes.cache_clear()
    if fact.refused:
        with pytest.raises(UnsupportedModel, match="window"):
            check_can_be_cut(raw)
        return
    monkeypatch.setattr(facts, "FAMILIES", {family: Family(projections=fact.projections)})
    with pytest.raises(UnsupportedModel, match=r"belongs to no block|changes the hidden states"):
        check_can_be_cut(raw)
    dry_run._stored_shapes.cache_clear()


@pytest.mark.parametrize("family", FUSED)
def test_a_part_reads_only_its_own_tensors(family: str, tmp_path: Path) -> None:
    path = save_tiny(family, tmp_path / family)
    whole = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
    owner, name = layer_stack(whole)
    folder = open_folder(path)
    span = Span(2, 4)
    mine = folder.files_for(folder.block_tensors(span))
    assert len(mine) < len(folder.files)
    for file in folder.files.keys() - mine:
        (path / file).unlink()
    part = load_part(folder, span, dtype="float32")
    part_owner, _ = layer_stack(part)
    kept = list(getattr(part_owner, name))
    assert len(kept) == 2
    for block, stock in zip(kept, list(getattr(owner, name))[2:4], strict=True):
        expected = stock.state_dict()
        assert block.state_dict().keys() == expected.keys()
        for key, value in block.state_dict().items():
            assert torch.equal(value, expected[key]), key
