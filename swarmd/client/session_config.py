"""What a session is told, and what it did."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field, fields

from swarmd.client.spot_checks import CheckConfig
from swarmd.routing.chain import Hop
from swarmd.wire.codecs import CodecChoice

__all__ = ["Move", "Recovery", "SessionConfig", "SessionStatistics"]


@dataclass(frozen=True, slots=True)
class SessionConfig:
    """Limits of one session; times in seconds."""

    open_timeout: float = 5.0
    """To connect and open a session at one hop; a dead address costs at most this."""
    chunk_tokens: int | None = None
    """Positions in one step of a prefill or a replay; None: by the pace of hops and links
    (:mod:`swarmd.routing.chunks`)."""
    max_losses: int = 16
    """Hops that may be lost within one step before the session gives up."""
    busy_patience: float = 30.0
    """For how long peers without room are asked again within one step, or `wait` if longer."""
    wait: float = 0.0
    """How long to wait for somebody to serve blocks that nobody holds (`--wait`)."""
    codec: CodecChoice = "auto"
    """How hidden states travel (:mod:`swarmd.wire.tensors`). `int8` is lossy."""
    standby: bool = False
    """Whether a second peer for each hop holds a ready cache (`--standby`)."""
    checks: CheckConfig = field(default_factory=CheckConfig)
    """Which outputs other peers run again (`--verify`)."""
    replan: bool | None = None
    """Whether a session may move to a better chain (`--replan`). None: in float32, where a replay
    rounds too little to change a token, as far as was tested."""


@dataclass(frozen=True, slots=True)
class Recovery:
    """A hop that was lost and replaced: how long it took until the machine could go on."""

    lost: Hop
    by: tuple[Hop, ...]
    reason: str
    position: int
    seconds: float


@dataclass(frozen=True, slots=True)
class Move:
    """The session left its chain for a better one, at `position`. A step took `seconds_before`, and
    was measured to take `seconds_after` on the new chain; `replayed` positions were run there in
    the background."""

    before: tuple[Hop, ...]
    after: tuple[Hop, ...]
    position: int
    replayed: int
    seconds_before: float
    seconds_after: float

    def __str__(self) -> str:
        return (
            f"moved to {' '.join(map(str, self.after))}: {1e3 * self.seconds_after:.0f} ms a step "
            f"instead of {1e3 * self.seconds_before:.0f}, {self.replayed} positions replayed in "
            "the background"
        )


@dataclass(slots=True)
class SessionStatistics:
    """What a session did; `decode_seconds`, `compute_seconds` and `queue_seconds` sum over steps of
    one position."""

    recoveries: list[Recovery] = field(default_factory=list)
    moves: list[Move] = field(default_factory=list)
    replayed_positions: int = 0
    decode_steps: int = 0
    decode_seconds: float = 0.0
    compute_seconds: float = 0.0
    queue_seconds: float = 0.0
    decode_bytes: int = 0
    """Of `wire_bytes`, what steps of one position took."""
    codecs: Counter[str] = field(default_factory=Counter)
    """How many steps were sent in which codec."""
    wire_bytes: int = 0
    forwarded: int = 0
    """Outputs of steps that came to their hop from the one before, not from here."""

    def __add__(self, other: SessionStatistics) -> SessionStatistics:
        """Of both, this one first."""
        return SessionStatistics(
            **{one.name: getattr(self, one.name) + getattr(other, one.name) for one in fields(self)}
        )
