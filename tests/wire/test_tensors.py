"""Codecs give back what they were given, and nothing is allocated on a stranger's word."""

from __future__ import annotations

import random
import tracemalloc

import numpy as np
import pytest
import torch
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from swarmd.errors import BadTensor
from swarmd.wire.tensors import (
    CODECS,
    ITEM_BYTES,
    MIN_COMPRESSED_BYTES,
    TensorMeta,
    choose_codec,
    decode,
    encode,
    is_finite,
)

LIMIT = 1 << 30
LOSSLESS = [codec for codec in CODECS if codec != "int8"]


@given(
    st.sampled_from(sorted(ITEM_BYTES)),
    st.sampled_from(LOSSLESS),
    st.lists(st.integers(1, 9), min_size=1, max_size=4),
    st.randoms(use_true_random=False),
)
def test_round_trip(dtype: str, codec: str, shape: list[int], rng: random.Random) -> None:
    meta = TensorMeta(dtype, tuple(shape), codec)
    data = rng.randbytes(meta.n_bytes)  # any bits: NaN and infinities travel as they are
    payload = bytearray(encode(data, meta))
    raw = decode(payload, meta, max_bytes=meta.n_bytes)
    assert bytes(raw) == data
    raw[0] ^= 1  # writable
    assert TensorMeta.from_wire(meta.to_wire()) == meta


@pytest.mark.parametrize("dtype", ITEM_BYTES)
def test_every_buffer_type_is_encoded_alike(dtype: str) -> None:
    meta = TensorMeta(dtype, (8,), "zstd")
    data = random.Random(1).randbytes(meta.n_bytes)
    kinds = (data, bytearray(data), memoryview(data))
    assert len({bytes(encode(kind, meta)) for kind in kinds}) == 1


def test_raw_is_not_copied() -> None:
    meta = TensorMeta("float32", (2,))
    payload = bytearray(8)
    assert decode(payload, meta, max_bytes=8) is payload
    assert encode(payload, meta) is payload


def test_activations_shrink() -> None:
    values = np.random.default_rng(0).normal(size=(64, 576)).astype(np.float32)
    meta = TensorMeta("float32", (64, 576), "zstd")
    assert len(encode(values.tobytes(), meta)) < 0.95 * meta.n_bytes


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("wrong", [-4, -1, 1, 4])
def test_a_wrong_size_is_refused(codec: str, wrong: int) -> None:
    meta = TensorMeta("float32", (16,), codec)
    if codec == "raw":
        payload = bytearray(meta.n_bytes + wrong)
    elif codec == "int8":
        payload = bytearray(17 + wrong)
    else:
        payload = bytearray(zstandard.compress(bytes(meta.n_bytes + wrong)))
    with pytest.raises(BadTensor):
        decode(payload, meta, max_bytes=LIMIT)


@pytest.mark.parametrize("codec", CODECS)
def test_the_limit_is_checked_first(codec: str) -> None:
    meta = TensorMeta("float32", (1, 1 << 20, 1 << 20), codec)  # 4 TiB
    with pytest.raises(BadTensor, match="limit"):
        decode(bytearray(8), meta, max_bytes=1 << 20)


def peak_of_refusal(payload: bytes, meta: TensorMeta) -> int:
    tracemalloc.start()
    try:
        with pytest.raises(BadTensor):
            decode(bytearray(payload), meta, max_bytes=LIMIT)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


BOMB = zstandard.compress(bytes(256 << 20))
"""256 MiB of zeros in some kilobytes."""


def test_a_frame_that_says_it_holds_more_is_refused_without_allocating() -> None:
    assert len(BOMB) < 1 << 16
    assert peak_of_refusal(BOMB, TensorMeta("float32", (16,), "zstd")) < 1 << 20


def test_a_frame_that_does_not_say_its_size_is_refused_without_allocating() -> None:
    silent = zstandard.ZstdCompressor(write_content_size=False).compress(bytes(64 << 20))
    assert peak_of_refusal(silent, TensorMeta("float32", (16,), "zstd")) < 1 << 20
    exact = zstandard.ZstdCompressor(write_content_size=False).compress(bytes(64))
    assert peak_of_refusal(exact, TensorMeta("float32", (16,), "zstd")) < 1 << 20


def test_a_frame_that_lies_about_its_size_is_refused_without_allocating() -> None:
    """The header says 64 bytes, as the shape does; the blocks behind it hold 256 MiB."""
    honest = zstandard.get_frame_parameters(BOMB)
    assert honest.content_size == 256 << 20
    small = zstandard.get_frame_parameters(zstandard.compress(bytes(300)))
    assert small.content_size == 300
    # frame header: magic, descriptor, [window], content size; 4-byte sizes for 256 MiB
    at = BOMB.find((256 << 20).to_bytes(4, "little"))
    assert 0 < at < 8
    lie = BOMB[:at] + (4096).to_bytes(4, "little") + BOMB[at + 4 :]
    assert zstandard.frame_content_size(lie) == 4096
    assert peak_of_refusal(lie, TensorMeta("float32", (1024,), "zstd")) < 1 << 20


@pytest.mark.parametrize(
    "payload",
    [b"", b"abc", b"\x28\xb5\x2f\xfd", zstandard.compress(bytes(64))[:-1], bytes(40)],
)
def test_what_is_no_zstd_frame_is_refused(payload: bytes) -> None:
    with pytest.raises(BadTensor):
        decode(bytearray(payload), TensorMeta("float32", (16,), "zstd"), max_bytes=LIMIT)


def test_bytes_behind_the_zstd_frame_are_refused() -> None:
    meta = TensorMeta("float32", (16,), "zstd")
    whole = bytes(encode(bytes(64), meta))
    for extra in (b"\x00", whole, b"garbage"):
        with pytest.raises(BadTensor):
            decode(bytearray(whole + extra), meta, max_bytes=LIMIT)


@given(st.binary(max_size=200), st.sampled_from(sorted(ITEM_BYTES)))
def test_garbage_is_refused(payload: bytes, dtype: str) -> None:
    meta = TensorMeta(dtype, (50, 7), "zstd")
    with pytest.raises(BadTensor):
        decode(bytearray(payload), meta, max_bytes=LIMIT)


def test_choose_codec() -> None:
    slow, fast = 1e6, 1e10
    assert choose_codec(MIN_COMPRESSED_BYTES - 1, slow) == "raw", "a decode step stays raw"
    assert choose_codec(MIN_COMPRESSED_BYTES, slow) == "zstd"
    assert choose_codec(1 << 30, fast) == "raw"
    assert choose_codec(1 << 30, slow) == "zstd"


@given(st.integers(0, 1 << 30), st.floats(1.0, 1e12), st.floats(1.0, 1e12))
def test_a_slower_link_never_compresses_less(n_bytes: int, one: float, two: float) -> None:
    slower, faster = sorted((one, two))
    if choose_codec(n_bytes, faster) == "zstd":
        assert choose_codec(n_bytes, slower) == "zstd"


@pytest.mark.parametrize("dtype", ITEM_BYTES)
def test_is_finite(dtype: str) -> None:
    kind = getattr(torch, dtype)
    good = torch.tensor([0.0, -1.5, torch.finfo(kind).max, torch.finfo(kind).tiny], dtype=kind)

    def raw(values: torch.Tensor) -> bytes:
        return values.view(torch.uint8).numpy().tobytes()

    assert is_finite(raw(good), dtype)
    assert is_finite(raw(-good), dtype)
    for wrong in (float("nan"), float("inf"), float("-inf")):
        assert not is_finite(raw(torch.tensor([0.0, wrong, 1.0], dtype=kind)), dtype)
