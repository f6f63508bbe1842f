"""A hop against hostile listeners: each lie is one typed error, and the connection is dropped."""

from __future__ import annotations

import asyncio
import dataclasses
import math
import struct
from typing import Any

import pytest
import zstandard

from swarmd.client.hop_link import HopLink
from swarmd.errors import (
    BadOutput,
    BadRequest,
    Busy,
    ConnectionLost,
    Draining,
    InternalError,
    NotFinite,
    PeerFailure,
    PeerMismatch,
    PeerTimeout,
    SwarmdError,
    UnknownSession,
    Unreachable,
)
from swarmd.identity import Identity
from swarmd.wire.messages import (
    Close,
    Closed,
    ErrorMessage,
    Hello,
    Message,
    Open,
    Opened,
    Output,
    Ping,
    Pong,
    Step,
)
from swarmd.wire.pool import Pool
from swarmd.wire.tensors import TensorMeta
from swarmd.wire.transport import Greeting
from tests.client.hostile import HIDDEN, MODEL, SPAN, Answer, Hostile, framed
from tests.conftest import Runner
from tests.wire.talk import HELLO

PLAIN, PLAIN_MODEL = Greeting(plaintext=True), Greeting(MODEL, plaintext=True)
TOKENS = 3
META = TensorMeta("float32", (1, TOKENS, HIDDEN))
DATA = struct.pack(f"<{TOKENS * HIDDEN}f", *range(TOKENS * HIDDEN))


async def opened(hostile: Hostile, pool: Pool, timeout: float = 10.0) -> HopLink:
    return await HopLink.open(hostile.info, SPAN, pool, max_length=64, timeout=timeout)


async def stepped(link: HopLink, deadline: float = 10.0, codec: Any = "raw") -> bytes:
    output = await link.step(0, DATA, META, codec=codec, deadline=deadline)
    return bytes(output.data)


def is_dropped(link: HopLink) -> bool:
    return not link._greeted.connection.is_usable


def says(*parts: bytes) -> Answer:
    async def answer(hostile: Hostile, message: Message, payload: bytes) -> None:
        hostile.say_raw(b"".join(parts))

    return answer


async def silence(hostile: Hostile, message: Message, payload: bytes) -> None:
    pass


async def hang_up(hostile: Hostile, message: Message, payload: bytes) -> None:
    hostile.writer.close()


def outputs(payload: bytes, **changed: Any) -> Answer:
    """The good output but for what is changed; then the other end goes on as if all was well."""

    async def answer(hostile: Hostile, message: Message, _: bytes) -> None:
        assert isinstance(message, Step)
        output = Output(message.session, message.step, 1, 2, 3, META)
        hostile.say(dataclasses.replace(output, **changed), payload)

    return answer


def cut_output(keep: int) -> Answer:
    async def answer(hostile: Hostile, message: Message, payload: bytes) -> None:
        assert isinstance(message, Step)
        whole = framed(Output(message.session, message.step, 1, 2, 3, META), payload)
        hostile.say_raw(whole[:keep])
        hostile.writer.close()

    return answer


def floats(*values: float) -> bytes:
    return struct.pack(f"<{TOKENS * HIDDEN}f", *values, *[0.0] * (TOKENS * HIDDEN - len(values)))


def meta(*shape: int, dtype: str = "float32", codec: str = "raw") -> TensorMeta:
    return TensorMeta(dtype, shape, codec)


