"""Mutated stream frames against the session protocol, in every state and at both ends.

Each conversation is brought to a random state by true messages, then frames with flipped bytes,
wrong lengths, wrong types or wrong moments are fed in pieces of random size. Nothing but a typed
refusal may come of it, and memory stays flat. The machine is the one that every connection runs.

    python -m bench.fuzz_frames [--frames 100000] [--seed 1]
"""

from __future__ import annotations

import argparse
import collections
import gc
import os
import random
import time
import tracemalloc
from dataclasses import dataclass
from typing import Any

import msgpack
import psutil

from bench.report import save, show
from swarmd.errors import RemoteError
from swarmd.wire.frames import FrameDecoder, Limits, encode_preamble
from swarmd.wire.messages import (
    MESSAGES,
    Challenge,
    Close,
    Dialback,
    ErrorMessage,
    Hello,
    Message,
    Open,
    Opened,
    Output,
    Ping,
    Pong,
    Reserve,
    Reserved,
    Step,
    Welcome,
    encode_header,
)
from swarmd.wire.protocol import Protocol, Role, State
from swarmd.wire.tensors import TensorMeta

__all__ = ["Report", "fuzz_frames"]

SESSION, META = b"s" * 16, TensorMeta("float32", (1, 2, 4))
PAYLOAD = bytes(META.n_bytes)
LIMITS = Limits(payload=1 << 16)
D, L = Role.DIALLER, Role.LISTENER
GREETING: list[tuple[Role, Message]] = [
    (L, Challenge(b"n" * 32, b"p" * 32)),
    (D, Hello(2, "bench", b"m" * 16, b"k" * 32, b"p" * 32, b"s" * 64)),
    (L, Welcome(2, "bench", b"p" * 20, b"m" * 16, 0, 6, "float32", "none", 1 << 16)),
]
SESSIONS: list[tuple[Role, Message]] = [
    (D, Open(SESSION, 0, 6, 64)),
    (L, Opened(SESSION, 100)),
    (D, Step(SESSION, 1, 0, 1000, META)),
    (D, Step(SESSION, 2, 2, 1000, META)),
    (L, Output(SESSION, 1, 5, 5, 90, META)),
    (D, Close(SESSION)),
]
PATHS = [
    *(GREETING[:n] for n in range(4)),
    *(GREETING + SESSIONS[:n] for n in range(1, 7)),
    [*GREETING, (D, Dialback(31330))],
    [*GREETING, (D, Reserve()), (L, Reserved(4, 1000))],
]
SAMPLES: list[Message] = [
    *(message for _, message in GREETING + SESSIONS),
    Ping(1),
    Pong(1),
    Reserve(),
    Reserved(4, 1000),
    Dialback(31330),
    ErrorMessage("busy", "full", 1000, 1, False),
    ErrorMessage("bad_request", "no", None, None, True),
]
WRONG: list[Any] = [
    None,
    True,
    -1,
    0,
    2**63,
    1.5,
    "x",
    "x" * 2000,
    b"",
    b"x" * 99,
    [],
    {},
    [[]] * 9,
]


@dataclass(frozen=True, slots=True)
class Report:
    """`bugs` are exceptions that are no typed refusal; `heap_growth` in bytes."""

    frames: int
    bugs: int
    us_each: float
    heap_growth: int
    outcomes: dict[str, int]


def frame_of(message: Message, rng: random.Random) -> bytes:
    """A frame that is wrong in one way or another, or in none."""
    header = encode_header(message)
    payload = PAYLOAD if isinstance(message, Step | Output) else b""
    way = rng.randrange(7)
    if way == 0:
        fields = msgpack.unpackb(header)
        fields[rng.choice(list(fields))] = rng.choice(WRONG)
        header = msgpack.packb(fields)
    elif way == 1:
        fields = msgpack.unpackb(header)
        del fields[rng.choice(list(fields))]
        header = msgpack.packb(fields)
    elif way == 2:
        header = rng.randbytes(rng.randrange(200))
    elif way == 3:
        payload = rng.randbytes(rng.randrange(300))
    data = bytearray(encode_preamble(header, len(payload)) + payload)
    if way == 4:
        for _ in range(rng.randrange(1, 6)):
            data[rng.randrange(len(data))] = rng.randrange(256)
    elif way == 5:
        del data[rng.randrange(len(data)) :]
    return bytes(data)


def at(path: list[tuple[Role, Message]], role: Role) -> Protocol:
    """One end of a conversation that has come so far."""
    end, other = Protocol(role, LIMITS), Protocol(role.other, LIMITS)
    for sender, message in path:
        (end if sender is role else other).send(message)
        receiver = other if sender is role else end
        payload = PAYLOAD if isinstance(message, Step | Output) else b""
        decoder = FrameDecoder(LIMITS)
        decoder.feed(encode_preamble(encode_header(message), len(payload)) + payload)
        frame = decoder.next_frame()
        assert frame is not None
        receiver.receive(frame)
    return end


def converse(rng: random.Random, frames: int, outcomes: collections.Counter[str]) -> int:
    """Feed `frames` frames into a conversation; returns the number of bugs."""
    end = at(rng.choice(PATHS), rng.choice((D, L)))
    decoder = FrameDecoder(LIMITS)
    data = b"".join(frame_of(rng.choice(SAMPLES), rng) for _ in range(frames))
    try:
        while data and end.state is not State.ENDED:
            size = rng.randrange(1, 400)
            decoder.feed(data[:size])
            data = data[size:]
            while (frame := decoder.next_frame()) is not None:
                try:
                    end.receive(frame)
                    outcomes["accepted"] += 1
                except RemoteError as error:
                    outcomes[error.code] += 1
    except RemoteError as error:
        outcomes[error.code] += 1
    except Exception as error:
        print(f"BUG: {type(error).__name__}: {error}")
        return 1
    outcomes["ended" if end.state is State.ENDED else "went on"] += 1
    return 0


def fuzz_frames(frames: int, seed: int = 1) -> Report:
    """Feed about `frames` frames, eight a conversation."""
    assert set(MESSAGES.values()) >= {type(message) for message in SAMPLES}
    rng, outcomes, bugs = random.Random(seed), collections.Counter[str](), 0
    for _ in range(200):
        converse(rng, 8, outcomes)
    gc.collect()
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    for _ in range(500):
        bugs += converse(rng, 8, outcomes)
    gc.collect()
    growth = tracemalloc.get_traced_memory()[0] - before
    tracemalloc.stop()
    began = time.perf_counter()
    for _ in range(max(1, frames // 8)):
        bugs += converse(rng, 8, outcomes)
    seconds = time.perf_counter() - began
    return Report(frames, bugs, 1e6 * seconds / frames, growth, dict(outcomes))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--frames", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    process = psutil.Process(os.getpid())
    before = process.memory_info().rss
    report = fuzz_frames(options.frames, options.seed)
    rss_growth = process.memory_info().rss - before
    show(
        f"{report.frames:,} mutated stream frames",
        ("bugs", "µs a frame, its making included", "heap growth", "RSS growth"),
        [
            (
                str(report.bugs),
                f"{report.us_each:.1f}",
                f"{report.heap_growth:,} B",
                f"{rss_growth / 1e6:.1f} MB",
            )
        ],
    )
    save(
        "fuzz_frames",
        {"frames": options.frames, "seed": options.seed},
        {
            "bugs": report.bugs,
            "us_each": report.us_each,
            "heap_growth": report.heap_growth,
            "rss_growth": rss_growth,
            "outcomes": report.outcomes,
        },
    )
    raise SystemExit(report.bugs > 0)


if __name__ == "__main__":
    main()
