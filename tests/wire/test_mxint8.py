"""Hidden states in a byte a value: how far off, and that a second time changes nothing."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from swarmd.errors import BadTensor
from swarmd.wire.mxint8 import BLOCK, LARGEST, MAX_FINITE
from swarmd.wire.tensors import TensorMeta, decode, encode, is_finite

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def there_and_back(data: bytes, meta: TensorMeta) -> bytes:
    payload = bytearray(encode(data, meta))
    return bytes(decode(payload, meta, max_bytes=meta.n_bytes))


def values_of(data: bytes, meta: TensorMeta) -> torch.Tensor:
    flat = torch.frombuffer(bytearray(data), dtype=DTYPES[meta.dtype])
    return flat.reshape(meta.shape).double()


SHAPES = st.tuples(st.integers(1, 4), st.sampled_from([1, 5, 31, 32, 33, 64, 100]))
METAS = st.builds(
    lambda dtype, shape: TensorMeta(dtype, (1, *shape), "int8"), st.sampled_from([*DTYPES]), SHAPES
)


@given(METAS, st.randoms(use_true_random=False))
def test_any_bits_a_second_time_change_nothing(meta: TensorMeta, rng: object) -> None:
    data = rng.randbytes(meta.n_bytes)  # type: ignore[attr-defined]
    once = there_and_back(data, meta)
    assert there_and_back(once, meta) == once
    assert is_finite(once, meta.dtype) == is_finite(data, meta.dtype)


@given(METAS, st.integers(0, 1 << 30), st.floats(-20, 20))
def test_a_value_is_off_by_a_share_of_its_blocks_largest(
    meta: TensorMeta, seed: int, power: float
) -> None:
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randn(meta.shape, generator=generator) * 2.0**power
    drawn[..., 0] *= 1000  # outliers are usual
    data = drawn.clamp(-6e4, 6e4).to(DTYPES[meta.dtype]).view(torch.uint8).numpy().tobytes()
    before, after = values_of(data, meta), values_of(there_and_back(data, meta), meta)
    for first in range(0, meta.shape[-1], BLOCK):
        block, other = (one[..., first : first + BLOCK] for one in (before, after))
        largest = block.abs().amax(dim=-1, keepdim=True)
        step = 2.0**-24 if meta.dtype == "float16" else 2.0**-127
        assert bool(((other - block).abs() <= (largest / LARGEST).clamp(min=step)).all())


@given(METAS, st.integers(0, 1 << 30))
def test_a_row_is_encoded_alike_in_any_company(meta: TensorMeta, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randn(meta.shape, generator=generator).to(DTYPES[meta.dtype])
    together = there_and_back(drawn.view(torch.uint8).numpy().tobytes(), meta)
    one = TensorMeta(meta.dtype, (1, 1, meta.shape[-1]), "int8")
    apart = [
        there_and_back(drawn[:, row].contiguous().view(torch.uint8).numpy().tobytes(), one)
        for row in range(meta.shape[1])
    ]
    assert b"".join(apart) == together


def test_it_takes_a_byte_a_value_and_one_for_a_block() -> None:
    meta = TensorMeta("float32", (1, 3, 576), "int8")
    assert len(encode(bytes(meta.n_bytes), meta)) == 3 * (576 + 18)


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_largest_values_stay_finite(dtype: str) -> None:
    meta = TensorMeta(dtype, (1, 1, BLOCK), "int8")
    values = torch.full(meta.shape, MAX_FINITE[dtype]).to(DTYPES[dtype])
    values[..., ::2] *= -1
    once = there_and_back(values.view(torch.uint8).numpy().tobytes(), meta)
    assert is_finite(once, dtype)
    assert there_and_back(once, meta) == once


def test_the_smallest_values_do_no_harm() -> None:
    for dtype in DTYPES:
        meta = TensorMeta(dtype, (1, 1, BLOCK), "int8")
        for bits in (0, 1):
            kind = np.uint32 if dtype == "float32" else np.uint16
            data = np.full(BLOCK, bits, kind).tobytes()
            assert is_finite(there_and_back(data, meta), dtype)


@pytest.mark.parametrize("size", [0, 32, 65, 67, 1000])
def test_another_size_is_refused(size: int) -> None:
    meta = TensorMeta("float32", (1, 2, 32), "int8")
    assert len(encode(bytes(meta.n_bytes), meta)) == 66
    with pytest.raises(BadTensor):
        decode(bytearray(size), meta, max_bytes=1 << 20)


@given(st.binary(min_size=66, max_size=66), st.sampled_from([*DTYPES]))
def test_any_payload_decodes_to_something_or_not_a_number(payload: bytes, dtype: str) -> None:
    meta = TensorMeta(dtype, (1, 2, 32), "int8")
    raw = decode(bytearray(payload), meta, max_bytes=1 << 20)
    assert len(raw) == meta.n_bytes
    assert is_finite(raw, dtype) == (255 not in payload[64:])
