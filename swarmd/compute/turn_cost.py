"""How long a turn of the engine takes, as far as the scheduler needs to know. Pure."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["TurnCost"]


@dataclass(frozen=True, slots=True)
class TurnCost:
    """Seconds: `turn` whatever is in it (the weights are read once), `token` for each token more.

    `row` for each token of a decode step, where those cost something else; `piece` for a piece of
    a long step, whatever its length, where it runs by itself beside the decode steps. Only the
    ratios matter. Where sessions run one by one, `turn` is 0.
    """

    turn: float = 8.0
    token: float = 1.0
    row: float | None = None
    piece: float = 0.0

    def __post_init__(self) -> None:
        if self.turn < 0 or self.token <= 0 or self.piece < 0 or self.of_row <= 0:
            raise ValueError("a turn costs nothing less than 0, a token more than 0")

    @property
    def of_row(self) -> float:
        """What each token of a decode step costs."""
        return self.token if self.row is None else self.row

    def seconds(self, rows: int) -> float:
        """What a turn of so many tokens of decode steps takes."""
        return self.turn + self.of_row * rows

    def rows_within(self, seconds: float) -> int:
        """How many tokens of decode steps take no longer, beside others."""
        return max(0, int(seconds / self.of_row + 1e-9))

    def piece_seconds(self, tokens: int) -> float:
        """By how much a piece of a long step makes a turn longer."""
        return self.piece + self.token * tokens

    def tokens_within(self, seconds: float) -> int:
        """How long a piece may be so as not to take longer."""
        return max(0, int((seconds - self.piece) / self.token + 1e-9))
