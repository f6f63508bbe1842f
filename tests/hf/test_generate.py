"""Each way to generate gives the tokens that the stock model gives on one machine."""

from __future__ import annotations

import threading
from typing import Any

import pytest
import torch
from transformers import LogitsProcessor, StoppingCriteria, TextIteratorStreamer
from transformers.generation.streamers import BaseStreamer

from swarmd.blocks import Span
from swarmd.compute.model_folder import open_folder
from swarmd.errors import NoRoute, UsageError
from tests.families import save_tiny
from tests.hf.serving import SPANS, Serving, stock
from tests.local_swarm import LocalSwarm

ONE = torch.tensor([[3, 14, 15, 9, 26, 5, 35, 8, 9, 3, 14, 15]])
LEFT = torch.tensor([[0, 0, 0, 5, 6, 7, 8], [9, 10, 11, 12, 13, 14, 15], [0, 31, 4, 1, 5, 9, 2]])
RIGHT = torch.tensor([[5, 6, 7, 8, 0, 0, 0], [9, 10, 11, 12, 13, 14, 15], [31, 4, 1, 5, 9, 2, 0]])
FAR = {"eos_token_id": 96, "max_new_tokens": 9}
"""Answers that do not end at once."""

MODES: dict[str, dict[str, Any]] = {
    "greedy": {},
    "sampling": {"do_sample": True, "top_k": 20, "temperature": 1.3},
    "nucleus": {"do_sample": True, "top_p": 0.8, "repetition_penalty": 1.2},
    "beams": {"num_beams": 4},
    "beams, several answers": {"num_beams": 4, "num_return_sequences": 3, "length_penalty": 0.5},
    "beam sampling": {"num_beams": 3, "do_sample": True},
    "several samples": {"do_sample": True, "num_return_sequences": 3},
    "no repetition": {"no_repeat_ngram_size": 2, "min_new_tokens": 5},
    "prompt lookup": {"prompt_lookup_num_tokens": 3},
    "guidance": {"guidance_scale": 1.5},
    "a prompt in chunks": {"prefill_chunk_size": 5},
    "no cache": {"use_cache": False, "max_new_tokens": 3},
}


def same(whole: Any, model: Any, inputs: torch.Tensor, **options: Any) -> torch.Tensor:
    """The tokens of both, which are equal."""
    options = FAR | options
    torch.manual_seed(11)
    expected = whole.generate(inputs, **options)
    torch.manual_seed(11)
    found: torch.Tensor = model.generate(inputs, **options)
    assert found.tolist() == expected.tolist()
    return found


@pytest.mark.parametrize("mode", MODES)
def test_every_mode_equals_the_stock_model(
    mode: str, serving: Serving, model: Any, whole: Any
) -> None:
    found = same(whole, model, ONE, **MODES[mode])
    assert len(set(found[0].tolist())) > 8, "an answer that repeats itself proves little"
    assert serving.comes_to_rest(), "sessions are left at the peers"


@pytest.mark.parametrize("mode", ["greedy", "sampling", "beams"])
def test_a_padded_batch_equals_the_stock_model(
    mode: str, serving: Serving, model: Any, whole: Any
) -> None:
    same(whole, model, LEFT, attention_mask=(LEFT != 0).long(), **MODES[mode])
    assert serving.comes_to_rest()


def test_padding_on_the_right_is_as_good(model: Any, whole: Any) -> None:
    mask = (RIGHT != 0).long()
    found = model.generate(RIGHT, attention_mask=mask, **FAR)
    for row, prompt in zip(found, RIGHT, strict=True):
        alone = whole.generate(prompt[prompt != 0][None], **FAR)
        assert row[7:].tolist() == alone[0, int((prompt != 0).sum()) :].tolist()


def test_an_assistant_drafts(serving: Serving, model: Any, whole: Any) -> None:
    with serving.tokens_run() as plain:
        same(whole, model, ONE)
    with serving.tokens_run() as assisted:
        same(whole, model, ONE, assistant_model=whole)
    assert len(assisted.positions) < len(plain.positions) - 3, "drafts saved no trips"
    same(whole, model, ONE, assistant_model=whole, do_sample=True)


