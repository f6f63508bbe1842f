"""An event loop on a thread of its own, for programs that block."""

from __future__ import annotations

import asyncio
import atexit
import concurrent.futures
import concurrent.futures.thread
import contextlib
import sys
import threading
import weakref
from collections.abc import Callable, Coroutine
from contextlib import AbstractAsyncContextManager
from typing import Any, Generic, TypeVar

from swarmd.errors import UsageError
from swarmd.tasks import TaskOwner

__all__ = ["LoopThread"]

S = TypeVar("S")
T = TypeVar("T")

CLOSE_SECONDS = 15.0
"""For closing what runs there: sessions take a second, the DHT another."""
_open: weakref.WeakSet[LoopThread[Any]] = weakref.WeakSet()
_CLOSED = "this model is closed; load it again by from_pretrained"


class LoopThread(Generic[S]):
    """Enters `service` on a new thread's loop, where it stays until `close`; `value` is what it
    gave. Raises what entering raises. Any thread may call `run`, several at a time. What is still
    open when the program ends is closed then."""

    def __init__(self, service: Callable[[], AbstractAsyncContextManager[S]], *, name: str) -> None:
        self._service = service
        self._ready: concurrent.futures.Future[S] = concurrent.futures.Future()
        self._closing = threading.Event()
        self._lock = threading.Lock()
        self._waiting: set[concurrent.futures.Future[Any]] = set()
        self._ended = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stop: asyncio.Event | None = None
        self._owner = TaskOwner(name)
        # a daemon thread: the interpreter waits for others
        self._thread = threading.Thread(target=self._work, name=name, daemon=True)
        _open.add(self)
        self._thread.start()
        try:
            self.value: S = self._ready.result()
        except BaseException:
            self.close()
            raise

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Wait for `work`, which runs on the loop. A KeyboardInterrupt in the waiting thread
        cancels it, and waits until it has ended. Raises UsageError after `close`."""
        if threading.current_thread() is self._thread:
            work.close()
            raise RuntimeError("a blocking call on the event loop's own thread")
        result: concurrent.futures.Future[T] = concurrent.futures.Future()
        task: asyncio.Task[None] | None = None

        async def carry() -> None:
            try:
                result.set_result(await work)
            except asyncio.CancelledError:
                raise
            except BaseException as error:
                result.set_exception(error)

        def ended(_task: object = None) -> None:
            work.close()  # one that was cancelled before it began
            _close_result(result)

        def start() -> None:
            nonlocal task
            try:
                task = self._owner.spawn(carry(), name="call", errors="log")
            except RuntimeError:
                ended()
            else:
                task.add_done_callback(ended)

        def cancel() -> None:
            if task is not None:
                task.cancel()

        with self._lock:
            if not self._ended:
                self._waiting.add(result)
        try:
            if self._ended or not self._soon(start):
                work.close()
                raise UsageError(_CLOSED)
            try:
                return result.result()
            except BaseException:
                if not result.done():
                    self._soon(cancel)
                    with contextlib.suppress(BaseException):
                        result.exception(CLOSE_SECONDS)
                raise
        finally:
            with self._lock:
                self._waiting.discard(result)

    def post(self, call: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Have `call()` awaited on the loop without waiting for it; dropped if it is closed. For
        finalizers, which run on any thread and must not block."""

        def start() -> None:
            with contextlib.suppress(RuntimeError):  # closing: all is closed with it
                self._owner.spawn(call(), name="post", errors="log")

        self._soon(start)

    def _soon(self, call: Callable[[], object]) -> bool:
        """False if there is no loop any more."""
        if self._loop is None or self._closing.is_set():
            return False
        try:
            self._loop.call_soon_threadsafe(call)
        except RuntimeError:  # it has just been closed
            return False
        return True

    def close(self) -> None:
        """Cancel what runs, leave the service, end the thread. Idempotent."""
        if self._stop is not None:
            self._soon(self._stop.set)
        self._closing.set()
        if threading.current_thread() is not self._thread:
            self._thread.join(CLOSE_SECONDS)

    def _work(self) -> None:
        factory = None
        if sys.platform != "win32":
            import uvloop

            factory = uvloop.new_event_loop
        try:
            with asyncio.Runner(loop_factory=factory) as runner:
                runner.run(self._main())
        except BaseException as error:
            if self._ready.done():
                raise
            self._ready.set_exception(error)
        finally:  # what was handed over when the loop had just ended
            with self._lock:
                self._ended = True
                for result in self._waiting:
                    _close_result(result)

    async def _main(self) -> None:
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        async with self._service() as value, self._owner:
            if self._closing.is_set():  # before there was anything to stop
                raise UsageError(_CLOSED)
            self._ready.set_result(value)
            await self._stop.wait()


def _close_result(result: concurrent.futures.Future[Any]) -> None:
    with contextlib.suppress(concurrent.futures.InvalidStateError):  # it has one
        result.set_exception(UsageError(_CLOSED))


def _close_all() -> None:
    for loop in list(_open):
        loop.close()


# Leaving the service needs asyncio's thread pool, whose end (concurrent.futures.thread, imported
# above) comes before what `atexit` calls: so this is called where that is, and before it. Python
# has no public name for it (tested).
getattr(threading, "_register_atexit", atexit.register)(_close_all)
