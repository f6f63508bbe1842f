"""With drafts of any quality the tokens are those without, also where peers die or lie."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import Callable, Sequence
from typing import TypeVar

import pytest
from transformers import AutoModelForCausalLM

from swarmd.client.chain_session import ChainSession
from swarmd.client.draft_length import DraftLength, Plan
from swarmd.client.draft_model import DraftModel
from swarmd.client.drafting import Draft, Drafting
from swarmd.client.generate import Withdrawn, decode_events, decode_tokens
from swarmd.client.sampling import Sampler, SamplingConfig
from swarmd.compute.ends import ModelEnds
from swarmd.compute.model_folder import ModelFolder
from tests.chain.answers import NEW_TOKENS, PROMPT, SAMPLING, SPANS
from tests.chain.lies import ALL, GREEDY, Honest, lying
from tests.conftest import Runner
from tests.local_swarm import LocalSwarm

T = TypeVar("T")


class Scripted(Drafting):
    """Drafts that know the answer, and are right as far as `luck` says."""

    def __init__(
        self,
        expected: Sequence[int],
        luck: Callable[[], bool],
        longest: int = 7,
        *,
        ahead: int = 0,
    ) -> None:
        super().__init__(longest)
        self.expected, self.luck = [*PROMPT, *expected], luck
        self.lengths: list[int] = []
        self.goes_ahead = ahead

    @property
    def ahead(self) -> int:
        return self.goes_ahead if self.lengths else 0

    async def draft(self, token_ids: Sequence[int], room: int) -> Draft:
        return self.scripted(len(token_ids), min(room, self._length.longest))

    async def next(self, token_ids: Sequence[int], room: int) -> Draft:
        return self.scripted(len(token_ids), min(room, 1 + self._length.longest))

    def scripted(self, start: int, count: int) -> Draft:
        known = self.expected[start : start + max(0, count)]
        drafted = tuple(token if self.luck() else (token + 1) % 90 for token in known)
        self.lengths.append(len(drafted))
        return Draft(drafted, (), "scripted")


LUCK: dict[str, Callable[[random.Random], bool]] = {
    "always right": lambda rng: True,
    "always wrong": lambda rng: False,
    "now and then right": lambda rng: rng.random() < 0.7,
}


async def drafted_answer(
    ends: ModelEnds,
    session: ChainSession,
    drafting: Drafting,
    sampling: SamplingConfig = SAMPLING,
    before: Callable[[int], None] = lambda token: None,
) -> list[int]:
    tokens = []
    async for token in decode_tokens(
        ends, session, PROMPT, Sampler(sampling),
        max_new_tokens=NEW_TOKENS, eos_token_ids=frozenset(), drafting=drafting,
    ):  # fmt: skip
        tokens.append(token)
        before(len(tokens))
    return tokens


@pytest.mark.parametrize("ahead", [0, 3])
@pytest.mark.parametrize("luck", LUCK)
def test_drafts_of_any_quality_leave_the_answer_as_it_is(
    luck: str,
    ahead: int,
    sampling: SamplingConfig,
    honest: Honest,
    swarm: LocalSwarm,
    ends: ModelEnds,
    run_async: Runner,
) -> None:
    expected = honest(sampling)

    async def work() -> None:
        rng = random.Random(5)
        drafting = Scripted(expected, lambda: LUCK[luck](rng), ahead=ahead)
        async with swarm.running(SPANS), await swarm.session(swarm.peers, max_length=64) as session:
            assert await drafted_answer(ends, session, drafting, sampling) == expected
        steps, found = drafting.statistics.steps, drafting.statistics
        assert found.sent == sum(drafting.lengths)
        if luck == "always right":  # a step for the prompt, then 8 tokens a trip
            assert (steps, found.right) == (3, found.sent)
        elif luck == "always wrong":
            assert (steps, found.right) == (NEW_TOKENS - 1, 0)
        else:
            assert 3 < steps < NEW_TOKENS - 1
        assert found.tokens == NEW_TOKENS - 1
        if luck == "always right" and ahead:
            assert (found.ahead, found.held) == (2, 2)
        elif not ahead:
            assert (found.ahead, found.held) == (0, 0)

    run_async(work())


@pytest.mark.parametrize("ahead", [0, 2])
@pytest.mark.parametrize("seed", range(12))
def test_many_seeds_draw_the_same_tokens(
    seed: int, ahead: int, swarm: LocalSwarm, ends: ModelEnds, honest: Honest, run_async: Runner
) -> None:
    """What is drawn does not hang on the drafts at all, so neither does its distribution."""
    sampling = SamplingConfig(temperature=1.3, top_k=40, repetition_penalty=1.1, seed=seed)
    expected = honest(sampling)

    async def work() -> None:
        rng = random.Random(seed)
        drafting = Scripted(expected, lambda: rng.random() < 0.6, longest=3, ahead=ahead)
        async with swarm.running(SPANS), await swarm.session(swarm.peers, max_length=64) as session:
            assert await drafted_answer(ends, session, drafting, sampling) == expected

    run_async(work())


@pytest.mark.parametrize("ahead", [0, 3])
@pytest.mark.parametrize("hop", [0, 1, 2])
@pytest.mark.parametrize("token", [1, 5, 9, 14, 20])
def test_a_peer_that_dies_among_drafts_changes_nothing(
    hop: int,
    token: int,
    ahead: int,
    swarm: LocalSwarm,
    ends: ModelEnds,
    undisturbed: list[int],
    run_async: Runner,
) -> None:
    async def work() -> None:
        rng = random.Random(token)
        drafting = Scripted(undisturbed, lambda: rng.random() < 0.7, longest=3, ahead=ahead)

        def before(number: int) -> None:
            if number == token:
                swarm.peers[hop].kill()

        async with swarm.running(SPANS + SPANS):
            async with await swarm.session(swarm.peers[:3], max_length=64) as session:
                told = await drafted_answer(ends, session, drafting, before=before)
                assert told == undisturbed
                assert len(session.statistics.recoveries) == 1

    run_async(work())


@pytest.mark.parametrize("ahead", [0, 3])
def test_a_liar_among_drafts_is_found_and_the_answer_redone(
    ahead: int,
    sampling: SamplingConfig,
    honest: Honest,
    swarm: LocalSwarm,
    ends: ModelEnds,
    run_async: Runner,
) -> None:
    expected, first = honest(sampling), len(PROMPT) + 6

    async def work() -> None:
        rng = random.Random(8)
        drafting = Scripted(expected, lambda: rng.random() < 0.7, longest=3, ahead=ahead)
        async with swarm.running(SPANS * 3):
            lying(swarm.peers[1], lambda position: position >= first)
            session = await swarm.session(swarm.peers[:3], max_length=64, checks=ALL)
            told: list[int] = []
            async with session:
                async for event in decode_events(
                    ends, session, PROMPT, Sampler(sampling),
                    max_new_tokens=NEW_TOKENS, eos_token_ids=frozenset(), drafting=drafting,
                ):  # fmt: skip
                    if isinstance(event, Withdrawn):
                        del told[event.kept :]
                    else:
                        told.append(event)
            assert told == expected

    run_async(work())


def test_a_lie_beyond_the_end_of_the_answer_is_none_of_it(
    honest: Honest, swarm: LocalSwarm, ends: ModelEnds, run_async: Runner
) -> None:
    """Drafts and steps put in ahead go on where the text has ended."""
    expected = honest(SAMPLING)
    at, end = next((n, t) for n, t in enumerate(expected) if n > 4 and t not in expected[:n])
    first = len(PROMPT) + at

    async def work() -> None:
        drafting = Scripted(expected, lambda: True, longest=2, ahead=3)
        async with swarm.running(SPANS * 3):
            lying(swarm.peers[1], lambda position: position >= first)
            session = await swarm.session(swarm.peers[:3], max_length=64, checks=ALL)
            async with session:
                events = [
                    event
                    async for event in decode_events(
                        ends, session, PROMPT, Sampler(SAMPLING),
                        max_new_tokens=NEW_TOKENS, eos_token_ids=frozenset([end]),
                        drafting=drafting,
                    )
                ]  # fmt: skip
            assert drafting.statistics.ahead > drafting.statistics.held
            assert events == expected[:at]

    run_async(work())


@pytest.mark.parametrize("ahead", [0, 3])
def test_an_end_of_text_among_the_drafts_ends_the_answer(
    ahead: int, honest: Honest, swarm: LocalSwarm, ends: ModelEnds, run_async: Runner
) -> None:
    expected = honest(SAMPLING)
    end = next(token for n, token in enumerate(expected) if n > 4 and token not in expected[:n])

    async def work() -> None:
        drafting = Scripted(expected, lambda: True, longest=2, ahead=ahead)
        async with swarm.running(SPANS), await swarm.session(swarm.peers, max_length=64) as session:
            tokens = decode_tokens(
                ends, session, PROMPT, Sampler(SAMPLING),
                max_new_tokens=NEW_TOKENS, eos_token_ids=frozenset([end]), drafting=drafting,
            )  # fmt: skip
            assert [token async for token in tokens] == expected[: expected.index(end)]

    run_async(work())


def test_lookups_find_what_a_greedy_answer_repeats(
    honest: Honest, swarm: LocalSwarm, ends: ModelEnds, run_async: Runner
) -> None:
    """The prompt holds the answer, as it does where text is edited."""
    expected = honest(GREEDY)

    async def work() -> None:
        prompt = [*PROMPT, *expected, 88, *PROMPT]
        async with swarm.running(SPANS):
            answers = []
            for drafting in (None, Drafting(7)):
                async with await swarm.session(swarm.peers, max_length=160) as session:
                    tokens = decode_tokens(
                        ends, session, prompt, Sampler(GREEDY),
                        max_new_tokens=NEW_TOKENS, eos_token_ids=frozenset(), drafting=drafting,
                    )  # fmt: skip
                    answers.append([token async for token in tokens])
            assert answers[0] == answers[1]

    run_async(work())


def test_a_draft_model_of_the_same_weights_is_always_right(
    folder: ModelFolder, honest: Honest, monkeypatch: pytest.MonkeyPatch, run_async: Runner
) -> None:
    expected = honest(GREEDY)
    monkeypatch.setattr("swarmd.client.draft_model.SURE", 0.0)  # random weights are never sure
    drafter = DraftModel(AutoModelForCausalLM.from_pretrained(folder.path).eval())

    async def work() -> None:
        at = 0
        while at < len(expected):  # half of each draft is kept: the cache is cut back
            drafted = await drafter.propose([*PROMPT, *expected[:at]], 5)
            assert len(drafted) == 5
            known = expected[at : at + 5]
            assert drafted[: len(known)] == known
            at += 3
        other = await drafter.propose(PROMPT[:5], 2)
        fresh = DraftModel(AutoModelForCausalLM.from_pretrained(folder.path).eval())
        assert other == await fresh.propose(PROMPT[:5], 2)

    run_async(work())


def test_a_draft_model_that_is_unsure_says_nothing(folder: ModelFolder, run_async: Runner) -> None:
    drafter = DraftModel(AutoModelForCausalLM.from_pretrained(folder.path).eval())
    assert run_async(drafter.propose(PROMPT, 5)) == []


class SlowDrafter:
    """A draft model that knows the answer, and takes its time over each token. It must not be asked
    while it is at it."""

    def __init__(self, expected: Sequence[int], rng: random.Random) -> None:
        self.expected, self.rng = [*PROMPT, *expected], rng
        self.at_work = False
        self.cancelled = 0

    async def propose(self, token_ids: Sequence[int], longest: int) -> list[int]:
        assert not self.at_work
        self.at_work = True
        try:
            await asyncio.sleep(0.002 * longest)
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        finally:
            self.at_work = False
        known = self.expected[len(token_ids) : len(token_ids) + longest]
        return [one if self.rng.random() < 0.9 else (one + 1) % 90 for one in known]


@pytest.mark.parametrize("in_threads", [False, True])
def test_a_draft_model_drafts_further_steps_while_one_is_under_way(
    in_threads: bool,
    swarm: LocalSwarm,
    ends: ModelEnds,
    undisturbed: list[int],
    monkeypatch: pytest.MonkeyPatch,
    run_async: Runner,
) -> None:
    monkeypatch.setattr(DraftLength, "plan", lambda self, kind, stage: Plan(2, 2))
    drafter = SlowDrafter(undisturbed, random.Random(4))

    async def run(work: Callable[[], T]) -> T:
        return await asyncio.to_thread(work) if in_threads else work()

    async def work() -> None:
        drafting = Drafting(7, drafter)
        async with swarm.running(SPANS), await swarm.session(swarm.peers, max_length=64) as session:
            whole = session.step

            async def step(start: int, data: bytes, tokens: int) -> bytes:
                """As over a far link, until one was put in behind it that held."""
                before, answer = drafting.statistics.ahead, await whole(start, data, tokens)
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(0 if drafting.statistics.held else 5):
                        while drafting.statistics.ahead == before:
                            await asyncio.sleep(0.001)
                return answer

            monkeypatch.setattr(session, "step", step)
            tokens = decode_tokens(
                ends, session, PROMPT, Sampler(SAMPLING),
                max_new_tokens=NEW_TOKENS, eos_token_ids=frozenset(), drafting=drafting, run=run,
            )  # fmt: skip
            assert [token async for token in tokens] == undisturbed
        assert 0 < drafting.statistics.held <= drafting.statistics.ahead
        assert not drafter.at_work

    run_async(work())


def test_an_answer_that_is_given_up_leaves_no_draft_at_work(
    swarm: LocalSwarm,
    ends: ModelEnds,
    undisturbed: list[int],
    monkeypatch: pytest.MonkeyPatch,
    run_async: Runner,
) -> None:
    monkeypatch.setattr(DraftLength, "plan", lambda self, kind, stage: Plan(2, 3))
    drafter = SlowDrafter(undisturbed, random.Random(4))

    async def work() -> None:
        async with swarm.running(SPANS), await swarm.session(swarm.peers, max_length=64) as session:
            tokens = decode_tokens(
                ends, session, PROMPT, Sampler(SAMPLING),
                max_new_tokens=NEW_TOKENS, eos_token_ids=frozenset(),
                drafting=Drafting(7, drafter),
            )  # fmt: skip
            seen = 0
            with contextlib.suppress(asyncio.CancelledError):
                async for _ in tokens:
                    seen += 1
                    if seen == 5:
                        asyncio.current_task().cancel()  # type: ignore[union-attr]
            assert not drafter.at_work
            held = len(session._bounds.inputs[session._first])
            again = decode_tokens(
                ends, session, [*PROMPT, *undisturbed[:5]], Sampler(SAMPLING),
                max_new_tokens=1, eos_token_ids=frozenset(), held=len(PROMPT),
            )  # fmt: skip
            assert len([token async for token in again]) == 1
            assert len(session._bounds.inputs[session._first]) == len(PROMPT) + 5 <= held

    run_async(work())
