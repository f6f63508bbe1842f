"""Generation: embeddings and head here, the blocks in the swarm."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

import torch

from swarmd.client.chain_session import ChainSession
from swarmd.client.sampling import Sampler
from swarmd.compute.ends import ModelEnds
from swarmd.errors import UsageError

__all__ = ["GenerationTimes", "decode_tokens", "forward"]


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
    ends: ModelEnds, session: ChainSession, token_ids: list[int], start: int
) -> torch.Tensor:
    """Logits `(vocabulary,)` after the last of `token_ids`, which stand at positions from `start`.

    Raises what :meth:`ChainSession.step` raises.
    """
    hidden = ends.embed(torch.tensor([token_ids]), start)
    data = hidden.contiguous().view(torch.uint8).numpy().tobytes()
    raw = await session.step(start, data, len(token_ids))
    last = bytearray(raw[-(len(raw) // len(token_ids)) :])
    output = torch.frombuffer(last, dtype=ends.torch_dtype).reshape(1, 1, -1)
    return ends.logits(output)[0]


async def decode_tokens(
    ends: ModelEnds,
    session: ChainSession,
    prompt_ids: list[int],
    sampler: Sampler,
    *,
    max_new_tokens: int,
    eos_token_ids: frozenset[int],
    times: GenerationTimes | None = None,
) -> AsyncIterator[int]:
    """New token ids, one by one, until an end-of-sequence token (not given out) or the limit."""
    if len(prompt_ids) + max_new_tokens > session.max_length:
        raise UsageError(
            f"prompt of {len(prompt_ids)} and {max_new_tokens} new tokens are more than the "
            f"session's {session.max_length}"
        )
    times = times or GenerationTimes()
    token_ids = list(prompt_ids)
    pending, position = token_ids[:], 0
    began = time.perf_counter()
    for index in range(max_new_tokens):
        logits = await forward(ends, session, pending, position)
        token = sampler.choose(token_ids, logits)
        now = time.perf_counter()
        if index == 0:
            times.first_token = now - began
        else:
            times.tokens.append(now - began)
        began = now
        if token in eos_token_ids:
            return
        yield token
        position += len(pending)
        pending = [token]
        token_ids.append(token)
