"""How long a turn of the engine takes, as far as the scheduler needs to know. Pure."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["TurnCost"]


@dataclass(frozen=True, slots=True)
class TurnCost:
    """Seconds: `turn` whatever is in it (the weights are read once), `token` for each token more.

    Only their ratio matters. Where sessions run one by one, `turn` is 0.
    """

    turn: float = 8.0
    token: float = 1.0

    def __post_init__(self) -> None:
        if self.turn < 0 or self.token <= 0:
            raise ValueError("a turn costs nothing less than 0, a token more than 0")

    def seconds(self, tokens: int) -> float:
        """What a turn of so many tokens takes."""
        return self.turn + self.token * tokens

    def tokens_within(self, seconds: float) -> int:
        """How many tokens a turn may have so as not to take longer."""
        return max(0, int((seconds - self.turn) / self.token + 1e-9))
