"""The answer that the tests of this folder disturb: same prompt, same seed, three hops."""

from __future__ import annotations

from collections.abc import Callable

from swarmd.blocks import Span
from swarmd.client.chain_session import ChainSession
from swarmd.client.generate import decode_tokens
from swarmd.client.sampling import Sampler, SamplingConfig
from swarmd.compute.ends import ModelEnds
from tests.local_swarm import LocalPeer

__all__ = ["NEW_TOKENS", "PROMPT", "SPANS", "answer", "killing"]

PROMPT = list(range(3, 40))
NEW_TOKENS = 24
SAMPLING = SamplingConfig(temperature=1.0, seed=11)
SPANS = [Span(0, 2), Span(2, 4), Span(4, 6)]


def killing(kills: dict[int, list[LocalPeer]]) -> Callable[[int], None]:
    """For `answer`: peers that die just before a token of that number."""

    def before(token: int) -> None:
        for victim in kills.get(token, []):
            victim.kill()

    return before


async def answer(
    ends: ModelEnds, session: ChainSession, before: Callable[[int], None] = lambda token: None
) -> list[int]:
    """The sampled tokens; `before` is called before each with its number."""
    tokens: list[int] = []
    before(0)
    async for token in decode_tokens(
        ends,
        session,
        PROMPT,
        Sampler(SAMPLING),
        max_new_tokens=NEW_TOKENS,
        eos_token_ids=frozenset(),
    ):
        tokens.append(token)
        before(len(tokens))
    return tokens
