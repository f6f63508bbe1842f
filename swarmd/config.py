"""What a daemon and a client are told; the command line takes its defaults from here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from swarmd.blocks import AUTO, BlockRequest
from swarmd.errors import UsageError
from swarmd.identity import PeerId
from swarmd.peers import Address, parse_address
from swarmd.swarm_key import PUBLIC_KEYS, KeyRing

__all__ = ["DEFAULT_PORTS", "DaemonConfig", "announced_address", "check_host"]

DEFAULT_PORTS = range(31330, 31362)
"""Where a daemon without `--port` listens: the first free one, so that several share a machine."""


@dataclass(frozen=True, slots=True)
class DaemonConfig:
    """A serving node. Times in seconds, sizes in bytes."""

    model: str | None = None
    """A folder, a `.gguf` file, a hub id, or None for the embedded default model."""
    blocks: BlockRequest = AUTO
    peers: tuple[Address, ...] = ()
    expected: Mapping[Address, PeerId] = field(default_factory=dict)
    """Who must answer at some of `peers`: an invite names the node beside its address."""
    keys: KeyRing = PUBLIC_KEYS
    """Of the swarm to join; the public one unless a key file or an invite says otherwise. Who
    holds none of them gets no answer."""
    key_file: Path | None = None
    """Where `keys` were read; `swarmd invite` reads them there again."""
    lan: bool = True
    """Announce and look for nodes on the local network; never done on loopback."""
    host: str = "127.0.0.1"
    """Whoever reaches a node of a swarm that it may enter uses its compute, so a node listens on
    loopback unless told otherwise."""
    port: int | None = None
    advertise: str | None = None
    """HOST or HOST:PORT that others dial; needed where `host` is a wildcard, and where a router
    forwards another port."""
    dtype: str = "float32"
    """Or `auto`: that of the swarm's other peers, else the faster one here."""
    quantization: str = "none"
    """How the linear layers' weights are held: one of QUANTIZATIONS."""
    device: str = "cpu"
    threads: int | None = None
    memory: int | None = None
    """For weights, attention cache and workspace; None takes 80 % of what is free."""
    kv_tokens: int = 4096
    """Tokens that all sessions together may hold in each block's attention cache."""
    connections: int = 256
    """Connections that are served at a time: descriptors and memory."""
    kv_share: float = 0.75
    """The part of the attention cache that one client may fill; loopback may fill all."""
    bandwidth_out: float = 64e6
    """Payload bytes a second that are sent to one client; loopback gets all it can take."""
    limit_loopback: bool = False
    """For benchmarks and tests: limits for each client hold for loopback addresses as well."""
    announce_period: float = 60.0
    record_ttl: float = 150.0
    entry_delay: float = 1.0
    """Before the blocks are claimed: daemons started by one script then see one another."""
    claim_settle: float = 1.0
    """After a claim, how long to wait for claims that were made at the same time."""
    drain_timeout: float = 10.0
    """On SIGTERM, how long sessions may go on before they are cut (clients then replay)."""
    state_dir: Path | None = None
    allow: frozenset[PeerId] | None = None
    """Diallers that are served; None serves everybody in the swarm."""
    shared_prefixes: bool = True
    """Compute what sessions begin with alike once, and keep it while there is room."""
    relaying: bool = True
    """Pass links on to nodes that cannot be dialled, within the limits of `RelayLimits`."""
    upnp: bool = True
    """Ask the local router to forward a port when others cannot dial this node; never done on
    loopback."""
    relayed: bool = False
    """This node cannot be dialled: be reached through another one that relays."""


def check_host(host: str, advertise: str | None) -> str:
    """The host to announce for `--host` and `--advertise`. Raises UsageError."""
    if host in ("0.0.0.0", "::") and advertise is None:
        raise UsageError(
            f"--host {host} listens everywhere; say by --advertise which address others can dial"
        )
    return host if advertise is None else _advertised(advertise)[0]


def announced_address(host: str, bound: int, advertise: str | None) -> Address:
    """What others dial: `host` at the port that `--advertise` names, else at the `bound` port."""
    port = None if advertise is None else _advertised(advertise)[1]
    return Address(host, bound if port is None else port)


def _advertised(text: str) -> tuple[str, int | None]:
    """Host and port of `--advertise HOST[:PORT]`. Raises UsageError."""
    if ":" not in text:
        if not text.strip():
            raise UsageError("--advertise is empty; give HOST or HOST:PORT")
        return text.strip(), None
    try:
        address = parse_address(text)
    except UsageError as error:
        raise UsageError(f"--advertise {text}: {error}") from error
    return address.host, address.port
