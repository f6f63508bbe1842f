"""Sessions that go on over several calls, are cut back, and grow."""

from __future__ import annotations

import copy
import gc
import re
import threading
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import GenerationConfig, LogitsProcessor

from swarmd.errors import UsageError
from tests.hf.serving import Serving

ROOT = Path(__file__).resolve().parent.parent.parent
ONE = torch.tensor([[3, 14, 15, 9, 26, 5, 35, 8]])
MORE = torch.tensor([[7, 7, 40]])
FAR: dict[str, Any] = {"eos_token_id": 96, "max_new_tokens": 6}


def test_a_dialogue_runs_only_what_is_new(serving: Serving, model: Any, whole: Any) -> None:
    with model.session(max_length=64) as session:
        first = model.generate(ONE, **FAR)
        assert session.position == 13, "the last token was not run yet"
        text = torch.cat([first, MORE], dim=1)
        with serving.tokens_run() as run:
            second = model.generate(text, **FAR)
        assert run.positions == [4, 1, 1, 1, 1, 1]
    assert first.tolist() == whole.generate(ONE, **FAR).tolist()
    assert second.tolist() == whole.generate(text, **FAR).tolist()
    assert serving.comes_to_rest()


def test_a_session_is_cut_back(serving: Serving, model: Any, whole: Any) -> None:
    with model.session(max_length=64) as session:
        model(ONE)
        session.cut(5)
        with serving.tokens_run() as run:
            logits = model(MORE).logits
        assert run.positions == [3]
        assert session.position == 8
        text = torch.cat([ONE[:, :5], MORE], dim=1)
        torch.testing.assert_close(logits, whole(text).logits[:, 5:].detach(), rtol=1e-4, atol=1e-4)
        with pytest.raises(UsageError, match="8 columns"):
            session.cut(9)
        session.crop(-8)
        assert session.position == 0
        with pytest.raises(UsageError, match="negative"):
            session.crop(3)


def test_generate_after_another_text_keeps_what_both_begin_with(
    serving: Serving, model: Any, whole: Any
) -> None:
    with model.session(max_length=64):
        model.generate(ONE, **FAR)
        text = torch.cat([ONE[:, :6], MORE], dim=1)
        with serving.tokens_run() as run:
            found = model.generate(text, num_beams=2, **FAR)
        assert 3 in run.positions, "the first beam has the session's tokens"
    assert found.tolist() == whole.generate(text, num_beams=2, **FAR).tolist()


def test_a_session_ends_at_its_length(model: Any) -> None:
    with model.session(max_length=10) as session:
        model(ONE)
        with pytest.raises(UsageError, match="opened for 10"):
            model(MORE)
        assert session.position == 8, "the step left no trace"
        model(MORE[:, :2])
    with pytest.raises(UsageError, match="256 positions"):
        with model.session(max_length=300):
            pass


def test_calls_outside_leave_a_session_alone(model: Any, whole: Any) -> None:
    with model.session(max_length=64) as session:
        model(ONE)
        model(MORE, use_cache=False)
        inner = model(MORE, past_key_values=model.new_cache()).past_key_values
        assert session.position == 8
        assert inner.position == 3
        with model.session(max_length=9) as nested:
            model(MORE)
            assert nested.position == 3
        assert model.active_session is session
    assert model.active_session is None


def test_a_cache_grows_by_opening_longer_sessions(serving: Serving, model: Any, whole: Any) -> None:
    cache = model(ONE[:, :2], use_cache=True).past_key_values
    assert cache.sessions.max_length == 4
    with serving.tokens_run() as run:
        logits = model(ONE[:, 2:], past_key_values=cache).logits
    assert cache.sessions.max_length == 8
    assert run.positions == [8], "a longer session runs everything again"
    torch.testing.assert_close(logits, whole(ONE).logits[:, 2:].detach(), rtol=1e-4, atol=1e-4)
    cache.close()


def test_a_copied_cache_goes_its_own_way(model: Any, whole: Any) -> None:
    """As the library's pages reuse a prompt's cache for several questions."""
    prompt = model(ONE, use_cache=True).past_key_values
    for question in (MORE, MORE + 5):
        text = torch.cat([ONE, question], dim=1)
        cache = copy.deepcopy(prompt)
        found = model.generate(text, past_key_values=cache, **FAR)
        assert found.tolist() == whole.generate(text, **FAR).tolist()
        assert prompt.position == 8
        cache.close()
    prompt.close()


def test_a_cache_may_hold_more_than_the_text_or_another_one(
    serving: Serving, model: Any, whole: Any
) -> None:
    cache = model(ONE, use_cache=True).past_key_values
    for text in (ONE, ONE[:, :4], torch.cat([ONE[:, :5], MORE], 1)):
        found = model.generate(text, past_key_values=cache, **FAR)
        assert found.tolist() == whole.generate(text, **FAR).tolist()
    with serving.tokens_run() as run:  # what follows, with a mask of all
        cache.cut(5)
        found = model.generate(MORE, past_key_values=cache, attention_mask=torch.ones(1, 8), **FAR)
    assert run.positions[0] == 1, "these very tokens were run before"
    assert found[0, 3:].tolist() == whole.generate(text, **FAR)[0, 8:].tolist()
    cache.close()


