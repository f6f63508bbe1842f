"""One model of the swarm, ready to answer many requests at a time."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from swarmd.api.answers import Answers
from swarmd.api.errors import ApiError
from swarmd.api.limits import ApiLimits, Places
from swarmd.api.schemas import Ask, Prompt
from swarmd.client.loading import ClientModel, load_client
from swarmd.client.router import Router
from swarmd.client.swarm import choose_chain
from swarmd.compute.model_folder import ModelFolder
from swarmd.errors import NoRoute
from swarmd.wire.pool import Pool

__all__ = ["Gateway"]

T = TypeVar("T")
log = logging.getLogger(__name__)


class Gateway:
    """`async with Gateway(folder, pool, router) as gateway:` has the model's ends loaded.

    Embedding, head, tokenizer and the choice of tokens run on one thread of its own, one after
    another, so that the event loop goes on while they compute.
    """

    def __init__(
        self,
        folder: ModelFolder,
        pool: Pool,
        router: Router,
        *,
        limits: ApiLimits | None = None,
        threads: int | None = None,
    ) -> None:
        self.folder = folder
        self.pool = pool
        self.router = router
        self.limits = limits or ApiLimits()
        self.places = Places(self.limits.concurrent)
        self._threads = threads
        self._clients: dict[str, ClientModel] = {}
        self._loading = asyncio.Lock()

    async def __aenter__(self) -> Gateway:
        """Raises ModelError, UnsupportedModel. That nobody serves the model now is a warning."""
        dtype = "float32"
        try:
            dtype = (await choose_chain(self.router)).hops[0].peer.dtype
        except NoRoute as error:
            log.warning("requests are refused with 503 for now: %s", error)
        self.text = (await self._client(dtype)).text
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
        with self.places.take(ask.choices):
            prompts = [await self._token_ids(prompt) for prompt in ask.prompts]
            lengths = [self._new_tokens(ask, len(prompt)) for prompt in prompts]
            chain = await choose_chain(self.router)
            client = await self._client(chain.hops[0].peer.dtype)
            answers = Answers(ask, prompts, lengths, chain, client, self)
            async with answers:
                yield answers

    async def _client(self, dtype: str) -> ClientModel:
        """The model's ends in the arithmetic of a chain; another one than before is loaded once."""
        async with self._loading:
            if dtype not in self._clients:
                self._clients[dtype] = await load_client(self.folder, dtype, self._threads)
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
