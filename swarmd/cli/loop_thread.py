"""An event loop in a thread of its own, for a program whose main thread reads from a terminal.

Python hands Ctrl-C to the main thread only, and a line that is being read cannot be cancelled from
a loop. So the terminal has the main thread, and the loop another one.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import threading
from collections.abc import Callable, Coroutine
from contextlib import AbstractAsyncContextManager
from typing import Any, Generic, TypeVar

from swarmd.cli.runtime import run

__all__ = ["LoopThread"]

T = TypeVar("T")
V = TypeVar("V")
LOOK = 0.2
"""Seconds between looks at a future: on Windows a wait without an end hears no Ctrl-C."""


class LoopThread(Generic[T]):
    """`with LoopThread(open) as held:` enters the asynchronous context `open()` on the loop, and
    leaves it at the end. `held.value` is what it gave. Raises on entry what entering it raised,
    and at the end what leaving it raised."""

    def __init__(self, open_context: Callable[[], AbstractAsyncContextManager[T]]) -> None:
        self._open = open_context
        self._ready: concurrent.futures.Future[T] = concurrent.futures.Future()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._main: asyncio.Task[Any] | None = None
        self._task: asyncio.Task[Any] | None = None
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="swarmd-loop")

    def __enter__(self) -> LoopThread[T]:
        self._thread.start()
        try:
            self.value = self.wait(self._ready)
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(self, *exc: object) -> None:
        self._end()
        if self._failure is not None and exc[0] is None:
            raise self._failure

    def _run(self) -> None:
        try:
            run(self._hold())
        except BaseException as error:  # the main thread hears of it
            if self._ready.done():
                self._failure = error
            else:
                self._ready.set_exception(error)

    async def _hold(self) -> None:
        self._loop, self._main = asyncio.get_running_loop(), asyncio.current_task()
        self._ended = asyncio.Event()
        async with self._open() as value:
            self._ready.set_result(value)
            await self._ended.wait()

    def _end(self) -> None:
        """Leave the context; where it is still being entered, cancel that."""
        if self._loop is not None and self._thread.is_alive():
            ready = self._ready.done()
            assert self._main is not None
            stop = self._ended.set if ready else self._main.cancel
            with contextlib.suppress(RuntimeError):  # it has just ended by itself
                self._loop.call_soon_threadsafe(stop)
        self._thread.join()

    def start(self, work: Coroutine[Any, Any, V]) -> concurrent.futures.Future[V | None]:
        """Run `work` on the loop; its result, or None if `cancel` ended it. One at a time."""

        async def cancellable() -> V | None:
            self._task = asyncio.current_task()
            try:
                return await work
            except asyncio.CancelledError:
                return None
            finally:
                self._task = None

        assert self._loop is not None
        return asyncio.run_coroutine_threadsafe(cancellable(), self._loop)

    def cancel(self) -> None:
        """Cancel what was started; its future ends when the work has really ended."""

        def stop() -> None:
            if self._task is not None:
                self._task.cancel()

        assert self._loop is not None
        self._loop.call_soon_threadsafe(stop)

    @staticmethod
    def wait(future: concurrent.futures.Future[V], seconds: float | None = None) -> V:
        """The future's result. Raises TimeoutError after `seconds`, and KeyboardInterrupt."""
        while seconds is None or seconds > 0:
            step = LOOK if seconds is None else min(LOOK, seconds)
            done, _ = concurrent.futures.wait([future], step)
            if done:
                return future.result()
            seconds = None if seconds is None else seconds - step
        raise TimeoutError
