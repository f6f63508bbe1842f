"""Frames come out the same however the stream is cut, and lengths are checked before allocation."""

from __future__ import annotations

import contextlib
import random
import struct
import tracemalloc
from collections.abc import Iterable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from swarmd.errors import BadRequest, FrameTooLarge
from swarmd.wire.frames import DEFAULT_LIMITS, FrameDecoder, Limits, encode_preamble

Pair = tuple[bytes, bytes]
SCRATCH = 1 << 16

frames = st.lists(
    st.tuples(
        st.binary(min_size=1, max_size=40),
        st.one_of(
            st.binary(max_size=60),
            st.integers(SCRATCH - 3, 3 * SCRATCH).map(lambda n: random.Random(n).randbytes(n)),
        ),
    ),
    max_size=5,
)


def stream(pairs: Iterable[Pair]) -> bytes:
    return b"".join(encode_preamble(header, len(body)) + body for header, body in pairs)


def taken(decoder: FrameDecoder) -> list[Pair]:
    found = []
    while (frame := decoder.next_frame()) is not None:
        found.append((frame.header, bytes(frame.payload)))
    return found


def read_in(decoder: FrameDecoder, data: bytes, sizes: Iterable[int]) -> list[Pair]:
    """Feed as a transport does: it fills as much of the buffer as it has, at most `sizes`."""
    view = memoryview(data)
    for size in sizes:
        if not view:
            break
        buffer = decoder.get_buffer()
        assert len(buffer) > 0
        n_bytes = min(len(buffer), size, len(view))
        buffer[:n_bytes] = view[:n_bytes]
        view = view[n_bytes:]
        decoder.received(n_bytes)
    assert not view
    return taken(decoder)


@given(frames)
def test_whole(pairs: list[Pair]) -> None:
    decoder = FrameDecoder()
    decoder.feed(stream(pairs))
    assert taken(decoder) == pairs
    assert not decoder.mid_frame


@given(st.lists(st.tuples(st.binary(min_size=1, max_size=30), st.binary(max_size=90)), max_size=4))
@settings(max_examples=40)
def test_byte_by_byte(pairs: list[Pair]) -> None:
    data = stream(pairs)
    assert read_in(FrameDecoder(), data, [1] * len(data)) == pairs


@given(frames, st.randoms(use_true_random=False))
def test_random_chunks(pairs: list[Pair], rng: random.Random) -> None:
    sizes = iter(lambda: rng.choice((1, 7, 8, 9, 1000, SCRATCH, 1 << 20)), None)
    assert read_in(FrameDecoder(), stream(pairs), sizes) == pairs


@given(frames, st.tuples(st.binary(min_size=1, max_size=30), st.binary(max_size=30)), st.data())
def test_trailing_data_is_kept_until_it_is_a_frame(
    pairs: list[Pair], last: Pair, data: st.DataObject
) -> None:
    tail = stream([last])
    cut = data.draw(st.integers(1, len(tail) - 1))
    decoder = FrameDecoder()
    decoder.feed(stream(pairs) + tail[:cut])
    assert taken(decoder) == pairs
    assert decoder.mid_frame, "the stream may not end here"
    decoder.feed(tail[cut:])
    assert taken(decoder) == [last]
    assert not decoder.mid_frame


def test_a_large_payload_is_read_into_its_own_memory() -> None:
    body = random.Random(1).randbytes(10 * SCRATCH)
    decoder = FrameDecoder()
    decoder.feed(encode_preamble(b"h", len(body)))
    direct = decoder.get_buffer()
    assert len(direct) == len(body), "the kernel may fill all of the payload in one read"
    direct[:] = body
    decoder.received(len(body))
    frame = decoder.next_frame()
    assert frame is not None
    assert frame.payload == body
    frame.payload[0] ^= 1
    assert direct[0] == frame.payload[0], "no copy was made"


@pytest.mark.parametrize("rest", [SCRATCH - 1, SCRATCH, SCRATCH + 1])
@pytest.mark.parametrize("first", [0, 1, 100])
def test_the_edge_between_the_scratch_buffer_and_direct_reads(rest: int, first: int) -> None:
    """The header and `first` bytes in one read, then a payload that lacks `rest` bytes."""
    pair = (b"h", random.Random(rest).randbytes(first + rest))
    data = stream([pair, (b"t", b"tail")])
    expected = [pair, (b"t", b"tail")]
    assert read_in(FrameDecoder(), data, [9 + first, *[SCRATCH] * 4]) == expected
    assert read_in(FrameDecoder(), data, [9 + first, rest - 1, 1, 7, 100]) == expected


def test_payloads_are_writable_and_do_not_share_memory() -> None:
    decoder = FrameDecoder()
    decoder.feed(stream([(b"a", b"one"), (b"b", b"two")]))
    first, second = decoder.next_frame(), decoder.next_frame()
    assert first is not None
    assert second is not None
    first.payload[:] = b"xxx"
    assert second.payload == b"two"


@pytest.mark.parametrize(
    ("header", "payload"),
    [(0xFFFFFFFF, 0), (65 << 10, 0), (1, 0xFFFFFFFF), (1, (128 << 20) + 1), (0x47455420, 0x2F)],
)
def test_a_length_beyond_the_limit_is_refused_before_allocation(header: int, payload: int) -> None:
    decoder = FrameDecoder()
    tracemalloc.start()
    try:
        with pytest.raises(FrameTooLarge):
            decoder.feed(struct.pack(">II", header, payload))
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()
    assert decoder.next_frame() is None


def test_limits_are_those_given_and_inclusive() -> None:
    limits = Limits(header=10, payload=100)
    decoder = FrameDecoder(limits)
    decoder.feed(stream([(b"h" * 10, b"p" * 100)]))
    assert taken(decoder) == [(b"h" * 10, b"p" * 100)]
    for header, payload in ((11, 0), (10, 101)):
        with pytest.raises(FrameTooLarge):
            FrameDecoder(limits).feed(struct.pack(">II", header, payload))


def test_the_largest_header_that_can_be_is_accepted() -> None:
    largest = min(DEFAULT_LIMITS.header, SCRATCH - 8)
    pair = (b"h" * largest, b"p")
    assert read_in(FrameDecoder(), stream([pair]), [SCRATCH] * 3) == [pair]


def test_a_frame_without_a_header_is_refused() -> None:
    with pytest.raises(BadRequest, match="without a header"):
        FrameDecoder().feed(bytes(8))


def test_frames_before_the_broken_one_are_delivered() -> None:
    decoder = FrameDecoder()
    with pytest.raises(FrameTooLarge):
        decoder.feed(stream([(b"a", b"one")]) + b"\xff" * 8)
    assert taken(decoder) == [(b"a", b"one")]


@given(st.tuples(st.binary(min_size=1, max_size=30), st.binary(max_size=200)), st.data())
def test_a_truncated_stream_gives_no_frame(pair: Pair, data: st.DataObject) -> None:
    whole = stream([pair])
    decoder = FrameDecoder()
    decoder.feed(whole[: data.draw(st.integers(1, len(whole) - 1))])
    assert decoder.next_frame() is None
    assert decoder.mid_frame


@given(st.binary(max_size=400))
def test_garbage_raises_nothing_but_bad_request(data: bytes) -> None:
    decoder = FrameDecoder(Limits(header=200, payload=1000))
    with contextlib.suppress(BadRequest):
        decoder.feed(data)
