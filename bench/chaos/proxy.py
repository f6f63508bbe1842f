"""A TCP proxy in front of one daemon, through which its links can be harmed without its knowing."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable

from bench.nodes import free_port
from swarmd.tasks import TaskOwner

__all__ = ["Proxy"]

CHUNK = 64 * 1024
CONNECT_TIMEOUT = 3.0


class Proxy:
    """`async with Proxy(port) as proxy:` forwards `proxy.port` to `port`, both on loopback."""

    def __init__(self, target: int) -> None:
        self.target = target
        self.port = free_port()
        self.delay = 0.0
        """Seconds that each piece is late, in both directions."""
        self.broken = 0
        """Transfers that `break_next` broke, and pieces that `corrupt_next` flipped a bit of."""
        self._in, self._out = asyncio.Event(), asyncio.Event()
        self._in.set()
        self._out.set()
        self._corrupt = self._break = False
        self._writers: set[asyncio.StreamWriter] = set()
        self._owner = TaskOwner("proxy")

    async def __aenter__(self) -> Proxy:
        await self._owner.__aenter__()
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", self.port)
        return self

    async def __aexit__(self, *exc: object) -> None:
        self._server.close()
        self.cut()
        await self._owner.close()

    def silence(self, *, to_node: bool = False, from_node: bool = False) -> None:
        """Hold back what comes from now on in these directions; without any, let it go on."""
        for event, silent in ((self._in, to_node), (self._out, from_node)):
            event.clear() if silent else event.set()

    def cut(self) -> None:
        """Reset all connections."""
        for writer in tuple(self._writers):
            writer.transport.abort()

    def corrupt_next(self) -> None:
        """Flip one bit of the next piece from the node."""
        self._corrupt = True

    def break_next(self) -> None:
        """Lose the next piece for the node, and reset its connections."""
        self._break = True

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.add(writer)
        self._owner.spawn(self._forward(reader, writer), name="forward", errors="log")

    async def _forward(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT):
                back, node = await asyncio.open_connection("127.0.0.1", self.target)
        except OSError:  # a TimeoutError is one too
            writer.transport.abort()
            self._writers.discard(writer)
            return
        self._writers.add(node)
        try:
            await asyncio.gather(
                self._pump(reader, node, self._in, self._to_node),
                self._pump(back, writer, self._out, self._from_node),
            )
        finally:
            for end in (writer, node):
                end.transport.abort()
                self._writers.discard(end)

    async def _pump(
        self,
        source: asyncio.StreamReader,
        target: asyncio.StreamWriter,
        open_: asyncio.Event,
        change: Callable[[bytes], bytes],
    ) -> None:
        with contextlib.suppress(OSError):
            while data := await source.read(CHUNK):
                if self.delay:
                    await asyncio.sleep(self.delay)
                await open_.wait()
                target.write(change(data))
                await target.drain()
            target.write_eof()
            return
        target.transport.abort()

    def _to_node(self, data: bytes) -> bytes:
        if not self._break:
            return data
        self._break = False
        self.broken += 1
        self.cut()
        return b""

    def _from_node(self, data: bytes) -> bytes:
        if not self._corrupt:
            return data
        self._corrupt = False
        self.broken += 1
        middle = len(data) // 2
        return data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]
