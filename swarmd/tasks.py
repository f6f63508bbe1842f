"""The one place that creates asyncio tasks: every task has an owner that awaits it.

An owner is an async context manager. Leaving its block cancels what still runs and waits for
it, so no task outlives the object that started it. A child that fails ends the owner's block
with that error (loud beats limping), unless it was spawned with `errors="log"`: then the failure
is one warning, which is what a connection or a session gets, so that no peer can stop a node.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
from collections.abc import Awaitable, Callable, Coroutine
from types import TracebackType
from typing import Any, Literal, TypeVar

__all__ = ["TaskOwner", "periodic"]

T = TypeVar("T")
log = logging.getLogger(__name__)


class TaskOwner:
    """Owns tasks. `async with TaskOwner("daemon") as owner: owner.spawn(work(), name="work")`."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._tasks: set[asyncio.Task[Any]] = set()
        self._parent: asyncio.Task[Any] | None = None
        self._failure: BaseException | None = None
        self._closing = False
        self._cancelled_parent = False

    async def __aenter__(self) -> TaskOwner:
        self._parent = asyncio.current_task()
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.close()
        if self._failure is None:
            return
        if self._cancelled_parent and isinstance(exc, asyncio.CancelledError):
            assert self._parent is not None
            if self._parent.uncancel() > 0:  # somebody else wants the parent gone as well
                return
            raise self._failure from None
        if exc is None:
            raise self._failure

    def spawn(
        self,
        coro: Coroutine[Any, Any, T],
        *,
        name: str,
        errors: Literal["raise", "log"] = "raise",
    ) -> asyncio.Task[T]:
        """Start `coro` as a child. Raises RuntimeError when the owner is closing."""
        if self._closing:
            coro.close()
            raise RuntimeError(f"{self.name} is closing")
        task = asyncio.get_running_loop().create_task(coro, name=f"{self.name}.{name}")
        self._tasks.add(task)
        task.add_done_callback(self._log_failure if errors == "log" else self._fail)
        return task

    def __len__(self) -> int:
        return len(self._tasks)

    async def close(self) -> None:
        """Cancel all children and wait for them. Idempotent; a cancel of the caller is kept."""
        self._closing = True
        interrupted: asyncio.CancelledError | None = None
        for task in self._tasks:
            task.cancel()
        while self._tasks:
            try:
                await asyncio.wait(list(self._tasks))
            except asyncio.CancelledError as error:
                interrupted = error
            await asyncio.sleep(0)  # lets the done callbacks run
        if interrupted is not None:
            raise interrupted

    def _log_failure(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.warning("%s failed: %s: %s", task.get_name(), type(error).__name__, error)
            log.debug("where it failed", exc_info=error)

    def _fail(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if task.cancelled() or (error := task.exception()) is None or self._failure is not None:
            return
        self._failure = error
        if not self._closing and self._parent is not None:
            self._cancelled_parent = True
            self._parent.cancel()


async def periodic(
    action: Callable[[], Awaitable[object]],
    *,
    interval: float,
    jitter: float = 0.2,
    rng: random.Random | None = None,
    wake: asyncio.Event | None = None,
) -> None:
    """Run `action`, then wait `interval` seconds ± `jitter` (a fraction), for ever.

    Setting `wake` ends the wait at once. Jitter keeps a swarm's nodes from acting in step.
    """
    rng = rng or random.Random()
    while True:
        await action()
        pause = interval * rng.uniform(1 - jitter, 1 + jitter)
        if wake is None:
            await asyncio.sleep(pause)
        else:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(pause):
                    await wake.wait()
            wake.clear()