HOSTILE_STEPS: dict[str, tuple[Answer, type[SwarmdError]]] = {
    "one token too few": (outputs(bytes(32), tensor=meta(1, 2, 4)), BadOutput),
    "one token too many": (outputs(bytes(64), tensor=meta(1, 4, 4)), BadOutput),
    "transposed": (outputs(bytes(48), tensor=meta(1, 4, 3)), BadOutput),
    "two dimensions": (outputs(bytes(48), tensor=meta(3, 4)), BadOutput),
    "another dtype": (outputs(bytes(24), tensor=meta(1, 3, 4, dtype="bfloat16")), BadOutput),
    "too few bytes": (outputs(bytes(47)), BadOutput),
    "too many bytes": (outputs(bytes(49)), BadOutput),
    "no bytes": (outputs(b""), BadOutput),
    "zstd garbage": (outputs(b"garbage", tensor=meta(1, 3, 4, codec="zstd")), BadOutput),
    "a zstd bomb": (
        outputs(zstandard.compress(bytes(32 << 20)), tensor=meta(1, 3, 4, codec="zstd")),
        BadOutput,
    ),
    "not a number": (outputs(floats(math.nan)), NotFinite),
    "infinity in the middle": (outputs(floats(1.0, 2.0, -math.inf)), NotFinite),
    "the answer to another step": (outputs(bytes(48), step=77), BadOutput),
    "another session's answer": (outputs(bytes(48), session=b"x" * 16), BadOutput),
    "garbage": (says(b"\xde\xad\xbe\xef" * 50), BadOutput),
    "zeros": (says(bytes(100)), BadOutput),
    "http": (says(b"HTTP/1.1 200 OK\r\n\r\n"), BadOutput),
    "opened again": (says(framed(Opened(b"x" * 16, 1))), BadOutput),
    "closed": (says(framed(Closed(b"x" * 16))), BadOutput),
    "a pong": (says(framed(Pong(1))), BadOutput),
    "a ping": (says(framed(Ping(1))), BadOutput),
    "an open": (says(framed(Open(b"x" * 16, 0, 1, 1))), BadOutput),
    "a close": (says(framed(Close(b"x" * 16))), BadOutput),
    "a step": (says(framed(Step(b"x" * 16, 1, 0, 0, META), DATA)), BadOutput),
    "a hello": (says(framed(HELLO)), BadOutput),
    "an error of another step": (says(framed(ErrorMessage("busy", "", None, 77))), BadOutput),
    "hangs up": (hang_up, ConnectionLost),
    **{f"closes after {keep} bytes": (cut_output(keep), ConnectionLost) for keep in (1, 9, 130)},
    "never answers": (silence, PeerTimeout),
}


@pytest.mark.parametrize("case", HOSTILE_STEPS)
def test_a_lie_in_answer_to_a_step(case: str, run_async: Runner) -> None:
    answer, expected = HOSTILE_STEPS[case]

    async def work() -> None:
        async with Hostile({Step: answer}) as hostile, Pool(PLAIN_MODEL) as pool:
            link = await opened(hostile, pool)
            with pytest.raises(expected) as caught:
                await stepped(link, deadline=0.2 if expected is PeerTimeout else 10.0)
            assert type(caught.value) is expected
            assert isinstance(caught.value, PeerFailure)
            assert is_dropped(link), "after a PeerFailure the link is dead"
            await link.close()
            assert len(pool._idle) == 0

    run_async(work())


REFUSALS = [
    ErrorMessage("busy", "full", 1500, 1),
    ErrorMessage("internal_error", "oh", None, 1),
    ErrorMessage("unknown_session", "gone"),
    ErrorMessage("draining", "bye", fatal=True),
    ErrorMessage("a code of the future", "?", None, 1),
]
KINDS = [Busy, InternalError, UnknownSession, Draining, InternalError]


@pytest.mark.parametrize(("refusal", "kind"), list(zip(REFUSALS, KINDS, strict=True)))
def test_a_refused_step(refusal: ErrorMessage, kind: type[SwarmdError], run_async: Runner) -> None:
    """A refusal of this very step leaves the link; any other one ends it."""

    async def work() -> None:
        async with Hostile({Step: says(framed(refusal))}) as hostile, Pool(PLAIN) as pool:
            link = await opened(hostile, pool)
            with pytest.raises(kind) as caught:
                await stepped(link)
            assert type(caught.value) is kind
            hostile.answers.clear()
            if refusal.step == 1:
                assert await stepped(link) == DATA
            else:
                with pytest.raises(ConnectionLost):
                    await stepped(link)
            await link.close()

    run_async(work())


def test_an_old_answer_is_never_taken_for_a_new_one(run_async: Runner) -> None:
    """A refusal of no step in particular, and then the first step's output for the second."""
    late: list[bytes] = []

    async def answer(hostile: Hostile, message: Message, payload: bytes) -> None:
        assert isinstance(message, Step)
        if not late:
            late.append(framed(Output(message.session, message.step, 1, 2, 3, META), bytes(48)))
            hostile.say(ErrorMessage("busy", "full"))
        else:
            hostile.say_raw(late[0])

    async def work() -> None:
        async with Hostile({Step: answer}) as hostile, Pool(PLAIN) as pool:
            link = await opened(hostile, pool)
            with pytest.raises(Busy):
                await stepped(link)
            with pytest.raises(PeerFailure):
                await stepped(link)

    run_async(work())


