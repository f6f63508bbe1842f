"""Tensors in payloads: dtype, shape and codec in the header, raw little-endian bytes behind it.

Pure; knows bytes and numpy only. Codecs:

=========== ==========================================================================
`raw`       the bytes as they lie in memory
`zstd`      zstandard over byte planes: all first bytes of the items, then all second
            bytes, and so on, since exponents compress and mantissas hardly do
`int8`      a byte a value and a scale for each 32 of them (:mod:`swarmd.wire.mxint8`).
            Lossy: never chosen by itself
=========== ==========================================================================
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import zstandard

from swarmd.errors import BadTensor
from swarmd.wire import mxint8
from swarmd.wire.codecs import CODECS, Codec, CodecChoice

__all__ = [
    "ITEM_BYTES",
    "Buffer",
    "TensorMeta",
    "choose_codec",
    "decode",
    "encode",
    "is_finite",
]

ITEM_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
MAX_DIMENSIONS = 4
MIN_COMPRESSED_BYTES = 16 << 10
"""Smaller payloads travel raw: a decode step gains nothing from a codec."""
ZSTD_LEVEL = 1
ZSTD_PAYS_BELOW = 40e6
"""Bytes a second: on slower links zstd saves more time than both ends spend on it. For fp32
activations it saves 15 % at 280 MB/s, for bf16 29 % at 184 MB/s (`bench/codec.py`, Zen 3)."""

Buffer: TypeAlias = bytes | bytearray | memoryview


@dataclass(frozen=True, slots=True)
class TensorMeta:
    """What the header says of the payload. `n_bytes` is the size after decoding."""

    dtype: str
    shape: tuple[int, ...]
    codec: str = "raw"

    @property
    def n_bytes(self) -> int:
        return math.prod(self.shape) * ITEM_BYTES[self.dtype]

    @property
    def rows(self) -> int:
        """How many rows of the last dimension's width there are."""
        return math.prod(self.shape[:-1])

    def to_wire(self) -> list[Any]:
        return [self.dtype, list(self.shape), self.codec]

    @classmethod
    def from_wire(cls, value: object) -> TensorMeta:
        """Raises BadTensor for anything that is not the description of a tensor."""
        if not isinstance(value, list) or len(value) != 3:
            raise BadTensor("a tensor is described by dtype, shape and codec")
        dtype, shape, codec = value
        if not isinstance(dtype, str) or dtype not in ITEM_BYTES:
            raise BadTensor(f"dtype {dtype!r}; known are {', '.join(ITEM_BYTES)}")
        if codec not in CODECS:
            raise BadTensor(f"codec {codec!r}; known are {', '.join(CODECS)}")
        if (
            not isinstance(shape, list)
            or not 1 <= len(shape) <= MAX_DIMENSIONS
            or not all(type(n) is int and 0 < n < 1 << 31 for n in shape)
        ):
            raise BadTensor(f"shape {shape!r}")
        return cls(dtype, tuple(shape), codec)


def encode(data: Buffer, meta: TensorMeta) -> Buffer:
    """The payload for the raw bytes of a tensor, by `meta.codec`."""
    if meta.codec == "raw":
        return data
    if meta.codec == "int8":
        return mxint8.encoded(data, meta.dtype, meta.shape[-1])
    planes = np.frombuffer(data, np.uint8).reshape(-1, ITEM_BYTES[meta.dtype]).T
    compressor = zstandard.ZstdCompressor(level=ZSTD_LEVEL, write_content_size=True)
    return compressor.compress(np.ascontiguousarray(planes).data)


def decode(payload: bytearray, meta: TensorMeta, *, max_bytes: int) -> bytearray:
    """The raw bytes of a tensor, writable. Raw payloads are returned as they are, uncopied.

    Raises BadTensor when the size is not what `meta` says, or beyond `max_bytes` (checked before
    anything is decompressed).
    """
    if meta.n_bytes > max_bytes:
        raise BadTensor(f"a tensor of {meta.n_bytes} bytes; the limit is {max_bytes}")
    if meta.codec == "raw":
        if len(payload) != meta.n_bytes:
            raise BadTensor(f"{len(payload)} bytes for a tensor of {meta.n_bytes}")
        return payload
    if meta.codec == "int8":
        return mxint8.decoded(payload, meta.dtype, meta.shape[-1], meta.rows)
    try:
        if zstandard.frame_content_size(payload) != meta.n_bytes:
            raise BadTensor("the compressed size does not fit the shape")
        planes = zstandard.ZstdDecompressor().decompress(
            payload, max_output_size=meta.n_bytes, allow_extra_data=False
        )
    except zstandard.ZstdError as error:
        raise BadTensor(f"undecodable zstd payload: {error}") from error
    if len(planes) != meta.n_bytes:
        raise BadTensor("the compressed size does not fit the shape")
    items = np.frombuffer(planes, np.uint8).reshape(ITEM_BYTES[meta.dtype], -1).T
    return bytearray(np.ascontiguousarray(items).data)


def is_finite(data: Buffer, dtype: str) -> bool:
    """Whether raw bytes of a tensor hold neither NaN nor infinity."""
    if dtype == "bfloat16":  # numpy has no such type: an exponent of all ones is neither
        bits = np.frombuffer(data, np.uint16)
        return not bool(((bits & 0x7F80) == 0x7F80).any())
    kind = np.float32 if dtype == "float32" else np.float16
    return bool(np.isfinite(np.frombuffer(data, kind)).all())


def choose_codec(n_bytes: int, bandwidth: float, choice: CodecChoice = "auto") -> Codec:
    """The codec that is asked for. For `auto` it is `zstd` where that pays on a link of this many
    bytes a second, for large payloads only, and else `raw`."""
    if choice != "auto":
        return choice
    pays = n_bytes >= MIN_COMPRESSED_BYTES and bandwidth < ZSTD_PAYS_BELOW
    return "zstd" if pays else "raw"
