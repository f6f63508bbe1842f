"""Generation: embeddings and head here, the blocks in the swarm."""

from __future__ import annotations

import contextlib
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Protocol, TypeVar

import torch

from swarmd.client.chain_session import ChainSession
from swarmd.client.sampling import Sampler
from swarmd.compute.ends import ModelEnds
from swarmd.errors import OutputWithdrawn, UsageError

__all__ = [
    "GenerationTimes",
    "Run",
    "Withdrawn",
    "decode_events",
    "decode_tokens",
    "forward",
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
    session: ChainSession,
    token_ids: list[int],
    start: int,
    run: Run = run_here,
) -> torch.Tensor:
    """Logits `(vocabulary,)` after the last of `token_ids`, which stand at positions from `start`.

    Raises what :meth:`ChainSession.step` raises.
    """

    def embed() -> bytes:
        hidden = ends.embed(torch.tensor([token_ids]), start)
        return hidden.contiguous().view(torch.uint8).numpy().tobytes()

    data = await run(embed)
    raw = await session.step(start, data, len(token_ids))
    last = bytearray(raw[-(len(raw) // len(token_ids)) :])
    output = torch.frombuffer(last, dtype=ends.torch_dtype).reshape(1, 1, -1)
    return await run(lambda: ends.logits(output)[0])


@dataclass(frozen=True, slots=True)
class Withdrawn:
    """Event: a spot check found a lie. Of the tokens given out only the first `kept` hold; those
    after them are given out anew. `reason` is for people."""

    kept: int
    reason: str


async def decode_events(
    ends: ModelEnds,
    session: ChainSession,
    prompt_ids: list[int],
    sampler: Sampler,
    *,
    max_new_tokens: int,
    eos_token_ids: frozenset[int],
    times: GenerationTimes | None = None,
    stopped: Callable[[], bool] = lambda: False,
    run: Run = run_here,
) -> AsyncGenerator[int | Withdrawn, None]:
    """New token ids, one by one, until an end-of-sequence token (not given out), the limit, or
    `stopped()` after a token. Ends when the session's spot checks are done; a lie that they find
    is a :class:`Withdrawn`, after which the answer goes on as if it had not been told.

    Raises UsageError for a session that is too short, and what :meth:`ChainSession.step` raises.
    """
    if len(prompt_ids) + max_new_tokens > session.max_length:
        raise UsageError(
            f"prompt of {len(prompt_ids)} and {max_new_tokens} new tokens are more than the "
            f"session's {session.max_length}"
        )
    times = times or GenerationTimes()
    n_prompt, token_ids, position = len(prompt_ids), list(prompt_ids), 0
    stamps = [time.perf_counter()]
    draws = [sampler.state()]  # before each token, to draw it again the same way
    done = False
    while True:
        try:
            if done or len(token_ids) - n_prompt >= max_new_tokens:
                await session.settle()
                return
            logits = await forward(ends, session, token_ids[position:], position, run)
        except OutputWithdrawn as lie:
            position = lie.position
            kept = max(0, position + 1 - n_prompt)  # the output at p gave the token at p + 1
            del token_ids[n_prompt + kept :], stamps[kept + 1 :], draws[kept + 1 :]
            del times.tokens[max(0, kept - 1) :]  # what was redone counts for the next token
            sampler.restore(draws[kept])
            done = False
            yield Withdrawn(kept, session.story[-1] if session.story else str(lie))
            continue
        position = len(token_ids)
        token = await run(partial(sampler.choose, token_ids, logits))
        stamps.append(time.perf_counter())
        if len(stamps) == 2:
            times.first_token = stamps[1] - stamps[0]
        else:
            times.tokens.append(stamps[-1] - stamps[-2])
        if token in eos_token_ids:
            stamps.pop()
            done = True
            continue
        token_ids.append(token)
        if session.checks is not None:
            draws.append(sampler.state())
        yield token
        done = stopped()


async def decode_tokens(
    ends: ModelEnds,
    session: ChainSession,
    prompt_ids: list[int],
    sampler: Sampler,
    *,
    max_new_tokens: int,
    eos_token_ids: frozenset[int],
    times: GenerationTimes | None = None,
    stopped: Callable[[], bool] = lambda: False,
    run: Run = run_here,
) -> AsyncGenerator[int, None]:
    """`decode_events` of a session without spot checks, whose tokens are never withdrawn."""
    if session.checks is not None:
        raise ValueError("a session with spot checks withdraws tokens: use decode_events")
    events = decode_events(
        ends, session, prompt_ids, sampler,
        max_new_tokens=max_new_tokens, eos_token_ids=eos_token_ids, times=times,
        stopped=stopped, run=run,
    )  # fmt: skip
    async with contextlib.aclosing(events):
        async for event in events:
            if isinstance(event, int):
                yield event
