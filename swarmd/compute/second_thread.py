"""A second thread for halves of products, which sleeps while nobody needs it.

The threads of BLAS and of torch wait for their next work by spinning: where several daemons share
the cores of a machine, they then hinder one another, and a product takes many times as long. This
thread waits for a lock. To wake it takes a tenth of a millisecond, so only large products are worth
it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

__all__ = ["SecondThread"]


class SecondThread:
    """Runs one thing beside another. The thread starts with the first use and ends with the
    process. Safe to share: who finds it taken does both things alone."""

    def __init__(self) -> None:
        self._taken = threading.Lock()
        self._go, self._done = threading.Lock(), threading.Lock()  # held, but to hand over
        self._go.acquire()
        self._done.acquire()
        self._work: Callable[[], object] | None = None
        self._error: BaseException | None = None
        self._thread: threading.Thread | None = None

    def run(self, ours: Callable[[], object], theirs: Callable[[], object]) -> None:
        """Return when both are done. Raises what either raised."""
        if not self._taken.acquire(blocking=False):
            ours()
            theirs()
            return
        try:
            if self._thread is None:
                self._thread = threading.Thread(target=self._serve, name="halves", daemon=True)
                self._thread.start()
            self._work = theirs
            self._go.release()
            try:
                ours()
            finally:
                self._done.acquire()
                error, self._error = self._error, None
            if error is not None:
                raise error
        finally:
            self._taken.release()

    def _serve(self) -> None:
        while True:
            self._go.acquire()
            assert self._work is not None
            try:
                self._work()
            except BaseException as error:  # the caller raises it
                self._error = error
            finally:
                self._work = None
                self._done.release()
