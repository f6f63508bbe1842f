"""The hidden states at the boundaries of one session's hops: what each hop was given, and what left
the last one. Raw bytes, by position."""

from __future__ import annotations

from collections.abc import Sequence

from swarmd.routing.history import History
from swarmd.routing.replay import Keep

__all__ = ["Boundaries"]


class Boundaries:
    """`inputs` holds the history before each hop, by key, in the order of the chain at first;
    `final`, the one behind the last hop, is only kept where somebody is to read it again."""

    def __init__(
        self, position_bytes: int, keys: Sequence[int], *, keeps_final: bool = False
    ) -> None:
        self.position_bytes = position_bytes
        self.inputs = {key: History(position_bytes) for key in keys}
        self.final = History(position_bytes)
        self._keeps_final = keeps_final
        self._output = bytearray()
        self._output_start = 0

    def begin(self, first: int, start: int, data: bytes) -> None:
        """A step cuts everything back to `start`; `data` arrives before hop `first`."""
        for history in (*self.inputs.values(), self.final):
            history.cut(start)
        self._output.clear()
        self._output_start = start
        self.inputs[first].append(data)

    def holds(self, first: int, start: int, data: bytes) -> int:
        """How many positions of `data`, from `start` on, were put in ahead before hop `first`; 0 if
        what was put in there is something else."""
        history = self.inputs[first]
        end = min(len(history), start + len(data) // self.position_bytes)
        if end <= start:
            return 0
        known = history.read(start, end)
        return end - start if data.startswith(known) else 0

    def keep(self, keep: Keep, data: bytes | bytearray | memoryview) -> None:
        """Keep what is new of an output."""
        first, last = (self.position_bytes * (p - keep.first) for p in (keep.start, keep.end))
        new = memoryview(data)[first:last]
        if keep.after is not None:
            self.inputs[keep.after].append(new)
            return
        self._output += new
        if self._keeps_final:
            self.final.append(new)

    def take_output(self, start: int, tokens: int) -> bytes:
        """What left the last hop at so many positions from `start` on. Those are let go."""
        first = self.position_bytes * (start - self._output_start)
        last = first + self.position_bytes * tokens
        output = bytes(self._output[first:last])
        del self._output[:last]
        self._output_start = start + tokens
        return output

    def replace(self, key: int, keys: Sequence[int]) -> History:
        """Hops `keys` take the place of hop `key`, whose history the first of them gets; returns
        that."""
        history = self.inputs.pop(key)
        for new in keys:
            self.inputs[new] = History(self.position_bytes)
        self.inputs[keys[0]] = history
        return history