def test_processors_criteria_and_streamers_are_the_librarys(model: Any, whole: Any) -> None:
    class Even(LogitsProcessor):
        def __call__(self, _ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
            scores[:, 1::2] = -torch.inf  # in place, as some of the library's do
            return scores

    class Long(StoppingCriteria):
        def __call__(self, ids: torch.Tensor, _scores: Any, **_: Any) -> torch.Tensor:
            return torch.full((len(ids),), ids.shape[1] >= 16)

    class Heard(BaseStreamer):
        def __init__(self) -> None:
            self.tokens: list[int] = []
            self.ended = False

        def put(self, value: torch.Tensor) -> None:
            self.tokens += value.flatten().tolist()

        def end(self) -> None:
            self.ended = True

    heard = Heard()
    options: dict[str, Any] = {"logits_processor": [Even()], "stopping_criteria": [Long()]}
    expected = whole.generate(ONE, **FAR, **options)
    found = model.generate(ONE, streamer=heard, **FAR, **options)
    assert found.tolist() == expected.tolist()
    assert found.shape[1] == 16
    assert all(token % 2 == 0 for token in found[0, 12:].tolist())
    assert heard.ended
    assert heard.tokens == found[0].tolist()


def test_a_streamer_is_read_while_another_thread_generates(model: Any, whole: Any) -> None:
    class Spelling:
        def decode(self, ids: list[int], **_: Any) -> str:
            return "".join(f"{int(one)} " for one in ids)

    streamer: Any = TextIteratorStreamer(Spelling(), skip_prompt=True, timeout=60)
    thread = threading.Thread(
        target=model.generate, args=(ONE,), kwargs={"streamer": streamer, **FAR}
    )
    thread.start()
    text = "".join(streamer)
    thread.join()
    expected = whole.generate(ONE, **FAR)[0, 12:].tolist()
    assert [int(word) for word in text.split()] == expected


def test_what_generate_returns_on_request(model: Any, whole: Any) -> None:
    asked = {"return_dict_in_generate": True, "output_scores": True, "output_hidden_states": True}
    expected = whole.generate(ONE, **FAR, **asked)
    found = model.generate(ONE, **FAR, **asked)
    for ours, theirs in zip(found.scores, expected.scores, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
    for ours, theirs in zip(found.hidden_states, expected.hidden_states, strict=True):
        for state, block in zip(ours, (0, 2, 5, 6), strict=True):
            torch.testing.assert_close(state, theirs[block], rtol=1e-4, atol=1e-4)
    again = model.generate(found.sequences, past_key_values=found.past_key_values, **FAR)
    assert again.tolist() == whole.generate(found.sequences, **FAR).tolist()
    found.past_key_values.close()


def test_beams_run_little_more_than_their_own_tokens(
    serving: Serving, model: Any, whole: Any
) -> None:
    with serving.tokens_run() as run:
        same(whole, model, ONE, num_beams=4)
    least = 4 * (ONE.shape[1] + 8)
    assert run.total < 1.5 * least, "beams that swap were run again"


@pytest.mark.parametrize("family", ["gpt2", "gemma2"])
def test_other_families(family: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = open_folder(save_tiny(family, tmp_path_factory.mktemp("hf") / family))
    whole = stock(folder)
    halves = [Span(0, 3), Span(3, 6)]
    with Serving(LocalSwarm(folder)).running(halves) as serving, serving.model() as model:
        same(whole, model, LEFT, attention_mask=(LEFT != 0).long())
        embeds = whole.get_input_embeddings()(ONE)
        same(whole, model, None, inputs_embeds=embeds)  # type: ignore[arg-type]


class Killing(LogitsProcessor):
    """Kills the peers that serve given hops, between two steps: each from a number of calls on."""

    def __init__(self, serving: Serving, kills: dict[int, Span]) -> None:
        self.serving = serving
        self.kills = kills
        self.calls = 0

    def __call__(self, _ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        for peer in self.serving.swarm.peers:
            due = [call for call, span in self.kills.items() if span == peer.engine.blocks.span]
            if due and due[0] <= self.calls and peer.alive and peer.server.open_sessions:
                del self.kills[due[0]]
                self.serving.kill(peer)
        self.calls += 1
        return scores


@pytest.mark.parametrize(
    ("mode", "inputs"),
    [("greedy", ONE), ("prompt lookup", ONE), ("sampling", LEFT), ("beams", LEFT)],
    ids=["greedy", "prompt lookup", "sampled batch", "beams of a batch"],
)
def test_killed_peers_change_nothing(
    mode: str, inputs: torch.Tensor, swarm: LocalSwarm, whole: Any
) -> None:
    options: dict[str, Any] = {**FAR, **MODES[mode], "attention_mask": (inputs != 0).long()}
    torch.manual_seed(11)
    expected = whole.generate(inputs, **options)
    with Serving(swarm).running(SPANS + SPANS) as serving, serving.model() as model:
        killing = Killing(serving, {2: SPANS[1], 4: SPANS[0], 6: SPANS[2]})
        torch.manual_seed(11)
        found = model.generate(inputs, logits_processor=[killing], **options)
        assert found.tolist() == expected.tolist()
        assert not killing.kills, "not every kill struck a peer that served"


def test_blocks_without_a_peer_are_an_error_and_the_model_lives_on(
    serving: Serving, model: Any, whole: Any
) -> None:
    killing = Killing(serving, {3: SPANS[1]})
    with pytest.raises(NoRoute, match="2:5"):
        model.generate(ONE, logits_processor=[killing], **FAR)
    with pytest.raises(NoRoute):
        model.generate(ONE, **FAR)


def test_caches_of_other_kinds_are_refused(model: Any, whole: Any) -> None:
    with pytest.raises(UsageError, match="cache_implementation"):
        model.generate(ONE, cache_implementation="static", max_new_tokens=2)
    with pytest.raises(UsageError, match="peers batch"):
        model.generate_batch([[3, 4]])
    theirs = whole(ONE, use_cache=True).past_key_values
    with pytest.raises(UsageError, match="not of this model"):
        model.generate(ONE, past_key_values=theirs, max_new_tokens=2)
    ours = model(ONE, use_cache=True).past_key_values
    with pytest.raises(UsageError, match="leave one of them out"):
        model.generate(ONE, past_key_values=ours, use_cache=False, max_new_tokens=2)
    with pytest.raises(UsageError, match="distributed model it is of"):
        whole(ONE, past_key_values=ours)
