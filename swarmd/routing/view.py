"""What a client knows of one model's swarm at one moment: the announcements, sorted and sifted."""

from __future__ import annotations

from collections.abc import Container, Iterable
from dataclasses import dataclass, replace

from swarmd.blocks import Span, coverage, holes
from swarmd.identity import PeerId
from swarmd.peers import Arithmetic, ModelId, PeerInfo, PeerState

__all__ = ["MAX_REMEMBERED", "View"]

MAX_REMEMBERED = 2000
"""Announcements that outlive a fetch which did not return them: twice what one fetch reads."""


@dataclass(frozen=True, slots=True)
class View:
    """An immutable snapshot of the peers of one model; build it with :meth:`of`.

    `peers` are sorted by PeerId, at most one announcement each, in any state but GONE. Only those
    that are ONLINE are `routable`: a JOINING peer has not loaded its blocks yet, and a DRAINING
    one takes no new session.
    """

    model_id: ModelId
    n_blocks: int
    model_name: str
    peers: tuple[PeerInfo, ...]

    @classmethod
    def of(
        cls,
        peers: Iterable[PeerInfo],
        n_blocks: int,
        *,
        model_id: ModelId,
        model_name: str = "",
    ) -> View:
        """Sift `peers`: other models, wrong block counts and tombstones are left out.

        Of several announcements by one peer the one with the highest `sequence` counts, also
        when it is the tombstone. `model_name` is for messages only; without it the newest
        printable name that a peer announces is taken, since a name proves nothing.
        """
        newest: dict[PeerId, PeerInfo] = {}
        for peer in peers:
            known = newest.get(peer.peer_id)
            if peer.model_id == model_id and (known is None or known.sequence < peer.sequence):
                newest[peer.peer_id] = peer
        kept = sorted(
            (
                peer
                for peer in newest.values()
                if peer.state is not PeerState.GONE
                and peer.n_blocks == n_blocks
                and peer.span.end <= n_blocks
            ),
            key=lambda peer: peer.peer_id,
        )
        if not model_name:
            named = [p for p in kept if p.model_name and p.model_name.isprintable()]
            newest_named = max(named, key=lambda peer: peer.sequence, default=None)
            model_name = newest_named.model_name if newest_named else model_id.short
        return cls(model_id, n_blocks, model_name, tuple(kept))

    def renewed(self, peers: Iterable[PeerInfo], wall: float) -> View:
        """The view after a fetch found `peers` at `wall`, in seconds since the epoch.

        A fetch may miss records, or all of them, where those that held them have just died. So what
        was known stays until it expires, or until the peer's own tombstone is seen; who is gone all
        the same is found out by dialling.
        """
        alive = [peer for peer in self.peers if peer.expires_at > wall]
        alive.sort(key=lambda peer: peer.expires_at, reverse=True)
        return View.of(
            (*peers, *alive[:MAX_REMEMBERED]),
            self.n_blocks,
            model_id=self.model_id,
            model_name=self.model_name,
        )

    @property
    def routable(self) -> tuple[PeerInfo, ...]:
        """The peers that are ONLINE, sorted by PeerId."""
        return tuple(peer for peer in self.peers if peer.state is PeerState.ONLINE)

    def coverage(self) -> list[int]:
        """For each block, how many routable peers hold it."""
        return coverage((peer.span for peer in self.routable), self.n_blocks)

    def holes(self) -> list[Span]:
        """The maximal ranges of blocks that no routable peer holds, in order."""
        return holes(self.coverage())

    def arithmetics(self) -> tuple[Arithmetic, ...]:
        """What routable peers compute in, sorted, each once."""
        return tuple(sorted({peer.arithmetic for peer in self.routable}))

    def dtypes(self) -> tuple[str, ...]:
        """The dtypes in which routable peers compute, sorted, each once."""
        return tuple(sorted({peer.dtype for peer in self.routable}))

    def with_arithmetic(self, arithmetic: Arithmetic) -> View:
        """The same view with the peers of one dtype and quantization only."""
        kept = tuple(peer for peer in self.peers if peer.arithmetic == arithmetic)
        return replace(self, peers=kept)

    def with_dtype(self, dtype: str) -> View:
        """The same view with the peers of one dtype only."""
        return replace(self, peers=tuple(peer for peer in self.peers if peer.dtype == dtype))

    def with_quantization(self, quantization: str) -> View:
        """The same view with the peers of one quantization only."""
        kept = tuple(peer for peer in self.peers if peer.quantization == quantization)
        return replace(self, peers=kept)

    def without(self, peer_ids: Container[PeerId]) -> View:
        """The same view without some peers."""
        return replace(self, peers=tuple(p for p in self.peers if p.peer_id not in peer_ids))

    def get(self, peer_id: PeerId) -> PeerInfo | None:
        """The peer's announcement in any state, or None if the view does not have it."""
        return next((peer for peer in self.peers if peer.peer_id == peer_id), None)
