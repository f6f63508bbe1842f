"""How far our clock is from those of the peers that answered a ping. Pure.

Records expire by the wall clock, so who is half a minute wrong publishes records that others
refuse, and believes dead ones. No peer is believed alone: the median of several is.
"""

from __future__ import annotations

import statistics

from swarmd.dht.patience import Memory
from swarmd.identity import PeerId

__all__ = ["LEAST_PEERS", "ClockOffset"]

LEAST_PEERS = 3
"""Peers below which there is no verdict: one liar must not decide."""
MOST_PEERS = 15
"""Peers whose last samples count."""


class ClockOffset:
    """The last sample of each of the peers heard of last; seconds by which *they* are ahead."""

    def __init__(self) -> None:
        self._samples: Memory[PeerId, float] = Memory(MOST_PEERS)

    def sample(self, peer: PeerId, theirs: float, asked_at: float, answered_at: float) -> None:
        """A peer's wall clock, and ours when we asked and were answered (seconds)."""
        self._samples[peer] = theirs - (asked_at + answered_at) / 2

    @property
    def peers(self) -> int:
        """Peers that say so."""
        return len(self._samples)

    @property
    def offset(self) -> float | None:
        """The median in seconds, positive if our clock is behind; None with too few peers."""
        if len(self._samples) < LEAST_PEERS:
            return None
        return statistics.median(self._samples.values())
