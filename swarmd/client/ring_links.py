"""Which hops of a session are linked to the next one, so that a ring is run where it pays.

A link is asked for and not waited for: until its hop says `linked`, and wherever it says
`unlinked`, the client sends the next hop what it has, as in a hub.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from itertools import pairwise

from swarmd.client.hop_link import HopLink
from swarmd.client.router import Router
from swarmd.errors import ConnectionLost
from swarmd.routing.chain import Hop
from swarmd.routing.replay import Replay
from swarmd.wire.messages import Linked, Unlinked

__all__ = ["RingLinks"]

log = logging.getLogger(__name__)


class RingLinks:
    """The links of one session; `machine` is told which of them are there."""

    def __init__(self, router: Router, machine: Replay) -> None:
        self._router = router
        self._machine = machine
        self._asked: dict[int, tuple[int, int]] = {}
        self._waiting: set[int] = set()

    @property
    def is_waiting(self) -> bool:
        """Whether a link was asked for, and not answered yet."""
        return bool(self._waiting)

    def ask(self, hops: Mapping[int, Hop], links: Mapping[int, HopLink]) -> None:
        """Ask for the links that pay and are not there. A hop that is gone is no concern of this:
        whoever reads its link learns of that."""
        for (before, _), (after, _) in pairwise(self._machine.hops):
            source, target = links.get(before), links.get(after)
            if source is None or target is None or before in self._asked:
                continue
            if not self._router.wants_edge(hops[before].peer, hops[after].peer):
                continue
            try:
                self._asked[before] = (source.link_to(target), after)
            except ConnectionLost:
                continue
            self._waiting.add(before)

    def answered(self, key: int, hops: Mapping[int, Hop], event: Linked | Unlinked) -> None:
        """A hop told what became of a link."""
        number, after = self._asked.get(key, (0, -1))
        if event.link != number or after not in hops:
            return  # of a link that another one has followed
        self._waiting.discard(key)
        source, target = hops[key].peer, hops[after].peer
        if isinstance(event, Linked):
            self._router.observe_edge(source, target, event.rtt_us / 1e6)
            if self._router.wants_edge(source, target):
                log.info("%s forwards to %s, %.1f ms there and back",
                         hops[key], hops[after], event.rtt_us / 1e3)  # fmt: skip
                self._machine.linked(key)
        else:
            self.broken(key, hops, event.reason)

    def broken(self, key: int, hops: Mapping[int, Hop], reason: str) -> None:
        """The link behind a hop is of no use: it is left alone for a while, in this session for
        good."""
        _, after = self._asked.get(key, (0, -1))
        self._waiting.discard(key)
        self._machine.unlinked(key)
        if after in hops:
            log.info("%s does not forward to %s: %s", hops[key], hops[after], reason)
            self._router.edge_failed(hops[key].peer, hops[after].peer)

    def lost(self, key: int) -> None:
        """A hop is gone, and with it the links to it and from it: others may be asked for."""
        self._asked.pop(key, None)
        self._asked = {source: asked for source, asked in self._asked.items() if asked[1] != key}
        self._waiting &= self._asked.keys()
