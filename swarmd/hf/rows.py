"""Which positions each session of a batch has to run next. Pure: numbers only, no tensor library.

A session on the wire has one row. A batch of rows (prompts, beams) is as many sessions, and what
`generate` does to a batch between two steps (cut it back, reorder its rows, repeat them) is done
here to a table of *keys* only: one key a row and column, a token id, :data:`PAD` where the
attention mask is 0, or a number below it for an input that is no token. Nothing is sent for it.

A *slot* stands for a session: it knows the keys that were run through it. When a step comes, each
row takes the slot that shares the longest beginning with it, is cut back to that (a step names its
start, so cutting back costs nothing), and runs the rest. A greedy step thus runs one position, a
swap of two beams no more than that, and a beam that took over from another one runs again what
came after they parted.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["PAD", "Feed", "Keys", "Plan", "RowBook"]

PAD = -1
"""The key of a column that is no position of its row."""

Keys = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Feed:
    """Instruction: cut the session of `slot` back to position `start`; run `keys` from there."""

    row: int
    slot: int
    start: int
    keys: Keys

    @property
    def end(self) -> int:
        """The position after the last one that is run."""
        return self.start + len(self.keys)


@dataclass(frozen=True, slots=True)
class Plan:
    """What one step of the batch comes to. `columns` is the table after it."""

    columns: Keys
    feeds: tuple[Feed, ...]
    surplus: tuple[int, ...]
    """Slots that no row has any more: their sessions are to be closed."""
    slot_of: dict[int, int]

    def positions(self, last: int) -> Keys:
        """`(rows, last)`: for each of the last columns the position whose output stands there: its
        own or, in a padding column, that of the row's last position before it; −1 if none."""
        counts = np.cumsum(self.columns != PAD, axis=1, dtype=np.int64) - 1
        return counts[:, counts.shape[1] - last :]


class RowBook:
    """The table of a batch, and what each of its sessions holds. `plan`, then `ran` for each feed
    that succeeded, then `commit`; without `commit` the table is as before."""

    def __init__(self) -> None:
        self.columns: Keys = np.empty((0, 0), dtype=np.int64)
        self._slots: dict[int, Keys] = {}
        self._slot_of: dict[int, int] = {}
        self._numbers = itertools.count()

    @property
    def n_rows(self) -> int:
        return int(self.columns.shape[0])

    @property
    def n_columns(self) -> int:
        return int(self.columns.shape[1])

    @property
    def slots(self) -> tuple[int, ...]:
        return tuple(self._slots)

    def held(self, slot: int) -> Keys:
        """The keys that were run through a slot's session."""
        return self._slots[slot]

    # ---- what happens between two steps --------------------------------------------------------

    def cut(self, n_columns: int) -> None:
        """Keep the first `n_columns` columns. Raises ValueError if there are not so many."""
        if not 0 <= n_columns <= self.n_columns:
            raise ValueError(f"cannot cut {self.n_columns} columns back to {n_columns}")
        self.columns = self.columns[:, :n_columns]

    def select(self, rows: Sequence[int]) -> None:
        """Let the rows be these of the present ones, in this order; one may stand several times.
        Raises IndexError."""
        if any(not 0 <= row < self.n_rows for row in rows):
            raise IndexError(f"rows {list(rows)} of {self.n_rows}")
        self.columns = self.columns[list(rows)]
        self._slot_of = {
            new: self._slot_of[old] for new, old in enumerate(rows) if old in self._slot_of
        }

    def clear(self) -> None:
        """Forget the table, not what the sessions hold: what begins alike is not run again."""
        self.columns = np.empty((0, 0), dtype=np.int64)
        self._slot_of = {}

    def lose_slots(self) -> tuple[int, ...]:
        """All sessions are gone; the table stays. Returns their slots."""
        lost = tuple(self._slots)
        self._slots, self._slot_of = {}, {}
        return lost

    def length_with(self, new: Keys) -> int:
        """Positions of the longest row once columns `new` are added."""
        past = np.count_nonzero(self.columns != PAD, axis=1) if self.n_columns else 0
        return int(np.max(past + np.count_nonzero(new != PAD, axis=1)))

    # ---- a step --------------------------------------------------------------------------------

    def plan(self, new: Keys, *, keep: int | None = None) -> Plan:
        """Columns `new` `(rows, columns)` are added; outputs are wanted of all of them, or of the
        last `keep`. What the slots hold is cut back as the plan says, whatever comes of it.

        Raises ValueError if the table has another number of rows.
        """
        if self.n_columns and new.shape[0] != self.n_rows:
            raise ValueError(f"{new.shape[0]} rows for a table of {self.n_rows}")
        columns = np.concatenate([self.columns, new], axis=1) if self.n_columns else new.copy()
        first = columns.shape[1] - (new.shape[1] if keep is None else min(keep, new.shape[1]))
        wanted = [row[row != PAD] for row in columns]
        slot_of = self._assign(wanted)
        feeds = []
        for row, keys in enumerate(wanted):
            if not len(keys):
                continue
            slot = slot_of[row]
            start = int(np.count_nonzero(columns[row, :first] != PAD))
            if columns[row, first] == PAD:  # there the output of the position before is wanted
                start -= 1
            start = max(0, min(start, len(keys) - 1, _shared(keys, self._slots[slot])))
            self._slots[slot] = keys[:start]
            feeds.append(Feed(row, slot, start, keys[start:]))
        surplus = tuple(slot for slot in self._slots if slot not in slot_of.values())
        for slot in surplus:
            del self._slots[slot]
        return Plan(columns, tuple(feeds), surplus, slot_of)

    def ran(self, feed: Feed) -> None:
        """A feed's positions went through its session."""
        self._slots[feed.slot] = np.concatenate([self._slots[feed.slot][: feed.start], feed.keys])

    def commit(self, plan: Plan) -> None:
        """All feeds of the plan succeeded."""
        self.columns, self._slot_of = plan.columns, plan.slot_of

    def _assign(self, wanted: Sequence[Keys]) -> dict[int, int]:
        """A slot for each row, the longest shared beginnings first; a row's last slot wins ties."""
        while len(self._slots) < len(wanted):
            self._slots[next(self._numbers)] = np.empty(0, dtype=np.int64)
        own = [self._slot_of.get(row) for row in range(len(wanted))]
        if len(set(own) - {None}) == len(wanted) and all(
            slot in self._slots and _shared(keys, self._slots[slot]) == len(self._slots[slot])
            for slot, keys in zip(own, wanted, strict=True)
        ):
            return dict(self._slot_of)  # each row goes on where it is
        shared = [
            (_shared(keys, held), self._slot_of.get(row) == slot, -row, -slot)
            for row, keys in enumerate(wanted)
            for slot, held in self._slots.items()
        ]
        found: dict[int, int] = {}
        for _, _, row, slot in sorted(shared, reverse=True):
            if -row not in found and -slot not in found.values():
                found[-row] = -slot
        return found


def _shared(a: Keys, b: Keys) -> int:
    """How many keys both begin with."""
    length = min(len(a), len(b))
    differ = a[:length] != b[:length]
    return int(differ.argmax()) if differ.any() else length
