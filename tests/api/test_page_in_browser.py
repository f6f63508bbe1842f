"""The page as people see it, in headless Chromium over real peers."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from swarmd.blocks import Span
from swarmd.peers import PeerInfo
from tests.api.browser import CHROMIUM, Tab, tab
from tests.api.conftest import SPANS, Served, served
from tests.conftest import Runner
from tests.local_swarm import LocalPeer, LocalSwarm

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")

KEY = "a-key-of-these-tests"
EVIL = "<img src=x onerror=alert(1)>"
LIVE = "document.getElementById('status')?.dataset.state === 'live'"
ANSWERED = "document.querySelector('.assistant:not(.busy) .text')?.textContent.length > 20"


async def never_ending(server: Served) -> None:
    """Let no answer end by itself: one that is drawn by chance may do so at any token."""
    await server.gateway.load()
    server.gateway.text.eos_token_ids = frozenset()


async def ask(page: Tab, text: str) -> None:
    await page.run("document.getElementById('question').focus()")
    await page.write(text)
    await page.press("Enter")


def test_the_swarm_a_chat_a_failover_and_a_hole(
    long_swarm: LocalSwarm, run_async: Runner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest = LocalPeer.info.fget
    assert honest is not None

    def info(peer: LocalPeer) -> PeerInfo:
        return dataclasses.replace(honest(peer), version=EVIL)

    monkeypatch.setattr(LocalPeer, "info", property(info))

    async def work() -> None:
        async with served(long_swarm, [*SPANS, Span(3, 6)]) as server, tab(tmp_path) as page:
            await never_ending(server)
            await page.open(server.url)
            await page.until(LIVE)
            await page.until("document.querySelectorAll('#peers tr').length === 3")
            shades = "[...document.querySelectorAll('.blocks li')].map((b) => b.dataset.shade)"
            assert await page.run(shades) == ["1", "1", "1", "2", "2", "2"]
            for peer in long_swarm.peers:
                assert peer.identity.peer_id.short in await page.text("#peers")
            assert EVIL in await page.text("#peers"), "markup of a peer is text"
            assert await page.run("document.querySelectorAll('#peers img').length") == 0

            # Shift+Enter is a new line, Enter sends
            await page.run("document.getElementById('question').focus()")
            await page.write("one")
            await page.press("Enter", shift=True)
            await page.write("two")
            assert await page.run("document.getElementById('question').value") == "one\ntwo"
            await page.press("Enter")
            await page.until("document.querySelector('.busy .text')?.textContent.length > 0")
            await page.until("document.querySelector('#routes .hop') !== null")
            route = await page.text(".assistant .route")
            used = next(p for p in long_swarm.peers[1:] if p.identity.peer_id.short in route)
            used.kill()
            await page.until("document.querySelector('.assistant .loss') !== null")
            assert used.identity.peer_id.short in await page.text(".assistant .loss")
            assert "position" in await page.text(".assistant .facts")
            await page.run("document.getElementById('stop').click()")
            await page.until("document.querySelector('.assistant:not(.busy)') !== null")
            assert "stopped" in await page.text(".assistant .facts")
            assert await page.until("document.getElementById('send').disabled === false")
            await page.until("document.querySelector('#peers [data-state=failing]') !== null")
            await page.until("Number(document.getElementById('peak').textContent) > 0")
            assert page.complaints == []

            for peer in long_swarm.peers[1:]:
                peer.kill()
            await ask(page, "is anybody there?")
            await page.until("document.querySelector('.failed') !== null")
            await page.until("document.querySelector('.hole') !== null")
            assert "3:6" in await page.text(".hole")
            assert (await page.run(shades))[3:] == ["0", "0", "0"]
            # the browser itself notes the 503 of that answer, and nothing else
            assert all("503" in one for one in page.complaints), page.complaints

    run_async(work())


def test_a_key_is_asked_for_and_kept_in_the_tab(
    swarm: LocalSwarm, run_async: Runner, tmp_path: Path
) -> None:
    async def work() -> None:
        async with served(swarm, keys=(KEY,)) as server, tab(tmp_path) as page:
            await never_ending(server)
            await page.open(server.url)
            await page.until("document.activeElement?.id === 'key'")
            await page.write("a-key-that-is-wrong")
            await page.press("Enter")
            await page.until("document.getElementById('key-note').innerText.includes('not valid')")
            await page.until("document.activeElement?.id === 'key'")
            await page.write(KEY)
            await page.press("Enter")
            await page.until(LIVE)
            assert await page.run("document.getElementById('key-form').hidden")
            await ask(page, "hello")
            await page.until("document.querySelector('.assistant .text')?.textContent.length > 20")
            assert KEY in json.dumps(await page.run("({...sessionStorage})"))
            assert await page.run("localStorage.length + document.cookie.length") == 0
            # on a phone nothing is wider than the screen
            await page.look(width=390, height=844)
            assert await page.run("document.documentElement.scrollWidth") <= 390
            assert all("401" in one for one in page.complaints), page.complaints

    run_async(work())