def test_the_lines_of_the_page_run(model: Any, whole: Any) -> None:
    page = (ROOT / "docs" / "python.md").read_text(encoding="utf-8")
    names = {
        "torch": torch, "model": model, "question": MORE, "other": ONE, "ids": ONE,
        "input_ids": ONE, "mask": torch.ones_like(ONE),
    }  # fmt: skip
    model.generation_config.eos_token_id = 96
    for heading in ("Calling the model", "Sessions"):
        found = re.search(rf"## {heading}\n.*?```python\n(.*?)```", page, re.DOTALL)
        assert found is not None
        lines = found[1].replace("max_length=512", "max_length=64").replace("=50", "=6")
        exec(lines, names)
    text = torch.cat([names["answer"][:, :20], ONE], dim=1)
    expected = whole(text).logits[:, 20:].detach()
    torch.testing.assert_close(names["logits"], expected, rtol=1e-4, atol=1e-4)


def test_rows_of_a_cache_are_repeated_and_chosen(model: Any, whole: Any) -> None:
    cache = model(torch.cat([ONE, ONE + 1]), use_cache=True).past_key_values
    assert (cache.batch_size, bool(cache), cache.is_compileable) == (2, True, False)
    cache.batch_repeat_interleave(2)
    cache.batch_select_indices(torch.tensor([3, 0]))
    logits = model(torch.tensor([[4], [5]]), past_key_values=cache).logits
    for row, text in zip(logits, ([*(ONE[0] + 1), 4], [*ONE[0], 5]), strict=True):
        expected = whole(torch.tensor([text])).logits[0, -1:].detach()
        torch.testing.assert_close(row, expected, rtol=1e-4, atol=1e-4)
    cache.reset()
    assert cache.batch_size == -1
    cache.close()


def test_a_dropped_cache_closes_its_sessions(serving: Serving, model: Any) -> None:
    cache = model(ONE, use_cache=True).past_key_values
    assert not serving.idle
    del cache
    assert serving.comes_to_rest()


def test_closing_the_model_closes_what_is_open(serving: Serving) -> None:
    with serving.model() as model:
        cache = model(ONE, use_cache=True).past_key_values
        assert not serving.idle
    assert serving.comes_to_rest()
    cache.close()
    cache.cut(3)
    with pytest.raises(UsageError, match="is closed"):
        model(ONE, past_key_values=cache)
    with pytest.raises(UsageError, match="is closed"):
        model.generate(ONE, **FAR)


def test_generate_without_a_cache_leaves_a_session_alone(model: Any, whole: Any) -> None:
    plain = GenerationConfig(use_cache=False, max_new_tokens=2, eos_token_id=96)
    with model.session(max_length=64) as session:
        model(MORE)
        found = model.generate(ONE, generation_config=plain)
        assert session.position == 3
    assert found.tolist() == whole.generate(ONE, generation_config=plain).tolist()


def test_a_dropped_model_ends_its_thread(serving: Serving) -> None:
    model = serving.model()
    model.generate(ONE, **FAR)
    gone = weakref.ref(model)
    del model
    gc.collect()
    assert gone() is None
    assert not [thread for thread in threading.enumerate() if thread.name == "swarmd-hf"]


def test_two_threads_do_not_go_on_in_one_session(serving: Serving, model: Any, whole: Any) -> None:
    inside, leave = threading.Event(), threading.Event()

    class Waiting(LogitsProcessor):
        def __call__(self, _ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
            inside.set()
            assert leave.wait(30)
            return scores

    results: list[list[int]] = []

    def other() -> None:
        results.append(model.generate(ONE, logits_processor=[Waiting()], **FAR).tolist())

    with model.session(max_length=64):
        thread = threading.Thread(target=other)
        thread.start()
        assert inside.wait(30)
        with pytest.raises(UsageError, match="in use by another thread"):
            model.generate(MORE, **FAR)
        with pytest.raises(UsageError, match="in use by another thread"):
            model(MORE)
        alone = model.generate(ONE, past_key_values=model.new_cache(), **FAR)
        leave.set()
        thread.join(30)
    assert results == [whole.generate(ONE, **FAR).tolist()]
    assert alone.tolist() == results[0]


def test_beams_of_one_prompt_are_computed_once(serving: Serving, model: Any, whole: Any) -> None:
    prompt = torch.randint(3, 96, (1, 70), generator=torch.Generator().manual_seed(5))
    found = model.generate(prompt, num_beams=3, **FAR)
    assert found.tolist() == whole.generate(prompt, num_beams=3, **FAR).tolist()
    for peer in serving.swarm.peers:
        assert peer.engine.prefixes is not None
        assert peer.engine.prefixes.found == 2 * 64, "two copies of two pages"
