"""One model of the swarm, ready to answer many requests at a time."""

from __future__ import annotations

import abc
import asyncio
import contextlib
import itertools
import logging
import time
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Self, TypeVar

from swarmd.api.answers import Answers
from swarmd.api.counts import ApiCounts
from swarmd.api.errors import ApiError
from swarmd.api.limits import ApiLimits, Places
from swarmd.api.schemas import Ask, Prompt
from swarmd.client.loading import ClientModel, load_client
from swarmd.client.router import Router
from swarmd.client.swarm import choose_chain
from swarmd.client.text import TextCodec
from swarmd.compute.model_folder import ModelFolder
from swarmd.errors import NoRoute
from swarmd.wire.codecs import CodecChoice
from swarmd.wire.pool import Pool

__all__ = ["AnyGateway", "Gateway", "Ground"]

T = TypeVar("T")
log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Ground:
    """What a gateway stands on: a model, links to peers, and the choice of them."""

    folder: ModelFolder
    pool: Pool
    router: Router


class AnyGateway(abc.ABC):
    """`async with` it; `load` has the model's ends loaded.

    Embedding, head, tokenizer and the choice of tokens run on one thread of its own, one after
    another, so that the event loop goes on while they compute.
    """

    def __init__(
        self,
        limits: ApiLimits | None = None,
        threads: int | None = None,
        replan: bool | None = None,
        codec: CodecChoice = "auto",
        standby: bool = False,
        alias: str | None = None,
    ) -> None:
        """`alias`: what else requests may call the model, as the command line does; `replan`,
        `codec` and `standby` as in :class:`SessionConfig`."""
        self.limits = limits or ApiLimits()
        self.replan = replan
        self.codec: CodecChoice = codec
        self.standby = standby
        self.alias = alias
        self.counts = ApiCounts()
        self.places = Places(self.limits.concurrent)
        self.running: list[Answers] = []
        """In the order in which they began; at most `limits.concurrent`."""
        self._numbers = itertools.count(1)
        self._threads = threads
        self._clients: dict[str, ClientModel] = {}
        self._loading = asyncio.Lock()

    @abc.abstractmethod
    def ground(self) -> Ground:
        """Raises ApiError (503) where it is not there yet."""

    async def client_folder(self) -> ModelFolder:
        """The model's folder with all that its ends need. Raises ModelError, UsageError."""
        return self.folder

    @property
    def folder(self) -> ModelFolder:
        return self.ground().folder

    @property
    def pool(self) -> Pool:
        return self.ground().pool

    @property
    def router(self) -> Router:
        return self.ground().router

    @property
    def text(self) -> TextCodec:
        """After `load`."""
        return next(iter(self._clients.values())).text

    async def load(self) -> None:
        """Load the model's ends, if they are not. Raises ModelError, UnsupportedModel, and NoRoute
        when nobody serves the model now."""
        if not self._clients:
            await self._client((await choose_chain(self.router)).hops[0].peer.dtype)

    async def __aenter__(self) -> Self:
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="swarmd-ends")
        return self

    async def __aexit__(self, *exc: object) -> None:
        await asyncio.to_thread(self._thread.shutdown)

    async def run(self, work: Callable[[], T], /) -> T:
        """Compute on the gateway's thread."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, work)

    @contextlib.asynccontextmanager
    async def answering(self, ask: Ask) -> AsyncIterator[Answers]:
        """The answers to a request, under way; all their sessions are closed at the end.

        Raises ApiError for what the model cannot take or when too much is under way, NoRoute when
        blocks are held by nobody, and UsageError for a dialogue that the template refuses.
        """
        began = time.monotonic()
        with self.places.take(ask.choices):
            prompts = [await self._token_ids(prompt) for prompt in ask.prompts]
            lengths = [self._new_tokens(ask, len(prompt)) for prompt in prompts]
            chain = await choose_chain(self.router)
            client = await self._client(chain.hops[0].peer.dtype)
            answers = Answers(
                ask, prompts, lengths, chain, client, self, began, next(self._numbers)
            )
            async with answers:
                self.running.append(answers)
                try:
                    yield answers
                finally:
                    self.running.remove(answers)

    async def _client(self, dtype: str) -> ClientModel:
        """The model's ends in the arithmetic of a chain; another one than before is loaded once."""
        async with self._loading:
            if dtype not in self._clients:
                folder = await self.client_folder()
                self._clients[dtype] = await load_client(folder, dtype, self._threads)
            return self._clients[dtype]

    async def _token_ids(self, prompt: Prompt) -> list[int]:
        if isinstance(prompt, str):
            return await self.run(lambda: self.text.encode(prompt))
        if isinstance(prompt[0], dict):
            messages = [message for message in prompt if isinstance(message, dict)]
            return await self.run(lambda: self.text.encode_messages(messages))
        ids = [token for token in prompt if isinstance(token, int)]
        words = int(self.folder.config["vocab_size"])
        if max(ids) >= words:
            raise ApiError(
                422, f"token ids must be below {words}", code="invalid_value", param="prompt"
            )
        return ids

    def _new_tokens(self, ask: Ask, prompt: int) -> int:
        """How many tokens an answer may have. Raises ApiError (400) where there is no room."""
        most = self.folder.max_positions
        wanted = ask.max_tokens
        if wanted is None:
            wanted = max(1, min(self.limits.chat_tokens, most - prompt))
        if prompt + wanted > most:
            raise ApiError(
                400,
                f"this model has {most} positions; the prompt takes {prompt} of them and "
                f"max_tokens {wanted}: shorten one of the two",
                code="context_length_exceeded",
                param="messages" if ask.chat else "prompt",
            )
        return wanted


class Gateway(AnyGateway):
    """`async with Gateway(folder, pool, router) as gateway:` has the model's ends loaded."""

    def __init__(
        self,
        folder: ModelFolder,
        pool: Pool,
        router: Router,
        *,
        limits: ApiLimits | None = None,
        threads: int | None = None,
        replan: bool | None = None,
        codec: CodecChoice = "auto",
        standby: bool = False,
        alias: str | None = None,
    ) -> None:
        super().__init__(limits, threads, replan, codec, standby, alias)
        self._ground = Ground(folder, pool, router)

    def ground(self) -> Ground:
        return self._ground

    async def __aenter__(self) -> Self:
        """Raises ModelError, UnsupportedModel. That nobody serves the model now is a warning."""
        await super().__aenter__()
        try:
            await self.load()
        except NoRoute as error:
            log.warning("requests are refused with 503 for now: %s", error)
            await self._client("float32")
        return self
