"""What the node says of itself, gathered as it becomes known."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field

from swarmd import __version__
from swarmd.blocks import Span
from swarmd.compute.engine import Engine
from swarmd.compute.model_folder import ModelFolder
from swarmd.compute.throughput import Throughput
from swarmd.config import DaemonConfig
from swarmd.identity import PeerId
from swarmd.node.served import ServedModel
from swarmd.peers import NO_CAPABILITY, Address, Capability, PeerInfo, PeerState

__all__ = ["Announced"]


@dataclass(slots=True)
class Announced:
    """The facts behind a node's announcement; `describe` makes the announcement of the moment."""

    config: DaemonConfig
    folder: ModelFolder
    peer_id: PeerId
    address: Address
    span: Span = field(default_factory=lambda: Span(0, 1))
    throughput: Throughput = field(default_factory=lambda: Throughput(0, 0))
    engine: Engine | None = None
    dtype: str = ""
    """That of the config, until `auto` was decided."""

    def __post_init__(self) -> None:
        self.span = self.config.blocks.span or self.span
        self.dtype = self.dtype or self.config.dtype

    @property
    def model(self) -> ServedModel:
        folder = self.folder
        return ServedModel(
            folder.model_id,
            folder.name,
            folder.n_blocks,
            folder.hidden_size,
            folder.max_positions,
            self.dtype,
            self.config.quantization,
        )

    @property
    def _capabilities(self) -> Capability:
        return Capability.SHARED_PREFIXES if self.config.shared_prefixes else NO_CAPABILITY

    def describe(self, state: PeerState) -> PeerInfo:
        """The announcement now; queue and cache room are read off the engine once it runs."""
        info = PeerInfo(
            peer_id=self.peer_id,
            address=self.address,
            model_id=self.folder.model_id,
            model_name=self.folder.name,
            n_blocks=self.folder.n_blocks,
            span=self.span,
            state=state,
            decode_us=self.throughput.decode_us,
            prefill_us=self.throughput.prefill_us,
            kv_free=0,
            dtype=self.dtype,
            quantization=self.config.quantization,
            capabilities=self._capabilities,
            version=__version__,
        )
        if self.engine is None:
            return info
        return dataclasses.replace(
            info, kv_free=self.engine.kv_free, queue=self.engine.queue_length
        )
