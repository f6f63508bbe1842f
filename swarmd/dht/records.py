"""Signed announcements, as bytes and as checked values. Pure: no clock, no socket, no raising.

A record is the msgpack array `[body, signature]`; `body` is again a msgpack array (its fields
are listed at `_FIELDS`), and the signature is Ed25519 over `b"swarmd-ann-v1\\0" + swarm_id + body`.
It proves who says it, not that it is true.

Records of one model are a set with one slot a publisher, in which the newest sequence number
wins: a last-writer-wins map, so merging is commutative, associative and idempotent, and replicas
that saw the same records in any order agree. Only the publisher can make a record live longer.
"""

from __future__ import annotations

import enum
import hashlib
import ipaddress
import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import msgpack

from swarmd.blocks import Span
from swarmd.dht.config import MAX_TTL
from swarmd.dht.patience import Memory
from swarmd.dht.shards import MAX_DEPTH, Shard
from swarmd.identity import PEER_ID_BYTES, PUBLIC_KEY_BYTES, Identity, PeerId, verify
from swarmd.peers import MODEL_ID_BYTES, Address, Capability, ModelId, PeerInfo, PeerState

__all__ = [
    "CLOCK_SKEW",
    "INDEX_KEY",
    "MAX_RECORD_BYTES",
    "MAX_RTTS",
    "Record",
    "RecordReader",
    "Refusal",
    "Slot",
    "belongs",
    "keys_of",
    "merge",
    "newer",
    "pack",
    "parse",
]

MAX_RECORD_BYTES = 512
"""Two records and 20 contacts must fit into one datagram of 1,250 bytes."""
MAX_NAME_BYTES = 64
MAX_DTYPE_BYTES = 16
"""Of `dtype`, and of `quantization`."""
MAX_VERSION_BYTES = 24
MAX_BLOCKS = 65_535
MAX_RTTS = 5
"""Round trips in a record; Dijkstra needs only the peers that may follow in a chain."""
CLOCK_SKEW = 15.0
"""Seconds by which the clocks of honest peers may differ."""

_FORMAT = 1
_CONTEXT = b"swarmd-ann-v1\0"
_U16 = 2**16 - 1
_U32 = 2**32 - 1
_U64 = 2**64 - 1
_MAX_RTT_US = 60_000_000
_FIELDS = (
    *("format", "model_id", "model_name", "public_key", "sequence", "announced_ms"),
    *("lifetime_ms", "start", "end", "n_blocks", "state", "decode_us", "prefill_us"),
    *("kv_free", "queue", "dtype", "host", "port", "version", "rtts"),
    *("quantization", "capabilities"),
)
"""The body's array; `host` is the packed IP (4 or 16 bytes), `rtts` is `[[peer id, µs], ...]`.
A longer array is accepted, so that fields can be added at its end."""
_ADDED: tuple[object, ...] = ("none", 0)
"""What the last fields are taken to be in records of peers that do not know them."""

Slot = tuple[PeerId, ModelId]
"""What one record may replace: its publisher's earlier record of the same model."""

INDEX_KEY = hashlib.sha256(b"swarmd-index").digest()[:20]
"""The key under which some records of every model lie, so that models can be listed."""


class Refusal(enum.StrEnum):
    """Why bytes are not a record that may be held or believed now."""

    TOO_LARGE = "too large"
    MALFORMED = "malformed"
    FORMAT = "unknown format"
    FIELD = "field out of range"
    SIGNATURE = "bad signature"
    EXPIRED = "expired"
    LIFETIME = "lives too long"


@dataclass(frozen=True, slots=True)
class Record:
    """An announcement whose signature was checked. `raw` is what travels."""

    info: PeerInfo
    raw: bytes = field(repr=False)
    hash: int = field(repr=False)
    """64 bits of a hash of `raw`; the XOR of these is what holders compare."""

    @property
    def slot(self) -> Slot:
        return (self.info.peer_id, self.info.model_id)

    @property
    def is_tombstone(self) -> bool:
        return self.info.state is PeerState.GONE

    def refusal(self, now: float) -> Refusal | None:
        """Why it may not be believed at `now` (seconds since the epoch), or None."""
        if self.info.expires_at <= now:
            return Refusal.EXPIRED
        if self.info.expires_at > now + MAX_TTL + CLOCK_SKEW:
            return Refusal.LIFETIME
        return None


def keys_of(info: PeerInfo, depth: int = 0) -> tuple[bytes, bytes]:
    """The two keys of a record whose model's cascade is used at `depth`, from its content alone."""
    return (Shard.of(info, depth).key, INDEX_KEY)


def belongs(key: bytes, info: PeerInfo) -> bool:
    """Whether a record may lie under `key`: the index, or a shard that follows from its content."""
    return key == INDEX_KEY or any(
        key == Shard.of(info, depth).key for depth in range(MAX_DEPTH + 1)
    )


def newer(a: Record, b: Record) -> bool:
    """Whether `a` replaces `b` in their slot. A total order: ties go to the greater bytes."""
    return (a.info.sequence, a.raw) > (b.info.sequence, b.raw)


