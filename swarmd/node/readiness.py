"""Whether a node is ready for work: by a probe that its own blocks passed lately. Pure.

=========  =======================================  =====
state      leaves by                                ready
=========  =======================================  =====
loading    `loaded` -> unproven                     no
unproven   `passed` -> proven                       no
proven     `failed` -> unproven                     yes
any        `leaving` -> left                        no
=========  =======================================  =====

A probe is due at once in `unproven`, after that no sooner than `every` seconds after the last one
began. Time is handed in, in monotonic seconds.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass

__all__ = ["PROBE_EVERY", "Readiness", "ReadyState", "Verdict"]

PROBE_EVERY = 10.0
"""Seconds: a step of one token each ten seconds at most, whoever asks how often."""


class ReadyState(enum.Enum):
    LOADING = "loading"
    UNPROVEN = "unproven"
    PROVEN = "proven"
    LEFT = "left"


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether the node is ready, and if not, why."""

    ready: bool
    reason: str


class Readiness:
    def __init__(self, every: float = PROBE_EVERY) -> None:
        self.every = every
        self.state = ReadyState.LOADING
        self._reason = "the node is loading"
        self._began: float | None = None

    def loaded(self) -> None:
        """The node serves. Idempotent."""
        if self.state is ReadyState.LOADING:
            self.state, self._reason = ReadyState.UNPROVEN, "the first probe is under way"

    def leaving(self) -> None:
        self.state, self._reason = ReadyState.LEFT, "the node is leaving the swarm"

    def due(self, now: float) -> bool:
        """Whether a probe should begin; the answer True counts as its beginning."""
        if self.state not in (ReadyState.UNPROVEN, ReadyState.PROVEN):
            return False
        if self._began is not None and now < self._began + self.every:
            return False
        self._began = now
        return True

    def passed(self) -> None:
        if self.state is ReadyState.UNPROVEN:
            self.state = ReadyState.PROVEN

    def failed(self, reason: str) -> None:
        if self.state in (ReadyState.UNPROVEN, ReadyState.PROVEN):
            self.state, self._reason = ReadyState.UNPROVEN, f"the probe failed: {reason}"

    def postponed(self, reason: str) -> None:
        """The probe could not begin, through no fault of the blocks: what was known stays."""
        if self.state is ReadyState.UNPROVEN:
            self._reason = f"no probe yet: {reason}"

    @property
    def verdict(self) -> Verdict:
        ready = self.state is ReadyState.PROVEN
        return Verdict(ready, "" if ready else self._reason)
