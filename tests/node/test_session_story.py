"""The line that is logged when a session ends."""

from __future__ import annotations

import asyncio

import pytest

from swarmd.errors import BadRequest, ConnectionLost
from swarmd.node.session_story import SessionStory
from swarmd.wire.messages import Close, Closed, Output
from tests.conftest import Runner
from tests.node.conftest import Stage
from tests.node.hostile_client import ID, hidden, step


def test_what_is_counted() -> None:
    story = SessionStory("0a1b2c3d", "7f3a0000", "0:15")
    story.ran(0, 20, 0.1, 1.0)
    story.ran(20, 4, 0.1, 0.2)
    story.ran(21, 1, 0.0, 0.1)
    story.refused()
    assert story.told(None) == (
        "session 0a1b2c3d of 7f3a0000 over 0:15 closed: 3 steps, 25 tokens, at most 24 held, "
        "0.20 s waiting, 1.30 s computing; cut back 1 times; 1 steps refused"
    )


@pytest.mark.parametrize(
    ("end", "words"),
    [
        (TimeoutError(), "silent"),
        (ConnectionLost("x"), "lost"),
        (BadRequest("x"), "wrong message"),
        (asyncio.CancelledError(), "cut off"),
    ],
)
def test_how_it_ended(end: BaseException, words: str) -> None:
    assert words in SessionStory("a", "b", "c").told(end).partition(":")[0]


def test_a_session_tells_its_story(
    stage: Stage, run_async: Runner, caplog: pytest.LogCaptureFixture
) -> None:
    async def work() -> None:
        async with stage() as scene, scene.stranger() as stranger:
            await stranger.greet()
            await stranger.open(max_length=64)
            stranger.send(step(0, 0, tokens=9), payload=hidden(9, 1))
            await stranger.expect(Output)
            stranger.send(step(4, 1, tokens=2), payload=hidden(2, 1))
            await stranger.expect(Output)
            stranger.send(Close(ID))
            await stranger.expect(Closed)

    with caplog.at_level("INFO", logger="swarmd.node.session"):
        run_async(work())
    (told,) = [line for line in caplog.messages if line.startswith(f"session {ID.hex()[:8]}")]
    assert "closed: 2 steps, 11 tokens, at most 9 held" in told
    assert "cut back 1 times" in told
