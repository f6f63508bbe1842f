"""Turns over one session: the same answers as with a new session for each, also through a loss."""

from __future__ import annotations

import asyncio

import pytest

from swarmd.blocks import Span
from swarmd.client import chat as chat_module
from swarmd.client.chat import Chat, ChatConfig
from swarmd.client.drafting import Drafting
from swarmd.client.sampling import Sampler, SamplingConfig
from swarmd.errors import UsageError
from tests.conftest import Runner
from tests.local_swarm import LocalSwarm

SPANS = [Span(0, 3), Span(3, 6)]
SAID = ["hello", "and then?", "why"]


def new_chat(swarm: LocalSwarm, notes: list[str] | None = None, **config: int) -> Chat:
    return Chat(
        swarm.folder,
        swarm.router,
        swarm.pool,
        Sampler(SamplingConfig()),
        ChatConfig(**{"context": 256, "max_new_tokens": 12, **config}),  # type: ignore[arg-type]
        tell=(notes if notes is not None else []).append,
    )


async def talk(chat: Chat, said: list[str]) -> list[str]:
    texts = []
    for line in said:
        pieces: list[str] = []
        answered = await chat.answer(line, on_text=pieces.append)
        assert answered.text == "".join(pieces)
        texts.append(answered.text)
    return texts


async def one_by_one(swarm: LocalSwarm, said: list[str]) -> list[str]:
    """The same dialogue with a new session for each answer."""
    async with new_chat(swarm) as chat:
        texts = []
        for line in said:
            texts += await talk(chat, [line])
            await chat.close()
    return texts


def test_turns_share_a_session_and_are_exact(swarm: LocalSwarm, run_async: Runner) -> None:
    async def scenario() -> None:
        async with swarm.running(SPANS):
            expected = await one_by_one(swarm, SAID)
            notes: list[str] = []
            async with new_chat(swarm, notes) as chat:
                chat.new_drafting = lambda: Drafting(4)
                answers = []
                for line in SAID:
                    answered = await chat.answer(line, on_text=lambda _: None)
                    answers.append(answered.text)
                    if line != SAID[0]:
                        # the last token of the answer before, and the new turn
                        extra = len(f"\nuser: {line}\nassistant: ")
                        assert answered.sent_tokens <= 1 + extra + 12
                        assert answered.sent_tokens < answered.prompt_tokens
                assert answers == expected
                assert sum(note.startswith("Route found") for note in notes) == 1

    run_async(scenario())


def test_whether_to_move_and_to_have_others_stand_by_is_handed_on(
    swarm: LocalSwarm, run_async: Runner
) -> None:
    async def scenario() -> None:
        async with swarm.running(SPANS), new_chat(swarm, replan=False, standby=True) as chat:
            await talk(chat, SAID[:1])
            assert chat._session is not None
            assert chat._session.config.replan is False
            assert chat._session.config.standby

    run_async(scenario())


def test_a_loss_between_and_in_turns_changes_no_text(swarm: LocalSwarm, run_async: Runner) -> None:
    async def scenario() -> None:
        async with swarm.running([*SPANS, *SPANS]):
            expected = await one_by_one(swarm, SAID)
            notes: list[str] = []
            async with new_chat(swarm, notes) as chat:
                first = await talk(chat, SAID[:1])
                chain = chat._session.chain if chat._session else ()
                victim = next(p for p in swarm.peers if p.info.peer_id == chain[0].peer.peer_id)
                victim.kill()
                assert first + await talk(chat, SAID[1:]) == expected
                lost = [note for note in notes if "replaced by" in note]
                assert len(lost) == 1, notes

    run_async(scenario())


def test_a_stopped_answer_stays_as_far_as_it_came(swarm: LocalSwarm, run_async: Runner) -> None:
    async def scenario() -> None:
        async with swarm.running(SPANS), new_chat(swarm) as chat:
            seen: list[str] = []
            answered = await chat.answer(
                "hello", on_text=seen.append, stopped=lambda: len(seen) >= 3
            )
            assert 3 <= answered.tokens <= 4
            assert len(chat.dialogue.messages) == 2
            following = await chat.answer("more", on_text=lambda _: None)
            assert following.sent_tokens < following.prompt_tokens

    run_async(scenario())


def test_a_cancelled_answer_leaves_the_dialogue_and_frees_the_caches(
    swarm: LocalSwarm, run_async: Runner
) -> None:
    async def scenario() -> None:
        async with swarm.running(SPANS), new_chat(swarm) as chat:
            expected = await talk(chat, SAID)
            chat.dialogue.reset()
            await talk(chat, SAID[:1])
            begun = asyncio.Event()
            task = asyncio.create_task(chat.answer(SAID[1], on_text=lambda _: begun.set()))
            await begun.wait()
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert len(chat.dialogue.messages) == 2
            async with asyncio.timeout(5):
                while any(p.engine.kv_free < p.engine.kv_tokens for p in swarm.peers):
                    await asyncio.sleep(0.01)
            assert await talk(chat, SAID[1:]) == expected[1:]

    run_async(scenario())


def test_a_full_context_is_told_and_undone(swarm: LocalSwarm, run_async: Runner) -> None:
    async def scenario() -> None:
        async with swarm.running(SPANS), new_chat(swarm, context=55) as chat:
            first = await chat.answer("x" * 10, on_text=lambda _: None)
            second = await chat.answer("y", on_text=lambda _: None)
            assert not first.full
            assert second.full
            with pytest.raises(UsageError, match="/undo"):
                await chat.answer("z" * 40, on_text=lambda _: None)
            while chat.dialogue.undo() is not None:
                pass
            assert (await chat.answer("x" * 10, on_text=lambda _: None)).text == first.text

    run_async(scenario())


def test_after_a_long_silence_a_new_session_is_opened(
    swarm: LocalSwarm, run_async: Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario() -> None:
        async with swarm.running(SPANS):
            expected = await one_by_one(swarm, SAID)
            notes: list[str] = []
            async with new_chat(swarm, notes) as chat:
                monkeypatch.setattr(chat_module, "IDLE_LIMIT", -1.0)
                assert await talk(chat, SAID) == expected
                assert sum(note.startswith("Route found") for note in notes) == len(SAID)
                assert not any("lost" in note for note in notes)

    run_async(scenario())
