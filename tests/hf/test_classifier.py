"""Sequence classifiers equal the stock ones."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForSequenceClassification

from swarmd.compute.model_folder import open_folder
from swarmd.errors import ModelError, UsageError
from swarmd.hf.auto import AutoDistributedModelForSequenceClassification
from tests.families import tiny_config
from tests.hf.serving import Serving
from tests.local_swarm import LocalSwarm

ROWS = torch.tensor([[0, 0, 0, 5, 6, 7, 8], [9, 10, 11, 12, 13, 14, 15], [3, 4, 5, 0, 0, 0, 0]])
MASK = (ROWS != 0).long()


@pytest.fixture(scope="module")
def stocks(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, Any]]:
    """Saved classifiers of three labels, by family."""
    made: dict[str, tuple[Path, Any]] = {}
    for family in ("llama", "gpt2"):
        torch.manual_seed(3)
        config = tiny_config(family, num_labels=3)
        model = AutoModelForSequenceClassification.from_config(config, dtype=torch.float32).eval()
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.dim() > 1:
                    parameter.normal_(0.0, 0.15)
        folder = tmp_path_factory.mktemp("classifier") / family
        model.save_pretrained(folder, max_shard_size="60KB")
        made[family] = folder, model
    return made


@pytest.fixture(params=["llama", "gpt2"])
def both(request: pytest.FixtureRequest, stocks: Any) -> Iterator[tuple[Any, Any, Serving]]:
    folder, whole = stocks[request.param]
    with Serving(LocalSwarm(open_folder(folder))).running() as serving:
        with AutoDistributedModelForSequenceClassification.from_pretrained(
            folder, connect=serving.connect
        ) as model:
            yield whole, model, serving


def test_logits_and_losses_are_the_stock_models(both: tuple[Any, Any, Serving]) -> None:
    whole, model, serving = both
    labels = torch.tensor([2, 0, -100])
    positions = (MASK.cumsum(-1) - 1).clamp(min=0)
    expected = whole(ROWS, attention_mask=MASK, position_ids=positions, labels=labels)
    found = model(ROWS, attention_mask=MASK, labels=labels)
    assert found.logits.shape == (3, 3)
    torch.testing.assert_close(found.logits, expected.logits.detach(), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(found.loss, expected.loss.detach(), rtol=1e-4, atol=1e-4)
    assert serving.comes_to_rest()
    one = model(ROWS[1:2], return_dict=False)
    torch.testing.assert_close(one[0], expected.logits[1:2].detach(), rtol=1e-4, atol=1e-4)
    embeds = model.get_input_embeddings()(ROWS)
    found = model(inputs_embeds=embeds, attention_mask=MASK)
    torch.testing.assert_close(found.logits, expected.logits.detach(), rtol=1e-4, atol=1e-4)


def test_several_rows_need_a_padding_token(both: tuple[Any, Any, Serving]) -> None:
    model = both[1]
    model.config.pad_token_id = None
    with pytest.raises(UsageError, match="pad_token_id"):
        model(ROWS)


def test_a_language_model_is_no_classifier(serving: Serving) -> None:
    with pytest.raises(ModelError, match=r"score\.weight"):
        AutoDistributedModelForSequenceClassification.from_pretrained(
            serving.swarm.folder.path, connect=serving.connect
        )
