"""Two streams joined into one: what arrives on either leaves on the other, at a bounded rate."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from swarmd.rates import Bucket

__all__ = ["Splice"]


class Splice:
    """Join two transports; from then on they belong to this object.

    Nothing is read from one side while the other's buffer is full, so memory is bounded by the
    transports' own buffers. When either side ends, what it sent is flushed and the other is
    closed. `on_end` is called once. Bytes are passed as they are: they are encrypted end to end.
    """

    def __init__(
        self,
        one: asyncio.Transport,
        other: asyncio.Transport,
        *,
        bucket: Bucket,
        idle_timeout: float,
        on_end: Callable[[], None],
    ) -> None:
        self.passed_bytes = 0
        self._loop = asyncio.get_running_loop()
        self._bucket = bucket
        self._idle_timeout = idle_timeout
        self._on_end = on_end
        self._ended = False
        self._last = self._loop.time()
        self._halves = (_Half(self, one), _Half(self, other))
        first, second = self._halves
        first.other, second.other = second, first
        for half in self._halves:
            half.transport.set_protocol(half)
            half.transport.set_write_buffer_limits(high=256 << 10)
        for half in self._halves:
            half.update()
        self._idle = self._loop.call_later(idle_timeout, self._check_idle)

    def abort(self) -> None:
        """Drop both sides now. Idempotent."""
        for half in self._halves:
            half.transport.abort()
        self._end()

    def passing(self, half: _Half, data: bytes) -> None:
        """`data` arrived on one side."""
        self._last = self._loop.time()
        self.passed_bytes += len(data)
        half.other.transport.write(data)
        pause = self._bucket.take(len(data), self._last)
        if pause > 0:
            half.rest(pause)

    def lost(self, half: _Half) -> None:
        """One side ended: flush and close the other."""
        half.other.transport.close()
        self._end()

    def _end(self) -> None:
        if not self._ended:
            self._ended = True
            self._idle.cancel()
            for half in self._halves:
                half.stop()
            self._on_end()

    def _check_idle(self) -> None:
        left = self._last + self._idle_timeout - self._loop.time()
        if left <= 0:
            self.abort()
        else:
            self._idle = self._loop.call_later(left, self._check_idle)


class _Half(asyncio.Protocol):
    """One side: reads unless the other side is full or the rate is used up."""

    other: _Half

    def __init__(self, splice: Splice, transport: asyncio.Transport) -> None:
        self.transport = transport
        self.full = False
        self._splice = splice
        self._resting: asyncio.TimerHandle | None = None
        self._reading = transport.is_reading()

    def update(self) -> None:
        """Read, or do not."""
        reading = not self.other.full and self._resting is None
        if self.transport.is_closing() or reading == self._reading:
            return
        self._reading = reading
        if reading:
            self.transport.resume_reading()
        else:
            self.transport.pause_reading()

    def rest(self, seconds: float) -> None:
        """Read nothing for so long."""
        if self._resting is None:
            self._resting = asyncio.get_running_loop().call_later(seconds, self._rested)
            self.update()

    def stop(self) -> None:
        if self._resting is not None:
            self._resting.cancel()
            self._resting = None

    def _rested(self) -> None:
        self._resting = None
        self.update()

    def data_received(self, data: bytes) -> None:
        self._splice.passing(self, data)

    def eof_received(self) -> bool:
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        self._splice.lost(self)

    def pause_writing(self) -> None:
        self.full = True
        self.other.update()

    def resume_writing(self) -> None:
        self.full = False
        self.other.update()
