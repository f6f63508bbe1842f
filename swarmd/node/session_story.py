"""What happened in one session, told in one line of the log when it ends. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from swarmd.errors import BadRequest, ConnectionLost

__all__ = ["SessionStory"]


@dataclass(slots=True)
class SessionStory:
    """Counts of a session; seconds are sums over its steps. `position`: where its last step ended;
    `cut_backs`: steps that began before that; `longest`: the most tokens it ever held."""

    session: str
    client: str
    blocks: str
    steps: int = 0
    tokens: int = 0
    refusals: int = 0
    cut_backs: int = 0
    position: int = 0
    longest: int = 0
    queue_seconds: float = 0.0
    compute_seconds: float = 0.0

    def ran(self, start: int, tokens: int, queue_seconds: float, compute_seconds: float) -> None:
        """A step was answered."""
        self.steps += 1
        self.tokens += tokens
        self.cut_backs += start < self.position
        self.position = start + tokens
        self.longest = max(self.longest, self.position)
        self.queue_seconds += queue_seconds
        self.compute_seconds += compute_seconds

    def refused(self) -> None:
        """A step was refused."""
        self.refusals += 1

    def told(self, end: BaseException | None) -> str:
        """The line. `end` is what ended the session; None is the client's `close`."""
        parts = [
            f"session {self.session} of {self.client} over {self.blocks} {_ending(end)}:",
            f"{self.steps} steps, {self.tokens} tokens, at most {self.longest} held,",
            f"{self.queue_seconds:.2f} s waiting, {self.compute_seconds:.2f} s computing",
        ]
        if self.cut_backs:
            parts.append(f"; cut back {self.cut_backs} times")
        if self.refusals:
            parts.append(f"; {self.refusals} steps refused")
        return " ".join(parts).replace(" ;", ";")


def _ending(end: BaseException | None) -> str:
    if end is None:
        return "closed"
    if isinstance(end, TimeoutError):
        return "ended, its client silent"
    if isinstance(end, ConnectionLost):
        return "lost its connection"
    if isinstance(end, BadRequest):
        return "ended by a wrong message"
    return "cut off"
