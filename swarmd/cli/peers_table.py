"""What the peers of one model say together, and the table of `swarmd peers`.

Each record is signed, which proves who says it and not that it is true. So nothing here is taken
from one record alone: the size and the name of a model are what most of its peers say, and who
says another size is listed, flagged and not counted.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import TypeVar

from rich import box
from rich.console import Console
from rich.table import Table

from swarmd.blocks import coverage, holes
from swarmd.identity import PeerId
from swarmd.peers import ModelId, PeerInfo, PeerState
from swarmd.printable import printable

__all__ = ["ModelPeers", "show"]

T = TypeVar("T", int, str)

NAME_WIDTH = 64
"""Characters of a model's name that are printed."""
VERSION_WIDTH = 16
"""Characters of a version that are printed; the table has room for about 130 in all."""
WEIGHTS_WIDTH = 8
"""Characters of a quantization or dtype that are printed."""
BAR_WIDTH = 256
"""Characters of the coverage bar; of a larger model each stands for several blocks."""


class ModelPeers:
    """A model's announcements (one or more), the RTT to each peer that answered, the coverage.

    `n_blocks` is what most ONLINE peers say; of a tie, what most peers of any state say; of a tie
    again, the smaller number. `coverage` counts the ONLINE peers that answered and agree to it.
    """

    def __init__(
        self, model_id: ModelId, peers: Sequence[PeerInfo], rtts: Mapping[PeerId, float]
    ) -> None:
        self.model_id = model_id
        self.peers = sorted(peers, key=lambda peer: (peer.span, peer.peer_id))
        self.rtts = rtts
        self.n_blocks = _commonest((peer.n_blocks, peer.state) for peer in peers)
        self.name = _commonest((peer.model_name, peer.state) for peer in peers if self.agrees(peer))
        counted = [
            peer.span for peer in peers if self.agrees(peer) and self.state(peer) == "online"
        ]
        self.coverage = coverage(counted, self.n_blocks)
        self.holes = holes(self.coverage)

    def agrees(self, peer: PeerInfo) -> bool:
        """Whether the peer speaks of a model of the same size as the majority does."""
        return peer.n_blocks == self.n_blocks

    def state(self, peer: PeerInfo) -> str:
        """The state that the peer announced, or `unreachable`: ONLINE, but it did not answer."""
        silent = peer.state is PeerState.ONLINE and self.rtts.get(peer.peer_id) is None
        return "unreachable" if silent else peer.state.name.lower()


def _commonest(said: Iterable[tuple[T, PeerState]]) -> T:
    online: Counter[T] = Counter()
    all_states: Counter[T] = Counter()
    for value, state in said:
        all_states[value] += 1
        online[value] += state is PeerState.ONLINE
    return min(all_states, key=lambda value: (-online[value], -all_states[value], value))


def show(model: ModelPeers, *, now: float) -> None:
    """Print the table of a model to stdout. `now` is in seconds since the epoch."""
    # No markup and no emoji codes: peers choose some of the texts.
    console = Console(
        highlight=False, markup=False, emoji=False, width=None if sys.stdout.isatty() else 132
    )
    name = printable(model.name, NAME_WIDTH)
    title = f"{name} ({model.n_blocks} blocks, id {model.model_id.short})"
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    for heading in ("peer", "address", "blocks", "state", "weights"):
        table.add_column(heading, no_wrap=True)
    for heading in ("tokens/s", "RTT", "KV free", "version", "age"):
        table.add_column(heading, justify="right", no_wrap=True)
    for peer in model.peers:
        rtt = model.rtts.get(peer.peer_id)
        table.add_row(
            peer.peer_id.short,
            str(peer.address),
            str(peer.span),
            model.state(peer) if model.agrees(peer) else f"says {peer.n_blocks} blocks",
            _weights(peer),
            f"{peer.tokens_per_second:.1f}",
            "-" if rtt is None else f"{1000 * rtt:.2f} ms",
            str(peer.kv_free),
            printable(peer.version, VERSION_WIDTH),
            f"{max(0.0, now - peer.announced_at):.0f} s",
        )
    console.print(table)
    console.print(f"coverage  0 {_bar(model.coverage)} {model.n_blocks}   (live peers a block)")
    others = sum(not model.agrees(peer) for peer in model.peers)
    if others:
        console.print(
            f"not counted: {others} of {len(model.peers)} peers, which say that the model has "
            f"another number of blocks than {model.n_blocks}",
            style="yellow",
        )
    if model.holes:
        missing = ", ".join(map(str, model.holes))
        console.print(
            f"missing   blocks {missing}; start one: swarmd serve --blocks {model.holes[0]}",
            style="red",
        )


def _weights(peer: PeerInfo) -> str:
    """How a peer holds its weights: the quantization, else the dtype."""
    said = peer.dtype if peer.quantization == "none" else peer.quantization
    return printable(said, WEIGHTS_WIDTH)


def _bar(counts: Sequence[int]) -> str:
    each = -(-len(counts) // BAR_WIDTH)
    fewest = [min(counts[first : first + each]) for first in range(0, len(counts), each)]
    return "".join("·" if count == 0 else str(min(count, 9)) for count in fewest)
