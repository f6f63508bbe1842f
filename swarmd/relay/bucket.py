"""A token bucket: a rate with a burst. Pure."""

from __future__ import annotations

__all__ = ["Bucket"]


class Bucket:
    """`rate` units a second, and at most `burst` of them at once. `now` in monotonic seconds.

    The bucket may be overdrawn, since bytes that were read cannot be unread; `take` says for how
    long nothing more may be taken.
    """

    def __init__(self, rate: float, burst: float, now: float) -> None:
        if rate <= 0 or burst <= 0:
            raise ValueError("rate and burst must be above zero")
        self._rate = rate
        self._burst = burst
        self._level = burst
        self._at = now

    def take(self, units: float, now: float) -> float:
        """Take `units`; returns the seconds until the bucket is above zero again (0: it is)."""
        elapsed = max(0.0, now - self._at)
        self._level = min(self._burst, self._level + elapsed * self._rate) - units
        self._at = max(now, self._at)
        return max(0.0, -self._level / self._rate)
