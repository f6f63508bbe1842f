"""Answers of one dialogue, over a session that is kept between them."""

from __future__ import annotations

import contextlib
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field

from swarmd.client.answer import AnswerText
from swarmd.client.dialogue import Dialogue
from swarmd.client.drafting import Drafting
from swarmd.client.generate import GenerationTimes, decode_tokens
from swarmd.client.loading import ClientModel, load_client
from swarmd.client.moving_session import MovingSession
from swarmd.client.router import Router
from swarmd.client.sampling import Sampler
from swarmd.client.session_config import Recovery, SessionConfig
from swarmd.client.swarm import choose_chain
from swarmd.compute.model_folder import ModelFolder
from swarmd.errors import UsageError
from swarmd.routing.chain import Chain
from swarmd.wire.codecs import CodecChoice
from swarmd.wire.pool import Pool

__all__ = ["IDLE_LIMIT", "Answered", "Chat", "ChatConfig"]

IDLE_LIMIT = 240.0
"""Seconds without a turn after which a new session is opened. A node ends one after 300 s of
silence (`SessionLimits.idle_timeout`), and that would look like its failure."""


@dataclass(frozen=True, slots=True)
class ChatConfig:
    """Limits of a chat, in tokens; `wait` in seconds for blocks that nobody serves."""

    context: int = 2048
    max_new_tokens: int = 512
    stops: tuple[str, ...] = ()
    wait: float = 0.0
    threads: int | None = None
    replan: bool | None = None
    codec: CodecChoice = "auto"
    standby: bool = False
    """As in :class:`SessionConfig`."""


@dataclass(slots=True)
class Answered:
    """One answer: its text, what was sent for it, and how it went."""

    text: str = ""
    tokens: int = 0
    prompt_tokens: int = 0
    sent_tokens: int = 0
    full: bool = False
    """The context had no room for more."""
    times: GenerationTimes = field(default_factory=GenerationTimes)


class Chat:
    """`async with Chat(…) as chat:` then `answer`, one at a time."""

    def __init__(
        self,
        folder: ModelFolder,
        router: Router,
        pool: Pool,
        sampler: Sampler,
        config: ChatConfig,
        *,
        tell: Callable[[str], None] = lambda line: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`tell` is called with a line for people when something happens on the way."""
        self._folder, self._router, self._pool = folder, router, pool
        self._sampler = sampler
        self._config = config
        self._tell = tell
        self._clock = clock
        self._context = min(config.context, folder.max_positions)
        self._session: MovingSession | None = None
        self._told = self._told_moves = 0
        self._used = clock()
        self._chain: Chain | None = None
        self.new_drafting: Callable[[], Drafting | None] = lambda: None
        """Speculation for one answer."""

    @property
    def name(self) -> str:
        """The model's name."""
        return self._folder.name

    async def __aenter__(self) -> Chat:
        """Raises NoRoute when blocks are held by nobody, ModelError, UnsupportedModel."""
        self._chain = await self._choose()
        self.client = await self._load(self._chain)
        self.dialogue = Dialogue(self.client.text)
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.close()

    async def close(self) -> None:
        """End the session, which frees its caches; the dialogue stays."""
        session, self._session = self._session, None
        self.dialogue.forget_session()
        if session is not None:
            await session.__aexit__(None, None, None)

    async def _choose(self) -> Chain:
        return await choose_chain(self._router, wait=self._config.wait, on_story=self._tell)

    async def _load(self, chain: Chain) -> ClientModel:
        return await load_client(self._folder, chain.hops[0].peer.dtype, self._config.threads)

    async def answer(
        self,
        said: str,
        *,
        on_text: Callable[[str], None],
        stopped: Callable[[], bool] = lambda: False,
    ) -> Answered:
        """Answer `said`; ends after a token when `stopped()`. An answer without any token, and one
        that raised or was cancelled, leaves the dialogue as it was.

        Raises UsageError when the context has no room for it, or for what the template refuses;
        and what :meth:`MovingSession.step` raises.
        """
        if self._clock() - self._used > IDLE_LIMIT:
            await self.close()
        try:
            answered = await self._answer(said, on_text, stopped)
        except UsageError:
            raise
        except BaseException:  # also a cancel: what the session holds is not known
            await self.close()
            raise
        self._used = self._clock()
        return answered

    async def _answer(
        self, said: str, on_text: Callable[[str], None], stopped: Callable[[], bool]
    ) -> Answered:
        self.dialogue.ask(said)  # what the template refuses needs no session
        session = await self._opened()
        prompt = self.dialogue.ask(said)
        room = self._context - len(prompt.token_ids)
        if room < 1:
            raise UsageError(
                f"the dialogue has {len(prompt.token_ids)} tokens, the context {self._context}: "
                "take turns back by /undo, begin anew by /reset, or start with a larger --context"
            )
        limit = min(room, self._config.max_new_tokens)
        answer = AnswerText(self.client.text.stream, self._config.stops)
        answered = Answered(
            prompt_tokens=len(prompt.token_ids), sent_tokens=len(prompt.token_ids) - prompt.held
        )
        tokens = decode_tokens(
            self.client.ends,
            session,
            list(prompt.token_ids),
            self._sampler,
            max_new_tokens=limit,
            eos_token_ids=self.client.text.eos_token_ids,
            times=answered.times,
            drafting=self.new_drafting(),
            stopped=lambda: answer.stopped or stopped(),
            held=prompt.held,
        )
        async with self._telling(session), contextlib.aclosing(tokens):
            async for token in tokens:
                self._tell_recoveries(session)
                on_text(answer.push(token))
        on_text(answer.finish())
        answered.text, answered.tokens = answer.text, len(answer.token_ids)
        answered.full = limit == room == answered.tokens
        self.dialogue.answered(said, prompt, answer.text, answer.token_ids)
        return answered

    async def _opened(self) -> MovingSession:
        if self._session is not None:
            return self._session
        chain, self._chain = self._chain or await self._choose(), None
        if chain.hops[0].peer.dtype != self.client.ends.dtype:
            self.client = await self._load(chain)
        session = MovingSession(
            self._router,
            self._pool,
            chain,
            hidden_size=self._folder.hidden_size,
            max_length=self._context,
            config=SessionConfig(
                wait=self._config.wait,
                replan=self._config.replan,
                standby=self._config.standby,
                codec=self._config.codec,
            ),
        )
        async with contextlib.AsyncExitStack() as stack:
            await stack.enter_async_context(session)
            await session.open_links()
            stack.pop_all()
        self._session, self._told, self._told_moves = session, 0, 0
        self._tell("Route found: " + " ".join(map(str, session.chain)))
        self._tell_recoveries(session)
        return session

    @contextlib.asynccontextmanager
    async def _telling(self, session: MovingSession) -> AsyncIterator[None]:
        try:
            yield
        finally:
            self._tell_recoveries(session)

    def _tell_recoveries(self, session: MovingSession) -> None:
        """A line for each hop that was replaced, and for each move, since the last call."""
        did = session.statistics
        for recovery in did.recoveries[self._told :]:
            self._tell(_line(recovery))
        for move in did.moves[self._told_moves :]:
            self._tell(str(move))
        self._told, self._told_moves = len(did.recoveries), len(did.moves)


def _line(recovery: Recovery) -> str:
    by = " ".join(map(str, recovery.by))
    return f"{recovery.lost} lost, replaced by {by} in {recovery.seconds:.2f} s: {recovery.reason}"