def merge(held: dict[Slot, Record], record: Record) -> bool:
    """Put `record` into `held` if it is newer than what its slot has; say whether it was.

    A record that is refused changes nothing (the defect of hivemind's TimedStorage).
    """
    old = held.get(record.slot)
    if old is not None and not newer(record, old):
        return False
    held[record.slot] = record
    return True


def _text(value: str, limit: int, what: str) -> str:
    if not value.isprintable() or len(value.encode("utf-8", "replace")) > limit:
        raise ValueError(f"{what} {value!r}: at most {limit} bytes of printable text")
    return value


def _signed(swarm_id: bytes, body: bytes) -> bytes:
    return _CONTEXT + swarm_id + body


def pack(info: PeerInfo, identity: Identity, swarm_id: bytes) -> bytes:
    """`info` as a signed record, with its sequence, `announced_at` and `expires_at`.

    Of `info.rtts` the five shortest travel. Raises ValueError for what no holder would accept:
    another's peer id, a host that is no IP literal, texts that are too long, numbers out of range.
    """
    if info.peer_id != identity.peer_id:
        raise ValueError(f"{info.peer_id!r} cannot be announced by {identity.peer_id!r}")
    host = ipaddress.ip_address(info.address.host)
    known = [(peer, rtt) for peer, rtt in info.rtts.items() if math.isfinite(rtt)]
    nearest = sorted(known, key=lambda item: (item[1], item[0]))[:MAX_RTTS]
    announced_ms = round(info.announced_at * 1000)
    fields = [
        _FORMAT,
        bytes(info.model_id),
        _text(info.model_name, MAX_NAME_BYTES, "model name"),
        identity.public_key,
        info.sequence,
        announced_ms,
        round(info.expires_at * 1000) - announced_ms,
        info.span.start,
        info.span.end,
        info.n_blocks,
        int(info.state),
        info.decode_us,
        info.prefill_us,
        info.kv_free,
        info.queue,
        _text(info.dtype, MAX_DTYPE_BYTES, "dtype"),
        host.packed,
        info.address.port,
        _text(info.version, MAX_VERSION_BYTES, "version"),
        [[bytes(peer), min(max(round(rtt * 1e6), 0), _MAX_RTT_US)] for peer, rtt in nearest],
        _text(info.quantization, MAX_DTYPE_BYTES, "quantization"),
        int(info.capabilities),
    ]
    try:
        body = msgpack.packb(fields)
    except OverflowError as exc:
        raise ValueError(f"a number in {info} has more than 64 bits") from exc
    raw: bytes = msgpack.packb([body, identity.sign(_signed(swarm_id, body))])
    checked = _decode(raw, swarm_id)
    if isinstance(checked, Refusal):
        raise ValueError(f"no holder would accept this announcement ({checked}): {info}")
    return raw


def parse(raw: object, swarm_id: bytes, now: float) -> Record | Refusal:
    """The record in `raw`, or why it is none at `now` (seconds since the epoch). Never raises."""
    record = _decode(raw, swarm_id)
    if isinstance(record, Refusal):
        return record
    return record.refusal(now) or record


class RecordReader:
    """`parse` with a memory, so that the signature of each record is checked once (209 µs)."""

    def __init__(self, swarm_ids: Sequence[bytes], *, parsed: int, checked: int) -> None:
        """Remembers `parsed` records, and of `checked` the verdict on the signature. While keys
        change there are two `swarm_ids`, and a record may be signed for either."""
        self._swarm_ids = tuple(swarm_ids)
        self._parsed: Memory[bytes, Record] = Memory(parsed)
        self._checked: Memory[bytes, bool | Refusal] = Memory(checked)

    def parse(self, raw: object, now: float) -> Record | Refusal:
        """As the function `parse`."""
        if not isinstance(raw, bytes):
            return Refusal.MALFORMED
        if len(raw) > MAX_RECORD_BYTES:
            return Refusal.TOO_LARGE
        if (known := self._parsed.get(raw)) is not None:
            return known.refusal(now) or known
        name = hashlib.blake2b(raw, digest_size=16).digest()
        verdict = self._checked.get(name)
        if isinstance(verdict, Refusal):
            return verdict
        record = self._decode(raw, verdict)
        if isinstance(record, Refusal):
            self._checked[name] = record
            return record
        self._checked[name] = True
        self._parsed[raw] = record
        return record.refusal(now) or record

    def _decode(self, raw: bytes, verdict: bool | None) -> Record | Refusal:
        result: Record | Refusal = Refusal.SIGNATURE
        for swarm_id in self._swarm_ids:
            result = _decode(raw, swarm_id, is_signed=verdict is not None)
            if result is not Refusal.SIGNATURE:
                break
        return result


def _unpack(raw: bytes) -> object:
    return msgpack.unpackb(raw, use_list=False, max_map_len=0, max_ext_len=0)


