"""The inputs of one hop boundary so far, kept for replay. Pure bytes; knows no tensor.

Positions lie in pages, so that appending a token copies that token only, however long the answer
is (a growing tensor that is concatenated on every token would copy the whole history each time).
"""

from __future__ import annotations

__all__ = ["History"]

PAGE_POSITIONS = 64


class History:
    """Rows of `position_bytes` bytes each, addressed by position; grows and is cut at its end."""

    def __init__(self, position_bytes: int, *, page_positions: int = PAGE_POSITIONS) -> None:
        self.position_bytes = position_bytes
        self._page_bytes = position_bytes * page_positions
        self._pages: list[bytearray] = []
        self._length = 0
        self.bytes_copied = 0

    def __len__(self) -> int:
        """How many positions are held."""
        return self._length // self.position_bytes

    def append(self, data: bytes | bytearray | memoryview) -> None:
        """Add whole positions at the end. Raises ValueError for a part of one."""
        view = memoryview(data).cast("B")
        if len(view) % self.position_bytes:
            raise ValueError(f"{len(view)} bytes are no whole number of positions")
        while view:
            page, offset = divmod(self._length, self._page_bytes)
            if page == len(self._pages):
                self._pages.append(bytearray(self._page_bytes))
            taken = view[: self._page_bytes - offset]
            self._pages[page][offset : offset + len(taken)] = taken
            self._length += len(taken)
            self.bytes_copied += len(taken)
            view = view[len(taken) :]

    def cut(self, length: int) -> None:
        """Forget everything from position `length` on."""
        self._length = min(self._length, length * self.position_bytes)
        del self._pages[-(-self._length // self._page_bytes) :]

    def read(self, start: int, end: int) -> bytes:
        """A copy of positions `[start, end)`; the pages may be cut and refilled afterwards."""
        if not 0 <= start <= end <= len(self):
            raise IndexError(f"positions {start}:{end} of {len(self)}")
        begin, stop = start * self.position_bytes, end * self.position_bytes
        parts = []
        while begin < stop:
            page, offset = divmod(begin, self._page_bytes)
            until = min(self._page_bytes, offset + stop - begin)
            parts.append(memoryview(self._pages[page])[offset:until])
            begin += until - offset
        return b"".join(parts)
