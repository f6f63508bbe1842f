"""Calling the model: logits, padding, hidden states, embeddings, losses, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from swarmd.compute.model_folder import ModelFolder
from swarmd.errors import NoRoute, UsageError
from tests.hf.serving import Serving
from tests.local_swarm import LocalSwarm

ONE = torch.tensor([[3, 14, 15, 9, 26, 5, 35, 8]])
PROMPTS = [[5, 6, 7, 8], [9, 10, 11, 12, 13, 14, 15], [31]]


def padded(side: str) -> tuple[torch.Tensor, torch.Tensor]:
    """The prompts as one batch and its mask."""
    width = max(map(len, PROMPTS))
    rows, masks = [], []
    for prompt in PROMPTS:
        pads, ones = [0] * (width - len(prompt)), [1] * len(prompt)
        rows.append(pads + prompt if side == "left" else prompt + pads)
        masks.append(pads + ones if side == "left" else ones + pads)
    return torch.tensor(rows), torch.tensor(masks)


def close(a: torch.Tensor, b: torch.Tensor) -> None:
    torch.testing.assert_close(a, b.detach(), rtol=1e-4, atol=1e-4)


def test_logits_are_the_stock_models(serving: Serving, model: Any, whole: Any) -> None:
    output = model(ONE)
    close(output.logits, whole(ONE).logits)
    assert output.past_key_values is None
    assert serving.comes_to_rest()
    close(model(ONE, logits_to_keep=2).logits, whole(ONE).logits[:, -2:])
    close(model(ONE, logits_to_keep=torch.tensor([1, 3])).logits, whole(ONE).logits[:, [1, 3]])
    close(model(ONE, return_dict=False)[0], whole(ONE).logits)


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_changes_no_row(side: str, model: Any, whole: Any) -> None:
    rows, mask = padded(side)
    logits = model(rows, attention_mask=mask).logits
    for row, real, prompt in zip(logits, mask, PROMPTS, strict=True):
        close(row[real.bool()], whole(torch.tensor([prompt])).logits[0])


def test_a_cache_goes_on(serving: Serving, model: Any, whole: Any) -> None:
    rows, mask = padded("left")
    cache = model(rows, attention_mask=mask, use_cache=True).past_key_values
    assert cache.get_seq_length() == 7
    more = torch.tensor([[4, 5], [6, 7], [8, 9]])
    with serving.tokens_run() as run:
        logits = model(more, past_key_values=cache).logits
    assert run.positions == [2, 2, 2]
    for row, prompt, rest in zip(logits, PROMPTS, more.tolist(), strict=True):
        close(row, whole(torch.tensor([prompt + rest])).logits[0, -2:])
    assert not serving.idle
    cache.close()
    assert serving.comes_to_rest()
    cache = model(ONE, use_cache=True).past_key_values
    cache.close()
    assert serving.comes_to_rest()
    close(
        model(ONE[:, :1], past_key_values=cache).logits[:, -1],
        whole(torch.cat([ONE, ONE[:, :1]], 1)).logits[:, -1],
    )
    cache.close()


def test_hidden_states_at_the_boundaries_of_hops(model: Any, whole: Any) -> None:
    rows, mask = padded("left")
    ours = model(rows, attention_mask=mask, output_hidden_states=True)
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    theirs = whole(rows, attention_mask=mask, position_ids=positions, output_hidden_states=True)
    assert ours.hop_boundaries == (0, 2, 5, 6)
    assert len(ours.hidden_states) == 4
    for block, state in zip(ours.hop_boundaries, ours.hidden_states, strict=True):
        close(state[mask.bool()], theirs.hidden_states[block][mask.bool()])


def test_embeddings_in_the_place_of_tokens(model: Any, whole: Any) -> None:
    embeds = whole.get_input_embeddings()(ONE).detach()
    close(model.get_input_embeddings()(ONE), embeds)
    cache = model(inputs_embeds=embeds[:, :5], use_cache=True).past_key_values
    close(model(ONE[:, 5:], past_key_values=cache).logits, whole(ONE).logits[:, 5:])
    cache.close()  # what follows runs embeddings and tokens again, together
    close(
        model(ONE[:, :1], past_key_values=cache).logits[:, -1],
        whole(torch.cat([ONE, ONE[:, :1]], 1)).logits[:, -1],
    )
    cache.close()


def test_embeddings_of_a_session_are_not_taken_for_earlier_ones(model: Any, whole: Any) -> None:
    first, second = (whole.get_input_embeddings()(ids).detach() for ids in (ONE, ONE + 1))
    with model.session(max_length=32) as session:
        model(inputs_embeds=first)
        session.cut(0)
        model(ONE)
        session.cut(0)
        close(model(inputs_embeds=second).logits, whole(ONE + 1).logits)


def test_the_loss_is_the_stock_models(model: Any, whole: Any) -> None:
    close(model(ONE, labels=ONE).loss, whole(ONE, labels=ONE).loss)


def test_parameters_are_those_of_the_ends(model: Any, whole: Any) -> None:
    assert model.device.type == "cpu"
    assert model.dtype == torch.float32
    blocks = sum(p.numel() for p in whole.model.layers.parameters())
    ours = {id(p): p.numel() for p in model.parameters()}
    assert sum(ours.values()) == sum(p.numel() for p in whole.parameters()) - blocks
    assert model.config.num_hidden_layers == 6
    assert model.eval() is model
    assert model.to("cpu") is model


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "nothing": ({}, "either input_ids or inputs_embeds"),
    "both": ({"input_ids": ONE, "inputs_embeds": torch.zeros(1, 8, 32)}, "either"),
    "an empty row": ({"input_ids": ONE[:, :0]}, "neither is empty"),
    "fractions": ({"input_ids": ONE.float()}, "tokens are integers"),
    "a narrow embedding": ({"inputs_embeds": torch.zeros(1, 8, 31)}, "32"),
    "one dimension": ({"input_ids": ONE[0]}, "rows, tokens"),
    "an unknown word": ({"input_ids": ONE + 90}, r"0\.\.96"),
    "a negative word": ({"input_ids": -ONE}, r"0\.\.96"),
    "attentions": ({"input_ids": ONE, "output_attentions": True}, "peers"),
    "a mask of masks": ({"input_ids": ONE, "attention_mask": torch.ones(1, 1, 8, 8)}, "is .1, 8"),
    "positions": ({"input_ids": ONE, "position_ids": torch.arange(1, 9)[None]}, "leave them out"),
    "too long": ({"input_ids": torch.ones(1, 257, dtype=torch.long)}, "256 positions"),
    "gradients": ({"inputs_embeds": torch.zeros(1, 8, 32, requires_grad=True)}, "no_grad"),
}


def test_what_cannot_be_is_refused(model: Any) -> None:
    for arguments, reason in REFUSED.values():
        with pytest.raises(UsageError, match=reason):
            model(**arguments)


def test_what_a_distributed_model_cannot_become(model: Any, tmp_path: Any) -> None:
    with pytest.raises(UsageError, match="inference"):
        model.train()
    with pytest.raises(UsageError, match="saved"):
        model.save_pretrained(tmp_path)
    with pytest.raises(UsageError, match="stays on the CPU"):
        model.to(torch.bfloat16)
    with pytest.raises(UsageError, match="stays on the CPU"):
        model.to("meta")
    with pytest.raises(UsageError, match="position_ids out"):
        model.generate(ONE, position_ids=torch.arange(8)[None])


def test_rows_and_masks_of_a_cache_stay_the_same(model: Any) -> None:
    rows, mask = padded("left")
    cache = model(rows, attention_mask=mask, use_cache=True).past_key_values
    with pytest.raises(UsageError, match="1 rows for a cache of 3"):
        model(ONE[:, :1], past_key_values=cache)
    other = torch.ones(3, 8, dtype=torch.long)
    with pytest.raises(UsageError, match="start anew"):
        model(torch.tensor([[1], [2], [3]]), attention_mask=other, past_key_values=cache)
    cache.close()


def test_bfloat16_peers_make_a_bfloat16_model(folder: ModelFolder, whole: Any) -> None:
    with Serving(LocalSwarm(folder, dtype="bfloat16")).running() as serving:
        with serving.model() as model:
            output = model(ONE, output_hidden_states=True)
            assert {state.dtype for state in output.hidden_states} == {torch.bfloat16}
            assert output.logits.dtype == model.dtype == torch.bfloat16
            expected = whole(ONE).logits.detach()
            error = (output.logits.float() - expected).abs().max() / expected.abs().max()
            assert 0 < error < 0.05
            found = model.generate(ONE, max_new_tokens=3, eos_token_id=96)
            assert found.shape == (1, 11)


def test_options_of_from_pretrained(serving: Serving) -> None:
    with serving.model(dtype=torch.float32, quantization="one") as model:
        assert model.dtype == torch.float32
    with pytest.raises(NoRoute, match="there is one in float32"):
        serving.model(dtype="bfloat16")
    for wrong in ({"dtype": "int3"}, {"quantization": "int3"}, {"wait": -1}, {"peers": "a:1"}):
        with pytest.raises(UsageError):
            serving.model(**wrong)
