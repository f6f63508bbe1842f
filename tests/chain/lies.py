"""Peers that lie, and an answer that is checked while it is given."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Callable
from typing import Any

from swarmd.client.generate import Withdrawn, decode_events
from swarmd.client.sampling import Sampler, SamplingConfig
from swarmd.client.spot_checks import CheckConfig
from swarmd.compute.ends import ModelEnds
from tests.chain.answers import NEW_TOKENS, PROMPT
from tests.local_swarm import LocalPeer

__all__ = ["ALL", "GREEDY", "LAST", "Honest", "Told", "checked_answer", "lying"]

ALL = CheckConfig(fraction=1.0, seed=b"1")
GREEDY = SamplingConfig()
LAST = len(PROMPT) + NEW_TOKENS - 2
"""The last position that is run: the last token is never sent."""


def lying(peer: LocalPeer, tells: Callable[[int], bool], *, by: float = 0.5) -> None:
    """Let a peer add `by` to one value of its outputs at the positions that it `tells` a lie."""
    original = peer.engine.step

    async def step(session: Any, start: int, hidden: Any, **options: Any) -> object:
        result = await original(session, start, hidden, **options)
        changed = result.hidden.clone()
        for row in range(changed.shape[1]):
            if tells(start + row):
                changed[0, row, 3] += by
        return dataclasses.replace(result, hidden=changed)

    peer.engine.step = step  # type: ignore[method-assign, assignment]


@dataclasses.dataclass
class Told:
    """The tokens that stand at the end, all that were given out, and the withdrawals."""

    tokens: list[int] = dataclasses.field(default_factory=list)
    given: int = 0
    withdrawn: list[int] = dataclasses.field(default_factory=list)


async def checked_answer(
    ends: ModelEnds, session: Any, sampling: SamplingConfig, *, pace: float = 0.0
) -> Told:
    told = Told()
    async for event in decode_events(
        ends, session, PROMPT, Sampler(sampling),
        max_new_tokens=NEW_TOKENS, eos_token_ids=frozenset(),
    ):  # fmt: skip
        if isinstance(event, Withdrawn):
            assert "wrong from position" in event.reason
            told.withdrawn.append(event.kept)
            del told.tokens[event.kept :]
        else:
            told.tokens.append(event)
            told.given += 1
        await asyncio.sleep(pace)
    return told


Honest = Callable[[SamplingConfig], list[int]]
