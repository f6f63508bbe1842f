"""Clients that answer again and again, and compare each answer with its undisturbed twin."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from swarmd.client.chain_session import ChainSession
from swarmd.client.drafting import Drafting
from swarmd.client.generate import Withdrawn, decode_events
from swarmd.client.router import Router
from swarmd.client.sampling import Sampler, SamplingConfig
from swarmd.client.session_config import SessionConfig
from swarmd.client.spot_checks import CheckConfig
from swarmd.client.swarm import SwarmClient, choose_chain
from swarmd.compute.ends import ModelEnds
from swarmd.compute.model_folder import ModelFolder
from swarmd.errors import SwarmdError
from swarmd.peers import Address
from swarmd.wire.pool import Pool

__all__ = ["SETTINGS", "Client", "Model", "Setting", "Tally", "Touch"]

PROMPT_TOKENS = 24
PATIENCE = 60.0
"""Seconds that a client waits for blocks that nobody serves just then (`--wait`)."""
HANG = 150.0
HANG_TOKEN = 0.5
"""Seconds, and those a token more, after which an answer that neither ended nor failed counts as a
client that hangs."""


@dataclass(frozen=True, slots=True)
class Setting:
    """How one client answers; `drafts` sent along at most, `checked` share of positions; `standby`:
    whether a second peer for each hop holds a ready cache."""

    name: str
    sampling: SamplingConfig
    drafts: int = 0
    checked: float = 0.0
    standby: bool = False


SETTINGS = (
    Setting("greedy", SamplingConfig()),
    Setting("greedy, drafts", SamplingConfig(), drafts=8),
    Setting(
        "sampled, drafts, standby", SamplingConfig(temperature=1.0, seed=11), drafts=8, standby=True
    ),
    Setting("sampled, verified", SamplingConfig(temperature=1.0, seed=12), checked=0.1),
)


@dataclass(frozen=True, slots=True)
class Model:
    """What a client has of a model."""

    folder: ModelFolder
    ends: ModelEnds

    def prompt(self, number: int) -> list[int]:
        """Token ids of prompt `number`: noise, with a repeat so that drafts are found."""
        ids = random.Random(number).choices(range(3, self.ends.vocab_size), k=PROMPT_TOKENS)
        return [*ids, *ids[: PROMPT_TOKENS // 2]]


@dataclass(frozen=True, slots=True)
class Touch:
    """An answer lost a hop at `address` and found another: seconds without a token around it, and
    positions that were run again. `at` is on `time.monotonic`."""

    at: float
    address: str
    setting: str
    stall: float
    replayed: int
    story: tuple[str, ...] = ()
    """What the session said meanwhile, each line with the seconds since the stall began."""


@dataclass(slots=True)
class Tally:
    """What all clients did. `different` and `died` hold a line each, and should be empty."""

    equal: int = 0
    tokens: int = 0
    different: list[str] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)
    """Answers that ended with a typed error, and which."""
    died: list[str] = field(default_factory=list)
    withdrawn: list[str] = field(default_factory=list)
    """Lies that spot checks claim to have found; nobody lies here."""
    touches: list[Touch] = field(default_factory=list)


class Client:
    """One client with a router and connections of its own. `async with`."""

    def __init__(self, contacts: Sequence[Address], model: Model, setting: Setting) -> None:
        self.setting = setting
        self._model = model
        self._swarm = SwarmClient(contacts, lan=False)
        self._pool: Pool
        self._router: Router

    async def __aenter__(self) -> Client:
        await self._swarm.__aenter__()
        folder = self._model.folder
        self._pool = await self._swarm.pool(folder.model_id)
        self._router = self._swarm.router(
            self._pool, model_id=folder.model_id, model_name=folder.name,
            n_blocks=folder.n_blocks, bytes_per_token=folder.hidden_size * 4,
        )  # fmt: skip
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self._swarm.__aexit__(*exc)

    async def answer(
        self,
        prompt: int,
        tokens: int,
        tally: Tally,
        before: Callable[[Sequence[str]], None] = lambda addresses: None,
    ) -> list[int]:
        """The tokens to prompt number `prompt`. Calls `before` with the hops' addresses before
        each step but the first. Raises SwarmdError, TimeoutError when it hangs."""
        ids = self._model.prompt(prompt)
        setting, folder = self.setting, self._model.folder
        found: list[int] = []
        said: list[tuple[float, str]] = []
        async with asyncio.timeout(HANG + HANG_TOKEN * tokens):
            chain = await choose_chain(self._router, wait=PATIENCE)
            session = ChainSession(
                self._router, self._pool, chain,
                hidden_size=folder.hidden_size, max_length=len(ids) + tokens,
                config=SessionConfig(
                    wait=PATIENCE, standby=setting.standby,
                    checks=CheckConfig(setting.checked, seed=b"chaos"),
                ),
                on_story=lambda line: said.append((time.monotonic(), line)),
            )  # fmt: skip
            async with session:
                seen, replayed, began = 0, 0, time.monotonic()
                await session.open_links()
                async for event in decode_events(
                    self._model.ends, session, ids, Sampler(setting.sampling),
                    max_new_tokens=tokens, eos_token_ids=frozenset(),
                    drafting=Drafting(setting.drafts) if setting.drafts else None,
                ):  # fmt: skip
                    now = time.monotonic()
                    if isinstance(event, Withdrawn):
                        tally.withdrawn.append(f"{setting.name}: {event.reason}")
                        del found[event.kept :]
                    else:
                        found.append(event)
                    for one in session.statistics.recoveries[seen:]:
                        again = session.statistics.replayed_positions
                        address = str(one.lost.peer.address)
                        story = tuple(f"{at - began:.1f} s: {line}" for at, line in said)
                        tally.touches.append(
                            Touch(
                                began, address, setting.name, now - began, again - replayed, story
                            )
                        )
                        replayed = again
                    seen, began = len(session.statistics.recoveries), now
                    said.clear()
                    if len(found) < tokens:
                        before([str(hop.peer.address) for hop in session.chain])
        return found

    async def keep_answering(self, twins: Sequence[list[int]], until: float, tally: Tally) -> None:
        """Answer prompt after prompt; `twins[k]` is the undisturbed answer to prompt k."""
        number = 0
        while time.monotonic() < until:
            prompt = number % len(twins)
            number += 1
            name = f"{self.setting.name}, answer {number}"
            try:
                found = await self.answer(prompt, len(twins[prompt]), tally)
            except SwarmdError as error:
                tally.refused.append(f"{name}: {type(error).__name__}: {error}")
                continue
            except Exception as error:  # what a user would see as a traceback, or as a hang
                tally.died.append(f"{name}: {type(error).__name__}: {error}")
                continue
            if found == twins[prompt]:
                tally.equal += 1
                tally.tokens += len(found)
            else:
                pairs = enumerate(zip(found, twins[prompt], strict=False))
                at = next((n for n, (one, other) in pairs if one != other), len(found))
                tally.different.append(f"{name}: from token {at} on")
