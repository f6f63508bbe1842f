"""Write tokens: a write or a page is served only to an address that was answered before.

As in BEP 5: a token is a keyed hash of the asker's IP and of a slot of time, so the holder keeps
no state, and a forged source address gets no more than one answer's worth of traffic.
"""

from __future__ import annotations

import hashlib
import hmac

__all__ = ["TOKEN_BYTES", "TokenMint"]

TOKEN_BYTES = 8


class TokenMint:
    """Makes and checks tokens. `now` is in seconds on any clock that never jumps back."""

    def __init__(self, secret: bytes, period: float) -> None:
        """A token is good for `period` seconds at least, and for twice that at most."""
        self._secret = secret
        self._period = period

    def mint(self, ip: str, now: float) -> bytes:
        """The token of `ip` at `now`."""
        return self._token(ip, int(now // self._period))

    def check(self, token: bytes, ip: str, now: float) -> bool:
        """Whether `token` was made for `ip` in this period or the one before."""
        slot = int(now // self._period)
        return any(hmac.compare_digest(token, self._token(ip, s)) for s in (slot, slot - 1))

    def _token(self, ip: str, slot: int) -> bytes:
        text = f"{slot} {ip}".encode()
        return hashlib.blake2b(text, key=self._secret, digest_size=TOKEN_BYTES).digest()
