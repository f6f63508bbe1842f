"""Server-sent events over a response: data, comments in silence, and an end of all patience."""

from __future__ import annotations

import asyncio
import json
from typing import Any

from aiohttp import web

__all__ = ["EventStream"]


class EventStream:
    """Writes events (https://html.spec.whatwg.org/multipage/server-sent-events.html).

    Each write waits until the client has room, for at most `write_timeout` seconds: TimeoutError.
    """

    def __init__(self, request: web.Request, *, write_timeout: float) -> None:
        self._request = request
        self._write_timeout = write_timeout
        self.response = web.StreamResponse(
            headers={
                "Content-Type": "text/event-stream; charset=utf-8",
                "Cache-Control": "no-cache",
                "X-Accel-Buffering": "no",  # nginx would hold events back
            }
        )

    async def open(self) -> None:
        """Send status and headers."""
        await self.response.prepare(self._request)

    async def send(self, event: dict[str, Any]) -> None:
        await self._write(f"data: {json.dumps(event, ensure_ascii=False)}\n\n")

    async def keep_alive(self) -> None:
        """A comment, which clients skip."""
        await self._write(": keep-alive\n\n")

    async def aside(self, name: str, fact: dict[str, Any]) -> None:
        """A comment that a program may read, and that clients of OpenAI's API skip."""
        await self._write(f": {name} {json.dumps(fact)}\n\n")  # JSON has no line ends

    async def done(self) -> None:
        """OpenAI's mark of the end."""
        await self._write("data: [DONE]\n\n")
        async with asyncio.timeout(self._write_timeout):
            await self.response.write_eof()

    async def _write(self, text: str) -> None:
        async with asyncio.timeout(self._write_timeout):
            await self.response.write(text.encode())