def _decode(raw: object, swarm_id: bytes, *, is_signed: bool = False) -> Record | Refusal:
    if not isinstance(raw, bytes):
        return Refusal.MALFORMED
    if len(raw) > MAX_RECORD_BYTES:
        return Refusal.TOO_LARGE
    try:
        outer = _unpack(raw)
        if type(outer) is not tuple or len(outer) != 2:
            return Refusal.MALFORMED
        body, signature = outer
        if type(body) is not bytes or type(signature) is not bytes:
            return Refusal.MALFORMED
        fields = _unpack(body)
    except Exception:  # msgpack raises many kinds, ValueError and UnicodeDecodeError among them
        return Refusal.MALFORMED
    if type(fields) is not tuple or len(signature) != 64:
        return Refusal.MALFORMED
    missing = len(_FIELDS) - len(fields)
    if missing > len(_ADDED):
        return Refusal.MALFORMED
    if missing > 0:
        fields += _ADDED[-missing:]
    if fields[0] != _FORMAT or type(fields[0]) is not int:
        return Refusal.FORMAT
    info = _info(fields)
    if info is None:
        return Refusal.FIELD
    if not is_signed and not verify(fields[3], signature, _signed(swarm_id, body)):
        return Refusal.SIGNATURE
    digest = hashlib.blake2b(raw, digest_size=8).digest()
    return Record(info, raw, int.from_bytes(digest, "big"))


def _is_bytes(value: object, *lengths: int) -> bool:
    return type(value) is bytes and len(value) in lengths


def _is_int(value: object, low: int, high: int) -> bool:
    return type(value) is int and low <= value <= high  # a bool is no number here


def _is_text(value: object, limit: int) -> bool:
    # Printable only: names end on terminals.
    return type(value) is str and value.isprintable() and len(value.encode()) <= limit


def _info(fields: tuple[object, ...]) -> PeerInfo | None:
    """The checked fields, or None when one of them has a wrong type or range."""
    values = dict(zip(_FIELDS, fields, strict=False))
    get = values.__getitem__
    good = (
        _is_bytes(get("model_id"), MODEL_ID_BYTES)
        and _is_text(get("model_name"), MAX_NAME_BYTES)
        and _is_bytes(get("public_key"), PUBLIC_KEY_BYTES)
        and _is_int(get("sequence"), 0, _U64)
        and _is_int(get("announced_ms"), 0, 2**53)
        and _is_int(get("lifetime_ms"), 0, _U32)
        and _is_int(get("n_blocks"), 1, MAX_BLOCKS)
        and _is_int(get("state"), min(PeerState), max(PeerState))
        and all(_is_int(get(n), 0, _U32) for n in ("decode_us", "prefill_us", "kv_free", "queue"))
        and _is_text(get("dtype"), MAX_DTYPE_BYTES)
        and _is_bytes(get("host"), 4, 16)
        and _is_int(get("port"), 1, 65_535)
        and _is_text(get("version"), MAX_VERSION_BYTES)
        and _is_text(get("quantization"), MAX_DTYPE_BYTES)
        and _is_int(get("capabilities"), 0, _U16)
    )
    if not good:
        return None
    n_blocks, start, end = values["n_blocks"], values["start"], values["end"]
    assert isinstance(n_blocks, int)
    if type(start) is not int or type(end) is not int or not 0 <= start < end <= n_blocks:
        return None
    host = ipaddress.ip_address(values["host"])  # type: ignore[arg-type]
    if host.is_unspecified or host.is_multicast or str(host) == "255.255.255.255":
        return None
    rtts = _rtts(values["rtts"])
    if rtts is None:
        return None
    return PeerInfo(
        peer_id=PeerId.of_public_key(values["public_key"]),  # type: ignore[arg-type]
        address=Address(str(host), values["port"]),  # type: ignore[arg-type]
        model_id=ModelId(values["model_id"]),  # type: ignore[arg-type]
        model_name=values["model_name"],  # type: ignore[arg-type]
        n_blocks=n_blocks,
        span=Span(start, end),
        state=PeerState(values["state"]),  # type: ignore[arg-type]
        decode_us=values["decode_us"],  # type: ignore[arg-type]
        prefill_us=values["prefill_us"],  # type: ignore[arg-type]
        kv_free=values["kv_free"],  # type: ignore[arg-type]
        dtype=values["dtype"],  # type: ignore[arg-type]
        queue=values["queue"],  # type: ignore[arg-type]
        version=values["version"],  # type: ignore[arg-type]
        sequence=values["sequence"],  # type: ignore[arg-type]
        announced_at=values["announced_ms"] / 1000,  # type: ignore[operator]
        expires_at=(values["announced_ms"] + values["lifetime_ms"]) / 1000,  # type: ignore[operator]
        rtts=rtts,
        quantization=values["quantization"],  # type: ignore[arg-type]
        capabilities=Capability(values["capabilities"]),  # type: ignore[arg-type]
    )


def _rtts(value: object) -> dict[PeerId, float] | None:
    if type(value) is not tuple or len(value) > MAX_RTTS:
        return None
    rtts: dict[PeerId, float] = {}
    for pair in value:
        if type(pair) is not tuple or len(pair) != 2:
            return None
        peer, microseconds = pair
        if not _is_bytes(peer, PEER_ID_BYTES) or not _is_int(microseconds, 0, _MAX_RTT_US):
            return None
        rtts[PeerId(peer)] = microseconds / 1e6
    return rtts
