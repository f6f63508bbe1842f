"""Frames: how messages lie in a TCP stream. Pure: bytes in, frames out, and the reverse.

::

    u32 header length | u32 payload length | header (msgpack) | payload (raw bytes)

Both lengths are big-endian and are checked against the limits before anything is allocated.
The decoder owns the buffers that the transport reads into: small frames are parsed out of one
scratch buffer, and a large payload is read by the kernel straight into its own memory, which the
tensor then lies in without another copy.
"""

from __future__ import annotations

import struct
from collections import deque
from dataclasses import dataclass

from swarmd.errors import BadRequest, FrameTooLarge

__all__ = ["DEFAULT_LIMITS", "Frame", "FrameDecoder", "Limits", "encode_preamble"]

_PREAMBLE = struct.Struct(">II")
_SCRATCH_BYTES = 1 << 16


@dataclass(frozen=True, slots=True)
class Limits:
    """The largest header and payload in bytes that a side accepts.

    A header is at most a route of some hundred hops. A payload is at most one step: 2,048 tokens
    of a hidden size of 16,384 in fp32 are 128 MiB.
    """

    header: int = 32 << 10
    payload: int = 128 << 20

    def __post_init__(self) -> None:
        if not 0 < self.header <= _SCRATCH_BYTES - _PREAMBLE.size or self.payload < 0:
            raise ValueError(f"limits that no decoder can keep: {self}")


DEFAULT_LIMITS = Limits()


@dataclass(frozen=True, slots=True)
class Frame:
    """A complete frame. `payload` is writable memory that belongs to the receiver."""

    header: bytes
    payload: bytearray


def encode_preamble(header: bytes, payload_bytes: int) -> bytes:
    """The first bytes of a frame, header included; the payload follows as it lies in memory."""
    return _PREAMBLE.pack(len(header), payload_bytes) + header


class FrameDecoder:
    """Turns any chunking of a byte stream into frames.

    The transport asks `get_buffer` for memory, fills some of it, and says how much by
    `received`; complete frames are taken by `next_frame`. After an error the decoder is dead:
    a stream that broke the framing has no next frame.
    """

    def __init__(self, limits: Limits = DEFAULT_LIMITS) -> None:
        self.limits = limits
        self._scratch = bytearray(_SCRATCH_BYTES)
        self._begin = 0
        self._end = 0
        self._header = b""
        self._payload: bytearray | None = None
        self._filled = 0
        self._frames: deque[Frame] = deque()

    @property
    def mid_frame(self) -> bool:
        """Whether the stream may not end here."""
        return self._payload is not None or self._begin != self._end

    def get_buffer(self) -> memoryview:
        """Memory to read into; never empty."""
        if self._payload is not None and len(self._payload) - self._filled >= _SCRATCH_BYTES:
            return memoryview(self._payload)[self._filled :]
        if self._begin > 0:
            rest = self._scratch[self._begin : self._end]
            self._scratch[: len(rest)] = rest
            self._begin, self._end = 0, len(rest)
        return memoryview(self._scratch)[self._end :]

    def received(self, n_bytes: int) -> None:
        """`n_bytes` were written at the start of the last `get_buffer`.

        Raises FrameTooLarge or BadRequest for lengths that no frame may have.
        """
        if self._payload is not None and len(self._payload) - self._filled >= _SCRATCH_BYTES:
            self._filled += n_bytes
            self._complete_payload()
        else:
            self._end += n_bytes
        while self._parse():
            pass

    def feed(self, data: bytes) -> None:
        """`get_buffer` and `received` for bytes that lie elsewhere already."""
        view = memoryview(data)
        while view:
            buffer = self.get_buffer()
            n_bytes = min(len(buffer), len(view))
            buffer[:n_bytes] = view[:n_bytes]
            view = view[n_bytes:]
            self.received(n_bytes)

    def next_frame(self) -> Frame | None:
        """The oldest complete frame, or None."""
        return self._frames.popleft() if self._frames else None

    def _parse(self) -> bool:
        if self._payload is not None:
            taken = min(len(self._payload) - self._filled, self._end - self._begin)
            source = memoryview(self._scratch)[self._begin : self._begin + taken]
            self._payload[self._filled : self._filled + taken] = source
            self._begin += taken
            self._filled += taken
            return self._complete_payload()
        available = self._end - self._begin
        if available < _PREAMBLE.size:
            return False
        header_bytes, payload_bytes = _PREAMBLE.unpack_from(self._scratch, self._begin)
        self._check(header_bytes, payload_bytes)
        if available < _PREAMBLE.size + header_bytes:
            return False
        start = self._begin + _PREAMBLE.size
        self._header = bytes(self._scratch[start : start + header_bytes])
        self._begin = start + header_bytes
        self._payload = bytearray(payload_bytes)
        self._filled = 0
        return True

    def _complete_payload(self) -> bool:
        assert self._payload is not None
        if self._filled < len(self._payload):
            return False
        self._frames.append(Frame(self._header, self._payload))
        self._payload = None
        return True

    def _check(self, header_bytes: int, payload_bytes: int) -> None:
        if header_bytes == 0:
            raise BadRequest("a frame without a header")
        if header_bytes > self.limits.header:
            raise FrameTooLarge(
                f"a header of {header_bytes} bytes; the limit is {self.limits.header}"
            )
        if payload_bytes > self.limits.payload:
            raise FrameTooLarge(
                f"a payload of {payload_bytes} bytes; the limit is {self.limits.payload}"
            )
