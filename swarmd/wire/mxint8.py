"""Tensors in a byte a value, with a scale that 32 values share. Pure; lossy.

The format is MXINT8 of the OCP Microscaling Formats (MX) specification 1.0: blocks of 32 values,
each block with a power of two as its scale, each value an 8-bit integer times that scale. A block
never reaches over the end of a row, so that a row is encoded alike whichever rows it travels with.

The scale is the least one at which the largest value of the block fits, so no value is off by more
than 1/127 of that. Powers of two make it *idempotent*: what was decoded is a multiple of its scale,
which every dtype holds exactly, and encodes to the very same again. A hop that is fed what the hop
before gave, and one that is fed the client's copy of it, get the same bits.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from swarmd.errors import BadTensor

__all__ = ["BLOCK", "decoded", "encoded", "encoded_bytes"]

BLOCK = 32
LARGEST = 127
BIAS = 127
"""Of a scale's exponent, as in E8M0."""
NOT_FINITE = 255
"""The exponent of a block that held NaN or an infinity: it decodes to NaN."""
LEAST_EXPONENT = {"float32": -BIAS, "bfloat16": -BIAS, "float16": -24}
"""In float16 no value lies between multiples of 2^-24."""
MAX_FINITE = {
    "float32": float(np.finfo(np.float32).max),
    "bfloat16": float(np.uint32(0x7F7F0000).view(np.float32)),
    "float16": 65504.0,
}


def encoded_bytes(rows: int, width: int) -> int:
    """Bytes of so many rows: the values, and behind them the exponents."""
    return rows * (width + -(-width // BLOCK))


def encoded(data: bytes | bytearray | memoryview, dtype: str, width: int) -> bytes:
    """Raw bytes of rows of `width` values each: all integers, then all exponents."""
    values = _blocks(_floats(data, dtype).reshape(-1, width))
    largest = np.abs(values).max(axis=2)
    finite = np.isfinite(largest)
    share, exponents = np.frexp(np.where(finite, largest, np.float32(0.0)) / np.float32(LARGEST))
    exponents = np.where(share == 0.5, exponents - 1, exponents)  # the least 2^k not below it
    exponents = np.clip(exponents, LEAST_EXPONENT[dtype], NOT_FINITE - 1 - BIAS)
    exponents[largest == 0.0] = LEAST_EXPONENT[dtype]
    if not finite.all():
        values = np.where(finite[..., None], values, np.float32(0.0))
    scaled = values * np.ldexp(np.float32(1.0), -exponents)[..., None]
    np.clip(np.rint(scaled, out=scaled), -LARGEST, LARGEST, out=scaled)
    integers = scaled.astype(np.int8)
    codes = np.where(finite, exponents + BIAS, NOT_FINITE).astype(np.uint8)
    rows = integers.reshape(len(integers), -1)[:, :width]
    return rows.tobytes() + codes.tobytes()


def decoded(
    payload: bytes | bytearray | memoryview, dtype: str, width: int, rows: int
) -> bytearray:
    """The raw bytes of `rows` rows, writable. Raises BadTensor for another number of bytes."""
    if len(payload) != encoded_bytes(rows, width):
        raise BadTensor(f"{len(payload)} bytes for int8 of {rows} rows of {width} values")
    integers = np.frombuffer(payload, np.int8, rows * width).reshape(rows, width)
    codes = np.frombuffer(payload, np.uint8, offset=rows * width).reshape(rows, -1)
    values = _blocks(integers.astype(np.float32))
    known = np.minimum(codes, NOT_FINITE - 1)
    scales = np.ldexp(np.float32(1.0), known.astype(np.int32) - BIAS)
    with np.errstate(over="ignore"):
        values = values * scales[..., None]
    np.clip(values, -MAX_FINITE[dtype], MAX_FINITE[dtype], out=values)
    values[codes == NOT_FINITE] = np.nan
    return _raw(values.reshape(rows, -1)[:, :width], dtype)


def _blocks(rows: NDArray[np.float32]) -> NDArray[np.float32]:
    """(rows, width) to (rows, blocks, BLOCK), the last block of a row filled up with zeros."""
    count, width = rows.shape
    missing = -width % BLOCK
    if missing:
        rows = np.concatenate([rows, np.zeros((count, missing), np.float32)], axis=1)
    return rows.reshape(count, -1, BLOCK)


def _floats(data: bytes | bytearray | memoryview, dtype: str) -> NDArray[np.float32]:
    if dtype == "bfloat16":  # numpy has no such type: it is the upper half of a float32
        return (np.frombuffer(data, np.uint16).astype(np.uint32) << 16).view(np.float32)
    kind = np.float32 if dtype == "float32" else np.float16
    return np.frombuffer(data, kind).astype(np.float32)


def _raw(values: NDArray[np.float32], dtype: str) -> bytearray:
    """Of values that the dtype holds exactly."""
    values = np.ascontiguousarray(values)
    if dtype == "bfloat16":
        return bytearray((values.view(np.uint32) >> 16).astype(np.uint16).data)
    if dtype == "float16":
        return bytearray(values.astype(np.float16).data)
    return bytearray(values.data)
