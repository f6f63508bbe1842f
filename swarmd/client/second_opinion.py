"""A verifier's session: a peer that runs a hop's kept inputs again, off the critical path."""

from __future__ import annotations

import time

from swarmd.blocks import Span
from swarmd.client.hop_link import HopLink
from swarmd.client.router import Router
from swarmd.peers import PeerInfo
from swarmd.routing.history import History
from swarmd.wire.pool import Pool
from swarmd.wire.tensors import TensorMeta, choose_codec

__all__ = ["SecondOpinion"]


class SecondOpinion:
    """A session over `span` at a peer that is not the hop. It is fed from position 0 on, in
    chunks, and kept for later checks. Not for concurrent calls."""

    def __init__(self, peer: PeerInfo, span: Span, link: HopLink, router: Router) -> None:
        self.peer = peer
        self.span = span
        self.fed = 0
        """Positions that the peer has in its cache, and that are still the session's."""
        self._link = link
        self._router = router
        self._until = 0

    @classmethod
    async def open(
        cls, peer: PeerInfo, span: Span, pool: Pool, router: Router, *, max_length: int,
        timeout: float,
    ) -> SecondOpinion:  # fmt: skip
        """Raises PeerFailure or RemoteError, as :meth:`HopLink.open` does."""
        link = await HopLink.open(peer, span, pool, max_length=max_length, timeout=timeout)
        return cls(peer, span, link, router)

    async def advance(
        self, inputs: History, end: int, *, chunk_tokens: int, dtype: str, hidden_size: int
    ) -> tuple[int, bytearray]:
        """Run the next chunk of `inputs`, at most to position `end`.

        Returns the chunk's first position and the outputs from there on as raw bytes. A `cut`
        meanwhile counts: the next chunk starts there. Raises PeerFailure or RemoteError.
        """
        start = self.fed
        self._until = min(start + chunk_tokens, end)
        tokens, blocks = self._until - start, len(self.span)
        data = inputs.read(start, self._until)
        began = time.monotonic()
        output = await self._link.step(
            start,
            data,
            TensorMeta(dtype, (1, tokens, hidden_size)),
            codec=choose_codec(len(data), self._router.bandwidth(self.peer)),
            deadline=self._router.deadlines.deadline(self.peer.peer_id, tokens, blocks, self.peer),
        )
        self._router.observe_step(
            self.peer,
            tokens=tokens,
            blocks=blocks,
            seconds=time.monotonic() - began,
            compute_seconds=output.compute_seconds,
            queue_seconds=output.queue_seconds,
            wire_bytes=output.wire_bytes,
        )
        self.fed = self._until
        return start, output.data

    def cut(self, start: int) -> None:
        """The session went back to position `start`."""
        self.fed = min(self.fed, start)
        self._until = min(self._until, start)

    async def close(self) -> None:
        """Free the peer's cache and give the connection back."""
        await self._link.close()

    def abort(self) -> None:
        """Drop the connection."""
        self._link.abort()
