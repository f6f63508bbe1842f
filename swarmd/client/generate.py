"""Generation: embeddings and head here, the blocks in the swarm."""

from __future__ import annotations

import contextlib
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Protocol, TypeVar

import torch

from swarmd.client.drafting import Draft, Drafting
from swarmd.client.sampling import Sampler
from swarmd.client.session import Session
from swarmd.compute.ends import ModelEnds
from swarmd.errors import OutputWithdrawn, UsageError

__all__ = [
    "GenerationTimes",
    "Run",
    "Withdrawn",
    "decode_events",
    "decode_tokens",
    "forward",
    "forward_last",
    "run_here",
]

T = TypeVar("T")


class Run(Protocol):
    """Where embedding, head and the choice of tokens are computed."""

    def __call__(self, work: Callable[[], T], /) -> Awaitable[T]: ...


async def run_here(work: Callable[[], T], /) -> T:
    """On the event loop: right for a program that has but one answer to care for."""
    return work()


@dataclass(slots=True)
class GenerationTimes:
    """Seconds, on `time.perf_counter`. `tokens` are the times between tokens, the first aside."""

    first_token: float = 0.0
    tokens: list[float] = field(default_factory=list)

    @property
    def tokens_per_second(self) -> float:
        total = sum(self.tokens)
        return len(self.tokens) / total if total else 0.0


async def forward(
    ends: ModelEnds,
    session: Session,
    token_ids: list[int],
    start: int,
    run: Run = run_here,
) -> torch.Tensor:
    """Logits `(vocabulary,)` after the last of `token_ids`, which stand at positions from `start`.

    Raises what :meth:`ChainSession.step` raises.
    """
    return (await forward_last(ends, session, token_ids, start, 1, run))[0]


async def forward_last(
    ends: ModelEnds,
    session: Session,
    token_ids: list[int],
    start: int,
    count: int,
    run: Run = run_here,
) -> torch.Tensor:
    """As :func:`forward`, after each of the last `count` tokens: `(count, vocabulary)`."""

    def embed() -> bytes:
        hidden = ends.embed(torch.tensor([token_ids]), start)
        return hidden.contiguous().view(torch.uint8).numpy().tobytes()

    data = await run(embed)
    raw = await session.step(start, data, len(token_ids))
    last = bytearray(raw[-(count * len(raw) // len(token_ids)) :])
    output = torch.frombuffer(last, dtype=ends.torch_dtype).reshape(1, count, -1)
    return await run(lambda: ends.logits(output))


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
    are cut back by the start of the next step.

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
    done, draft = False, Draft()
    while True:
        try:
            left = max_new_tokens - (len(token_ids) - n_prompt)
            if done or left <= 0:
                await session.settle()
                return
            if drafting is not None and position >= n_prompt:
                draft = await drafting.draft(token_ids, left - 1)
            began = time.perf_counter()
            logits = await forward_last(
                ends, session, [*token_ids[position:], *draft.tokens], position,
                1 + len(draft.tokens), run,
            )  # fmt: skip
        except OutputWithdrawn as lie:
            position = lie.position
            kept = max(0, position + 1 - n_prompt)  # the output at p gave the token at p + 1
            del token_ids[n_prompt + kept :], stamps[kept + 1 :], draws[kept + 1 :]
            del times.tokens[max(0, kept - 1) :]  # what was redone counts for the next token
            sampler.restore(draws[kept])
            done, draft = False, Draft()
            yield Withdrawn(kept, session.story[-1] if session.story else str(lie))
            continue
        decoding, known, spent = position >= n_prompt, len(token_ids), 0.0
        for row, drafted in zip(logits, (*draft.tokens, None), strict=True):
            position = len(token_ids)
            token = await run(partial(sampler.choose, token_ids, row))
            stamps.append(time.perf_counter())
            spent = spent or stamps[-1] - began  # not what the reader takes between tokens
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
            drafting.done(draft, token_ids[known:], spent)
        draft = Draft()


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
