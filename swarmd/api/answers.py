"""The answers of one request: a session each, all under way together, merged into one stream."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Protocol, TypeVar

from swarmd.api.counts import ApiCounts
from swarmd.api.limits import ApiLimits
from swarmd.api.replies import Choice, Usage
from swarmd.api.schemas import Ask
from swarmd.api.swarm_view import AnswerSeen, RecoverySeen
from swarmd.client.answer import AnswerText
from swarmd.client.drafting import Drafting, default_longest
from swarmd.client.generate import decode_tokens
from swarmd.client.loading import ClientModel
from swarmd.client.moving_session import MovingSession
from swarmd.client.router import Router
from swarmd.client.sampling import SamplingConfig
from swarmd.client.scored_sampling import ScoredSampler
from swarmd.client.session_config import SessionConfig
from swarmd.errors import SwarmdError
from swarmd.routing.chain import Chain
from swarmd.tasks import TaskOwner
from swarmd.wire.codecs import CodecChoice
from swarmd.wire.pool import Pool

__all__ = ["Answers"]

T = TypeVar("T")
EVENTS_AHEAD = 64
"""Pieces that wait for a client that reads slowly; then its answers wait."""


class _Host(Protocol):
    """What a :class:`~swarmd.api.gateway.Gateway` gives its answers."""

    limits: ApiLimits
    counts: ApiCounts
    replan: bool | None
    codec: CodecChoice
    standby: bool

    @property
    def router(self) -> Router: ...

    @property
    def pool(self) -> Pool: ...

    def run(self, work: Callable[[], T], /) -> Awaitable[T]: ...


class Answers:
    """`async with` it, then `take` pieces until it has `ended`; leaving ends all sessions,
    whatever they are doing."""

    def __init__(
        self,
        ask: Ask,
        prompts: Sequence[list[int]],
        lengths: Sequence[int],
        chain: Chain,
        client: ClientModel,
        host: _Host,
        began: float,
        number: int,
    ) -> None:
        """`prompts` as token ids, and how many new tokens each may get; `began` is when the request
        had been read (`time.monotonic`); `number` tells requests apart."""
        self.number = number
        self._ask = ask
        self._prompts = prompts
        self._lengths = lengths
        self._client = client
        self._host = host
        self._began = began
        self._events: asyncio.Queue[Choice | SwarmdError] = asyncio.Queue(EVENTS_AHEAD)
        self._owner = TaskOwner("answers")
        self._next: Choice | SwarmdError | None = None
        self._left = ask.choices
        self._completion_tokens = 0
        self._sessions = [
            MovingSession(
                host.router,
                host.pool,
                chain,
                hidden_size=client.folder.hidden_size,
                max_length=len(prompts[index // ask.n]) + lengths[index // ask.n],
                config=SessionConfig(
                    busy_patience=host.limits.busy_patience,
                    replan=host.replan,
                    codec=host.codec,
                    standby=host.standby,
                ),
            )
            for index in range(ask.choices)
        ]

    async def __aenter__(self) -> Answers:
        await self._owner.__aenter__()
        self._host.counts.prompt_tokens += self.usage.prompt
        for index, session in enumerate(self._sessions):
            self._owner.spawn(self._answer(index, session), name=f"choice {index}")
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self._owner.close()

    @property
    def usage(self) -> Usage:
        """Tokens so far."""
        return Usage(sum(map(len, self._prompts)), self._completion_tokens)

    @property
    def recoveries(self) -> int:
        """Hops that were lost and replaced so far."""
        return sum(len(session.statistics.recoveries) for session in self._sessions)

    def route(self) -> str:
        """The hops of the first answer as they are now, with the time that a token takes at each:
        `0:15 via 7f3a12cd 8.3 ms, 15:30 via c19e04b7 9.1 ms`."""
        seconds = self._host.router.step_seconds
        hops = (f"{hop} {1000 * seconds(hop):.1f} ms" for hop in self._sessions[0].chain)
        # a peer's word for its quantization may be any printable text; a header's is ASCII
        return ", ".join(hops).encode("ascii", "backslashreplace").decode("ascii")

    def turn(self) -> object:
        """Differs from an earlier value once the route is another, or a hop was replaced."""
        return self._sessions[0].chain, self.recoveries

    def seen(self) -> AnswerSeen:
        """For the web page: the route of the first answer, and what all of them lost."""
        seconds = self._host.router.step_seconds
        every = [session.statistics for session in self._sessions]
        return AnswerSeen(
            number=self.number,
            hops=[(hop, seconds(hop)) for hop in self._sessions[0].chain],
            tokens=self._completion_tokens,
            replayed=sum(did.replayed_positions for did in every),
            recoveries=[
                RecoverySeen(one.lost, one.by, one.reason, one.position, one.seconds)
                for did in every
                for one in did.recoveries
            ],
        )

    @property
    def ended(self) -> bool:
        """Whether every answer has had its last piece taken."""
        return self._left == 0

    async def wait(self, seconds: float | None = None) -> bool:
        """Whether the next piece is there within `seconds` (None: whenever it comes).

        Raises the error that an answer ended with, when that is what comes next.
        """
        if self._next is None:
            try:
                async with asyncio.timeout(seconds):
                    self._next = await self._events.get()
            except TimeoutError:
                return False
        if isinstance(self._next, SwarmdError):
            raise self._next
        return True

    async def take(self) -> Choice:
        """The next piece of any answer; the last one of each has a finish reason. Not after
        `ended`. Raises as `wait` does."""
        await self.wait()
        piece, self._next = self._next, None
        assert isinstance(piece, Choice)
        self._left -= piece.finish_reason is not None
        return piece

    async def _answer(self, index: int, session: MovingSession) -> None:
        try:
            async with session:
                await session.open_links()
                end = await self._decode(index, session)
            await self._events.put(end)  # the caches are free by then
        except SwarmdError as error:
            await self._events.put(error)
        finally:
            counts, did = self._host.counts, session.statistics
            counts.recoveries += len(did.recoveries)
            counts.replayed_positions += did.replayed_positions
            counts.moves += len(did.moves)

    async def _decode(self, index: int, session: MovingSession) -> Choice:
        """Give out the pieces of an answer; returns the one that ends it."""
        ask, prompt = self._ask, self._prompts[index // self._ask.n]
        limit = self._lengths[index // ask.n]
        sampler = self._sampler(index, len(prompt))
        answer = AnswerText(self._client.text.stream, ask.stops)
        longest = default_longest(self._client.ends.dtype)
        tokens = decode_tokens(
            self._client.ends,
            session,
            prompt,
            sampler,
            max_new_tokens=limit,
            eos_token_ids=self._client.text.eos_token_ids,
            stopped=lambda: answer.stopped,
            run=self._host.run,
            drafting=Drafting(longest) if longest else None,
        )
        async with contextlib.aclosing(tokens):
            async for token in tokens:
                if not answer.token_ids:
                    self._host.counts.first_token.observe(time.monotonic() - self._began)
                self._host.counts.completion_tokens += 1
                self._completion_tokens += 1
                piece = Choice(index, answer.push(token))
                if sampler.last is not None and not answer.stopped:
                    piece.scores.append(sampler.last)
                if piece.text or piece.scores:
                    await self._events.put(piece)
        full = len(answer.token_ids) == limit and not answer.stopped
        return Choice(index, answer.finish(), finish_reason="length" if full else "stop")

    def _sampler(self, index: int, prompt_tokens: int) -> ScoredSampler:
        ask = self._ask
        # answers of one request differ, and each can be had again
        seed = None if ask.seed is None else (ask.seed + index) % (1 << 63)
        return ScoredSampler(
            SamplingConfig(ask.temperature, ask.top_k, ask.top_p, ask.repetition_penalty, seed),
            prompt_tokens=prompt_tokens,
            presence=ask.presence_penalty,
            frequency=ask.frequency_penalty,
            top_logprobs=ask.top_logprobs,
        )
