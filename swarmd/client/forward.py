"""One pass through the model: embedding and head here, the blocks in the swarm."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Protocol, TypeVar

import torch

from swarmd.client.session import Session
from swarmd.compute.ends import ModelEnds

__all__ = ["Run", "embed", "forward", "last_logits", "run_here"]

T = TypeVar("T")


class Run(Protocol):
    """Where embedding, head and the choice of tokens are computed."""

    def __call__(self, work: Callable[[], T], /) -> Awaitable[T]: ...


async def run_here(work: Callable[[], T], /) -> T:
    """On the event loop: right for a program that has but one answer to care for."""
    return work()


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
    data = await embed(ends, token_ids, start, run)
    raw = await session.step(start, data, len(token_ids))
    return (await last_logits(ends, raw, len(token_ids), 1, run))[0]


async def embed(
    ends: ModelEnds, token_ids: Sequence[int], start: int, run: Run = run_here
) -> bytes:
    """The hidden states of tokens at positions from `start`, as a session takes them."""

    def work() -> bytes:
        hidden = ends.embed(torch.tensor([token_ids]), start)
        return hidden.contiguous().view(torch.uint8).numpy().tobytes()

    return await run(work)


async def last_logits(
    ends: ModelEnds, raw: bytes, tokens: int, count: int, run: Run = run_here
) -> torch.Tensor:
    """Logits `(count, vocabulary)` after each of the last `count` of `tokens` positions, whose
    hidden states after the last block a session gave as `raw`."""
    last = bytearray(raw[-(count * len(raw) // tokens) :])
    output = torch.frombuffer(last, dtype=ends.torch_dtype).reshape(1, count, -1)
    return await run(lambda: ends.logits(output))
