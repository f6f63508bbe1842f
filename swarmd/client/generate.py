"""Generation: embeddings and head here, the blocks in the swarm."""

from __future__ import annotations

import contextlib
import time
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass, field
from functools import partial

from swarmd.client.drafting import Draft, Drafting
from swarmd.client.forward import Run, embed, last_logits, run_here
from swarmd.client.sampling import Sampler
from swarmd.client.session import Session
from swarmd.client.steps_ahead import StepsAhead
from swarmd.compute.ends import ModelEnds
from swarmd.errors import OutputWithdrawn, UsageError

__all__ = [
    "GenerationTimes",
    "Withdrawn",
    "decode_events",
    "decode_tokens",
]


@dataclass(slots=True)
class GenerationTimes:
    """Seconds, on `time.perf_counter`. `tokens` are the times between tokens, the first aside."""

    first_token: float = 0.0
    tokens: list[float] = field(default_factory=list)

    @property
    def tokens_per_second(self) -> float:
        total = sum(self.tokens)
        return len(self.tokens) / total if total else 0.0


@dataclass(frozen=True, slots=True)
class Withdrawn:
    """Event: a spot check found a lie. Of the tokens given out only the first `kept` hold; those
    after them are given out anew. `reason` is for people."""

    kept: int
    reason: str


async def decode_events(
    ends: ModelEnds,
    session: Session,
    prompt_ids: list[int],
    sampler: Sampler,
    *,
    max_new_tokens: int,
    eos_token_ids: frozenset[int],
    times: GenerationTimes | None = None,
    stopped: Callable[[], bool] = lambda: False,
    drafting: Drafting | None = None,
    run: Run = run_here,
    held: int = 0,
) -> AsyncGenerator[int | Withdrawn, None]:
    """New token ids, one by one, until an end-of-sequence token (not given out), the limit, or
    `stopped()` after a token. Ends when the session's spot checks are done; a lie that they find
    is a :class:`Withdrawn`, after which the answer goes on as if it had not been told.

    With `drafting`, a step carries drafted tokens along. Each token is chosen from the model's own
    logits with the same draw as without, and a draft counts only as far as it equals what was
    chosen: so the tokens are the same ones, also when they are sampled. Positions of wrong drafts
    are cut back by the start of the next step. So are steps that were put in behind one before it
    was answered (:class:`StepsAhead`).

    The session may hold the first `held` tokens of the prompt already, from an answer before: then
    only the others are sent. What it holds beyond them is cut.

    Raises ValueError where `held` leaves nothing of the prompt, UsageError for a session that is
    too short, and what :meth:`ChainSession.step` raises.
    """
    if len(prompt_ids) + max_new_tokens > session.max_length:
        raise UsageError(
            f"prompt of {len(prompt_ids)} and {max_new_tokens} new tokens are more than the "
            f"session's {session.max_length}"
        )
    if not 0 <= held < len(prompt_ids):
        raise ValueError(f"{held} of {len(prompt_ids)} tokens are held: one has to be sent")
    times = times or GenerationTimes()
    n_prompt, token_ids, position = len(prompt_ids), list(prompt_ids), held
    stamps = [time.perf_counter()]
    draws = [sampler.state()]  # before each token, to draw it again the same way
    ahead = StepsAhead(ends, session, drafting, run)
    done = False
    while True:
        try:
            left = max_new_tokens - (len(token_ids) - n_prompt)
            if done or left <= 0:
                await session.settle(position)  # outputs before it gave the tokens
                return
            draft, went_on = ahead.take(), True
            if draft is None:
                draft, went_on = Draft(), False
                if drafting is not None and position >= n_prompt:
                    draft = await drafting.draft(token_ids, left - 1)
            began = time.perf_counter()
            inputs = [*token_ids[position:], *draft.tokens]
            data = await embed(ends, inputs, position, run)
            room = left - 1 - len(draft.tokens)
            sent = time.perf_counter()
            raw = await ahead.step(position, data, len(inputs), [*token_ids, *draft.tokens], room)
            came = time.perf_counter()
            rows = 1 + len(draft.tokens)
            logits = await last_logits(ends, raw, len(inputs), rows, run)
        except OutputWithdrawn as lie:
            position = lie.position
            kept = max(0, position + 1 - n_prompt)  # the output at p gave the token at p + 1
            del token_ids[n_prompt + kept :], stamps[kept + 1 :], draws[kept + 1 :]
            del times.tokens[max(0, kept - 1) :]  # what was redone counts for the next token
            sampler.restore(draws[kept])
            done = False
            ahead.clear()
            yield Withdrawn(kept, session.story[-1] if session.story else str(lie))
            continue
        decoding, known, spent, choosing = position >= n_prompt, len(token_ids), 0.0, 0.0
        for row, drafted in zip(logits, (*draft.tokens, ahead.first), strict=True):
            position = len(token_ids)
            token = await run(partial(sampler.choose, token_ids, row))
            stamps.append(time.perf_counter())
            if not spent:  # not what the reader takes between tokens
                spent, choosing = stamps[-1] - began, stamps[-1] - came + sent - began
            if len(stamps) == 2:
                times.first_token = stamps[1] - stamps[0]
            else:
                times.tokens.append(stamps[-1] - stamps[-2])
            if token in eos_token_ids:
                stamps.pop()
                done = True
                break
            token_ids.append(token)
            if session.checks is not None:
                draws.append(sampler.state())
            yield token
            done = stopped()
            if done or token != drafted:
                break
        if drafting is not None and decoding and len(token_ids) > known:
            drafting.done(
                draft, token_ids[known:], spent,
                choosing=choosing, went_on=went_on, following=ahead.following,
            )  # fmt: skip
        if done or len(token_ids) - known < rows or token_ids[-1] != ahead.first:
            ahead.clear()


async def decode_tokens(
    ends: ModelEnds,
    session: Session,
    prompt_ids: list[int],
    sampler: Sampler,
    *,
    max_new_tokens: int,
    eos_token_ids: frozenset[int],
    times: GenerationTimes | None = None,
    drafting: Drafting | None = None,
    stopped: Callable[[], bool] = lambda: False,
    run: Run = run_here,
    held: int = 0,
) -> AsyncGenerator[int, None]:
    """`decode_events` of a session without spot checks, whose tokens are never withdrawn."""
    if session.checks is not None:
        raise ValueError("a session with spot checks withdraws tokens: use decode_events")
    events = decode_events(
        ends, session, prompt_ids, sampler,
        max_new_tokens=max_new_tokens, eos_token_ids=eos_token_ids, times=times,
        stopped=stopped, drafting=drafting, run=run, held=held,
    )  # fmt: skip
    async with contextlib.aclosing(events):
        async for event in events:
            if isinstance(event, int):
                yield event
