"""What the web page shows, as JSON: blocks, peers, running answers, tokens a second. Pure.

All text of peers is cut to a bound and made printable here; the page writes it as text only.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any

from swarmd.blocks import coverage, holes
from swarmd.identity import PeerId
from swarmd.peers import PeerInfo, PeerState
from swarmd.printable import printable
from swarmd.routing.chain import Hop
from swarmd.routing.view import View

__all__ = ["AnswerSeen", "Doubts", "ModelSeen", "RecoverySeen", "TokenRate", "changes", "snapshot"]

MAX_PEERS = 256
"""Peers in a snapshot, about 90 kB; coverage counts them all."""
MAX_HOPS = 128
"""Hops shown of a route."""
MAX_RECOVERIES = 16
"""Recoveries shown of an answer, the last ones."""
WORD = 40
"""Characters of a name, a version, a dtype."""
SENTENCE = 200
"""Characters of a reason."""
HISTORY = 120
"""Samples of tokens a second that are kept, one a second."""


@dataclass(frozen=True, slots=True)
class ModelSeen:
    """One model: its announcements, and what this client measured of them."""

    view: View
    banned: Collection[PeerId]
    """Those that failed this client: they do not count as replicas."""
    rtt: Callable[[PeerId], float | None]
    """Measured round trip in seconds."""


@dataclass(frozen=True, slots=True)
class RecoverySeen:
    """A hop that was lost: `seconds` until others were in its place, without the replay."""

    lost: Hop
    by: Sequence[Hop]
    reason: str
    position: int
    seconds: float

    def as_json(self) -> dict[str, Any]:
        return {
            "lost": _hop(self.lost),
            "by": [_hop(hop) for hop in self.by[:MAX_HOPS]],
            "reason": printable(self.reason, SENTENCE),
            "position": self.position,
            "ms": _round(1000 * self.seconds),
        }


@dataclass(frozen=True, slots=True)
class AnswerSeen:
    """An answer under way, or at its end."""

    number: int
    """Counted from the start of the server; says nothing about who asked."""
    hops: Sequence[tuple[Hop, float]]
    """With the seconds that a token takes at each, link included."""
    tokens: int
    replayed: int
    """Positions that were run again at replacements."""
    recoveries: Sequence[RecoverySeen]

    def as_json(self) -> dict[str, Any]:
        return {
            "number": self.number,
            "tokens": self.tokens,
            "replayed": self.replayed,
            "losses": len(self.recoveries),
            "route": [{**_hop(hop), "ms": _round(1000 * s)} for hop, s in self.hops[:MAX_HOPS]],
            "recoveries": [one.as_json() for one in self.recoveries[-MAX_RECOVERIES:]],
        }


class Doubts:
    """Who failed this client and has not announced itself anew since.

    A ban is short, since it is a guess, and a dead peer's announcement outlives it: by bans alone
    its blocks would seem to be served again.
    """

    def __init__(self) -> None:
        self._failed: dict[PeerId, int] = {}

    def update(self, view: View, banned: Collection[PeerId]) -> frozenset[PeerId]:
        """The peers of `view` in doubt, when `banned` are banned now."""
        failed = {}
        for peer in view.peers:
            known = self._failed.get(peer.peer_id)
            is_banned = peer.peer_id in banned
            if is_banned or (known is not None and peer.sequence <= known):
                failed[peer.peer_id] = peer.sequence if known is None else known
        self._failed = failed
        return frozenset(failed)


class TokenRate:
    """Tokens a second over the last HISTORY samples of a counter."""

    def __init__(self) -> None:
        self._last: tuple[float, int] | None = None
        self.rates: deque[float] = deque(maxlen=HISTORY)

    def sample(self, tokens: int, now: float) -> None:
        """`tokens` is the counter at `now`, in monotonic seconds."""
        if self._last is not None:
            at, before = self._last
            if now <= at:
                return
            self.rates.append(_round(max(0, tokens - before) / (now - at)))
        self._last = now, tokens


def snapshot(
    models: Sequence[ModelSeen], answers: Sequence[AnswerSeen], rates: Sequence[float]
) -> dict[str, Any]:
    """Everything that the page shows; its keys change one by one (see `changes`)."""
    return {
        "models": [_model(model) for model in models],
        "answers": [answer.as_json() for answer in answers],
        "rates": list(rates),
    }


def changes(before: dict[str, Any], after: dict[str, Any]) -> dict[str, Any]:
    """The keys of `after` whose values differ from `before`, with their new values."""
    return {key: value for key, value in after.items() if before.get(key) != value}


def _model(model: ModelSeen) -> dict[str, Any]:
    view = model.view
    live = [peer for peer in view.routable if peer.peer_id not in model.banned]
    replicas = coverage((peer.span for peer in live), view.n_blocks)
    peers = sorted(view.peers, key=lambda peer: (peer.span.start, peer.span.end, peer.peer_id))
    return {
        "id": str(view.model_id),
        "name": printable(view.model_name, WORD),
        "blocks": view.n_blocks,
        "replicas": replicas,
        "holes": [[hole.start, hole.end] for hole in holes(replicas)],
        "peers": [_peer(peer, model) for peer in peers[:MAX_PEERS]],
        "peers_total": len(peers),
        "peers_live": len(live),
    }


def _peer(peer: PeerInfo, model: ModelSeen) -> dict[str, Any]:
    rtt = model.rtt(peer.peer_id)
    failing = peer.peer_id in model.banned and peer.state is PeerState.ONLINE
    return {
        "id": str(peer.peer_id),
        "short": peer.peer_id.short,
        "address": printable(str(peer.address), 2 * WORD),
        "start": peer.span.start,
        "end": peer.span.end,
        "state": "failing" if failing else peer.state.name.lower(),
        "tokens_per_second": _round(peer.tokens_per_second),
        "queue": peer.queue,
        "kv_free": peer.kv_free,
        "rtt_ms": None if rtt is None else _round(1000 * rtt),
        "arithmetic": printable(str(peer.arithmetic), WORD),
        "version": printable(peer.version, WORD),
    }


def _hop(hop: Hop) -> dict[str, Any]:
    return {"peer": hop.peer.peer_id.short, "start": hop.span.start, "end": hop.span.end}


def _round(value: float) -> float:
    return round(value, 1)
