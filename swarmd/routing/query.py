"""What is asked of the search for a chain."""

from __future__ import annotations

from collections.abc import Set
from dataclasses import dataclass
from random import Random

from swarmd.identity import PeerId
from swarmd.peers import QUANTIZATIONS
from swarmd.routing.cost import Mode

__all__ = [
    "CHAIN_QUANTIZATIONS",
    "NOBODY",
    "WHOLE_MODEL",
    "Between",
    "RouteQuery",
    "mixings",
]

CHAIN_QUANTIZATIONS = ("auto", "one", "any", *QUANTIZATIONS)
"""Of which quantization the hops of a chain may be. `auto`: all of one, and only where no such
chain is left of several; `one`: all of one, or none; `any`: as it is cheapest; else of the one
that is named."""


def mixings(quantization: str) -> tuple[bool, ...]:
    """For one of :data:`CHAIN_QUANTIZATIONS`, whether a chain may mix them: what is tried, in
    order."""
    return {"auto": (False, True), "any": (True,)}.get(quantization, (False,))


@dataclass(frozen=True, slots=True)
class Between:
    """The healthy hops before and after a part of a chain; None where that is the client."""

    previous: PeerId | None = None
    next: PeerId | None = None


NOBODY = Between()
"""The client alone."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RouteQuery:
    """Which blocks a chain must run, over whom, and what is priced. As it is: a whole chain."""

    start: int = 0
    """The first block to run. With `end` it is given for the replacement of a lost range."""
    end: int | None = None
    """The block after the last one to run; None is the end of the model."""
    banned: Set[PeerId] = frozenset()
    """These peers do not exist."""
    avoid: Set[PeerId] = frozenset()
    """These cost :attr:`CostModel.avoid_penalty` more: taken only where no other route is near."""
    previous: PeerId | None = None
    """The healthy hop before a lost range; None is the client."""
    next: PeerId | None = None
    """The healthy hop after a lost range; None is the client."""
    tokens: int = 1
    """Positions that travel at a time; 1 prices decoding."""
    kv_needed: int = 0
    """Tokens of cache that are wanted at each hop."""
    mode: Mode = "hub"
    """Whether each hop answers the client, or forwards to the next one where that is cheaper."""
    rng: Random | None = None
    """Seeds the jitter; None is none. With the same seed and view the chain is the same."""
    wall: float | None = None
    """Now, in seconds since the epoch; for the message of NoRoute only."""


WHOLE_MODEL = RouteQuery()
"""A chain over all blocks, with nobody left out."""