HOSTILE_OPENS: dict[str, tuple[Answer, type[SwarmdError]]] = {
    "another session": (says(framed(Opened(b"x" * 16, 1))), BadOutput),
    "a pong": (says(framed(Pong(1))), BadOutput),
    "an output": (says(framed(Output(b"x" * 16, 1, 0, 0, 0, META), DATA)), BadOutput),
    "a close": (says(framed(Close(b"x" * 16))), BadOutput),
    "garbage": (says(b"garbage!" * 9), BadOutput),
    "half a frame": (says(framed(Opened(b"x" * 16, 1))[:12]), PeerTimeout),
    "hangs up": (hang_up, ConnectionLost),
    "never answers": (silence, PeerTimeout),
    "busy": (says(framed(ErrorMessage("busy", "full", 100))), Busy),
    "busy, and ends it": (says(framed(ErrorMessage("busy", "full", 100, None, True))), Busy),
    "a refusal of a step that never was": (
        says(framed(ErrorMessage("busy", "full", 100, 1))), BadOutput,
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", HOSTILE_OPENS)
def test_a_lie_in_answer_to_an_open(case: str, run_async: Runner) -> None:
    answer, expected = HOSTILE_OPENS[case]

    async def work() -> None:
        async with Hostile({Open: answer}) as hostile, Pool(PLAIN_MODEL) as pool:
            with pytest.raises(expected) as caught:
                await opened(hostile, pool, timeout=0.2 if expected is PeerTimeout else 10.0)
            assert type(caught.value) is expected
            kept = len(pool._idle)
            assert kept == (1 if case == "busy" else 0), "a clean refusal keeps the connection"
            hostile.answers.clear()
            link = await opened(hostile, pool)
            assert await stepped(link) == DATA
            await link.close()
            assert len(hostile.writers) == 2 - kept

    run_async(work())


def test_the_wrong_peer_and_the_dead(run_async: Runner) -> None:
    async def work() -> None:
        other = Identity.generate().peer_id
        async with Pool(PLAIN) as pool:
            async with Hostile(answers_as=other) as hostile:
                with pytest.raises(PeerMismatch) as caught:
                    await opened(hostile, pool)
                assert caught.value.peer == hostile.peer_id
            with pytest.raises(Unreachable):
                await opened(hostile, pool)
            async with Hostile({Hello: silence}) as hostile:
                with pytest.raises(PeerTimeout):
                    await opened(hostile, pool, timeout=0.1)

    run_async(work())


@pytest.mark.parametrize("codec", ["raw", "zstd"])
def test_an_honest_peer(codec: str, run_either: Runner) -> None:
    async def work() -> None:
        async with Hostile() as hostile, Pool(PLAIN_MODEL) as pool:
            for _ in range(3):
                link = await opened(hostile, pool)
                for _ in range(3):
                    assert await stepped(link, codec=codec) == DATA
                await link.close()
                assert len(pool._idle) == 1
            assert len(hostile.writers) == 1, "the connection was used again"

    run_either(work())


def test_a_cancelled_step_drops_the_connection(run_either: Runner) -> None:
    async def work() -> None:
        async with Hostile({Step: silence}) as hostile, Pool(PLAIN) as pool:
            link = await opened(hostile, pool)
            task = asyncio.ensure_future(stepped(link))
            await asyncio.sleep(0)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert is_dropped(link)

    run_either(work())


def test_closing_a_peer_that_does_not_answer(run_async: Runner) -> None:
    async def work() -> None:
        for answer in (silence, hang_up, says(b"garbage!" * 9), says(framed(Closed(b"x" * 16)))):
            async with Hostile({Close: answer}) as hostile, Pool(PLAIN) as pool:
                link = await opened(hostile, pool)
                await link.close(timeout=0.1)
                assert is_dropped(link)
                assert len(pool._idle) == 0

    run_async(work())


def test_a_request_that_the_peer_calls_bad_is_ours(run_async: Runner) -> None:
    refusal = ErrorMessage("bad_request", "I do not understand", None, 1)

    async def work() -> None:
        async with Hostile({Step: says(framed(refusal))}) as hostile, Pool(PLAIN) as pool:
            link = await opened(hostile, pool)
            with pytest.raises(BadRequest) as caught:
                await stepped(link)
            assert not caught.value.retryable
            link.abort()

    run_async(work())
