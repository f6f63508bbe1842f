"""Take the pictures of the web page for the documents: real daemons, a chat, a kill, a hole.

python scripts/make_page_images.py [FOLDER]

Needs Chromium on the PATH. FOLDER, docs/images by default, gets page-light.png (a chat whose hop
was killed) and page-dark.png (a hole); any other folder gets those of a phone as well.
"""

from __future__ import annotations

import asyncio
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from bench.api import api_server  # noqa: E402
from bench.nodes import Swarm, swarm  # noqa: E402
from tests.api.browser import Tab, tab  # noqa: E402

IMAGES = ROOT / "docs" / "images"
SPANS = ("0:12", "0:12", "8:20", "12:30", "12:30")
QUESTION = "Explain in a few sentences why the sky is blue and why it turns red at sunset."
LIVE = "document.getElementById('status')?.dataset.state === 'live'"
DESKTOP = {"width": 1240, "height": 880}
PHONE = {"width": 390, "height": 844}


async def ask(page: Tab, text: str) -> None:
    await page.run("document.getElementById('question').focus()")
    await page.write(text)
    await page.press("Enter")


async def take(nodes: Swarm, url: str, page: Tab, folder: Path) -> None:
    extra = folder != IMAGES

    async def shoot(name: str, size: dict[str, int], scheme: str = "light") -> None:
        await page.look(**size, scheme=scheme)
        await asyncio.sleep(0.3)  # for a frame in this size
        await page.screenshot(folder / f"page-{name}.png")

    await page.look(**DESKTOP)
    await page.open(url)
    await page.until(LIVE)
    await page.until(f"document.querySelectorAll('#peers tr').length === {len(SPANS)}")
    await ask(page, QUESTION)
    await page.until("document.querySelector('.busy .text')?.textContent.length > 90")
    last = await page.run(
        "[...document.querySelectorAll('.busy .route code')].at(-1).textContent.trim()"
    )
    address = await page.run(
        "[...document.querySelectorAll('#peers th')]"
        f".find((head) => head.textContent === '{last}').title.split(' at ')[1]"
    )
    nodes.by_address(address).kill()
    await page.until("document.querySelector('.busy .loss') !== null")
    await asyncio.sleep(1.5)  # for the next event, and some text after the loss
    await shoot("light", DESKTOP)
    if extra:
        await shoot("chat-dark", DESKTOP, "dark")
        await shoot("chat-phone", PHONE)
    await page.look(**DESKTOP)
    await page.run("document.getElementById('stop').click()")
    await page.until("document.querySelector('.busy') === null")
    for node in nodes.nodes:
        if node.blocks == "12:30" and node.process.poll() is None:
            node.kill()
    await ask(page, "And at night?")
    await page.until("document.querySelector('.hole') !== null")
    await page.until("document.querySelector('.busy') === null")
    await shoot("dark", DESKTOP, "dark")
    if extra:
        await shoot("hole-light", DESKTOP)
        await shoot("hole-phone", PHONE, "dark")


def main() -> None:
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else IMAGES
    folder.mkdir(parents=True, exist_ok=True)

    async def work(nodes: Swarm, url: str) -> None:
        with tempfile.TemporaryDirectory(prefix="swarmd-browser-") as home:
            async with tab(Path(home)) as page:
                await take(nodes, url, page, folder)

    with swarm(*SPANS, options=("--threads", "1")) as nodes, api_server(nodes, 4) as (url, _):
        asyncio.run(work(nodes, url.removesuffix("/v1")))


if __name__ == "__main__":
    main()
