"""What one peer says of itself, as the rest of swarmd sees it after it was decoded and checked."""

from __future__ import annotations

import enum
import ipaddress
import re
from dataclasses import dataclass, field

from swarmd.blocks import Span
from swarmd.errors import UsageError
from swarmd.identity import PeerId

__all__ = [
    "MODEL_ID_BYTES",
    "NO_CAPABILITY",
    "QUANTIZATIONS",
    "Address",
    "Arithmetic",
    "Capability",
    "ModelId",
    "PeerInfo",
    "PeerState",
    "parse_address",
]

MODEL_ID_BYTES = 16
QUANTIZATIONS = ("none", "int8", "int4")
"""How a peer may hold its weights. An announcement may name others: those of newer peers."""


class ModelId(bytes):
    """16 bytes of a model's fingerprint: config and weights. The name of a model proves nothing."""

    __slots__ = ()

    def __new__(cls, value: bytes) -> ModelId:
        if len(value) != MODEL_ID_BYTES:
            raise ValueError(f"a ModelId has {MODEL_ID_BYTES} bytes, not {len(value)}")
        return super().__new__(cls, value)

    @property
    def short(self) -> str:
        """The first 8 hex digits."""
        return self.hex()[:8]

    def __str__(self) -> str:
        return self.hex()

    def __repr__(self) -> str:
        return f"ModelId({self.short})"


@dataclass(frozen=True, slots=True, order=True)
class Address:
    """An IP literal (IPv4 or IPv6) or host name, and a port; UDP for the DHT, TCP for streams."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def is_loopback(self) -> bool:
        """Whether this address cannot leave the machine."""
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return self.host == "localhost"


def parse_address(text: str) -> Address:
    """Parse `host:port` or `[v6]:port`. Raises UsageError."""
    host, colon, port = text.strip().rpartition(":")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    elif ":" in host:
        host = ""
    if not colon or not host or not re.fullmatch("[0-9]{1,6}", port):
        raise UsageError(f"{text!r} is not an address; give host:port, such as 127.0.0.1:31330")
    if not 1 <= int(port) <= 65535:
        raise UsageError(f"{text!r}: the port must lie in 1..65535")
    return Address(host, int(port))


class PeerState(enum.IntEnum):
    """A peer's life as announced. GONE is a tombstone: it outlives the peer until it expires."""

    GONE = 0
    JOINING = 1
    ONLINE = 2
    DRAINING = 3


class Capability(enum.IntFlag):
    """What a peer can do that others of its version may not do, as bits of its announcement.

    SHARED_PREFIXES: sessions whose inputs begin alike share pages, so that a beginning which the
    peer knows costs no compute. Bits without a name are kept as they came.
    """

    SHARED_PREFIXES = 1


NO_CAPABILITY = Capability(0)


@dataclass(frozen=True, slots=True, order=True)
class Arithmetic:
    """What two peers of one model must share to give the same outputs, but for rounding."""

    dtype: str
    quantization: str = "none"

    def __str__(self) -> str:
        return self.dtype if self.quantization == "none" else f"{self.dtype} {self.quantization}"


@dataclass(frozen=True, slots=True)
class PeerInfo:
    """A peer's announcement. Signed by the peer, which proves who says it, not that it is true.

    Times a block are this peer's own measurements: `decode_us` for one token through one block,
    `prefill_us` for each token of a chunk through one block, both in microseconds.
    `kv_free` counts the tokens for which each block of the span has cache room left.
    `rtts` are measured round trips in seconds to peers that may follow in a chain.
    `sequence` grows with every announcement (milliseconds since the epoch or more);
    `announced_at` and `expires_at` are seconds since the epoch.
    """

    peer_id: PeerId
    address: Address
    model_id: ModelId
    model_name: str
    n_blocks: int
    span: Span
    state: PeerState
    decode_us: int
    prefill_us: int
    kv_free: int
    dtype: str
    queue: int = 0
    version: str = ""
    sequence: int = 0
    announced_at: float = 0.0
    expires_at: float = 0.0
    rtts: dict[PeerId, float] = field(default_factory=dict)
    quantization: str = "none"
    capabilities: Capability = NO_CAPABILITY

    @property
    def arithmetic(self) -> Arithmetic:
        """In what the peer computes."""
        return Arithmetic(self.dtype, self.quantization)

    @property
    def tokens_per_second(self) -> float:
        """Decode rate of one stream through the whole span, by the peer's own measurement."""
        return 1e6 / (self.decode_us * len(self.span)) if self.decode_us > 0 else 0.0
