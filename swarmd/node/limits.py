"""What a node grants to all, and to each client: one table, each number with unit and reason."""

from __future__ import annotations

from dataclasses import dataclass

from swarmd.config import DaemonConfig

__all__ = ["SessionLimits"]


@dataclass(frozen=True, slots=True)
class SessionLimits:
    """What one node grants, each with its reason. Times in seconds.

    A *client* is an address (of IPv6 its /64, which one subscriber holds) and, where the link
    proved it, a peer id; a limit for each client holds for both.
    """

    connections: int = 256
    """Descriptors and memory; a client needs one connection for each session and hop."""
    client_connections: int = 32
    """Connections of each client: eight clients at the least share a node."""
    client_sessions: int = 16
    """Open sessions of each client: a worker and a cache each; a person needs one or two."""
    client_steps: int = 128
    """Steps of each client that wait or run: two sessions with all that the protocol allows."""
    handshakes: float = 10.0
    """New connections a second from each address, once its burst of as many as
    `client_connections` is spent: each costs a task and a greeting."""
    kv_share: float = 0.75
    """The part of the attention cache that each client may fill: the rest is for others."""
    bandwidth_in: float = 64e6
    """Payload bytes a second from each client, after a burst of one second's; then its reading is
    delayed. Above half a gigabit a client sends faster than most nodes compute."""
    bandwidth_out: float = 64e6
    """Payload bytes a second to each client, after a burst of one second's; then its next output
    is delayed. A home's uplink is far slower: its owner sets this."""
    payload_bytes: int = 512 << 20
    """Payload bytes that have arrived and wait or run, of all connections together: memory."""
    hello_timeout: float = 10.0
    """A port scanner holds a slot no longer than this."""
    idle_timeout: float = 300.0
    """A pooled connection that nobody uses, and a session whose client went silent."""
    step_tokens: int = 2048
    """Longest step; a client cuts its prompt in chunks of this or less."""
    send_timeout: float = 60.0
    """A client that does not read its outputs is dropped."""
    limit_loopback: bool = False
    """Whether the limits for each client hold for loopback addresses as well. There it is the
    owner's own programs that connect; benchmarks and tests of the limits say True."""

    @classmethod
    def of(cls, config: DaemonConfig) -> SessionLimits:
        """What a node with this config grants."""
        return cls(
            connections=config.connections,
            kv_share=config.kv_share,
            bandwidth_out=config.bandwidth_out,
            limit_loopback=config.limit_loopback,
        )
