"""The asyncio shell of the protocol: one TCP connection that sends and receives messages."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import socket
from collections import deque
from collections.abc import Callable
from typing import cast

from swarmd.errors import BadOutput, ConnectionLost, RemoteError, SwarmdError
from swarmd.identity import PeerId
from swarmd.peers import Address
from swarmd.wire.frames import DEFAULT_LIMITS, Frame, FrameDecoder, Limits, encode_preamble
from swarmd.wire.messages import ErrorMessage, Message
from swarmd.wire.protocol import Protocol, Role, State
from swarmd.wire.secure_link import Detour, LinkBroken, SecureLink
from swarmd.wire.tensors import Buffer

__all__ = ["Connection", "Received"]

Received = tuple[Message, bytearray]

MAX_FRAMES_WAITING = 16
"""Frames that nobody has taken yet; beyond them reading stops, and TCP slows the sender. It stops
as well when their payloads are together longer than one payload may be, so that no more than two
of the largest are held."""


HANDSHAKE_SECONDS = 5.0
"""From the first byte to the open link; a dialler gives up after as long."""


class Connection(asyncio.BufferedProtocol):
    """One end of a connection. With a `link` what travels is encrypted; without one, which exists
    on loopback only, it is not. `on_made` is called when messages may travel, `on_lost` at the end,
    `on_detour` when the peer's knock was for a node that is relayed here: the transport is then the
    callee's. `preface` is sent before all else.

    `send` hands the whole frame to the transport before it can be cancelled, so a cancel never
    leaves half a frame; it then waits while the transport's buffer is full. `receive` returns
    messages in order. Both raise ConnectionLost when the stream has ended.
    """

    def __init__(
        self,
        role: Role,
        *,
        limits: Limits = DEFAULT_LIMITS,
        link: SecureLink | None = None,
        on_made: Callable[[Connection], None] | None = None,
        on_lost: Callable[[Connection], None] | None = None,
        on_detour: Callable[[asyncio.Transport, Detour], None] | None = None,
        preface: bytes = b"",
    ) -> None:
        self.protocol = Protocol(role, limits)
        self.address = Address("?", 0)
        self.peer_id: PeerId | None = None
        """Who is at the other end, once it has proven that."""
        self.link = link
        # Whoever has not said hello may not make us hold a payload.
        stranger = dataclasses.replace(limits, payload=0)
        self._decoder = FrameDecoder(limits if role is Role.DIALLER else stranger)
        self._on_made = on_made
        self._on_lost = on_lost
        self._on_detour = on_detour
        self._preface = preface
        self._aborted = False
        self._timer: asyncio.TimerHandle | None = None
        self._made = asyncio.get_running_loop().create_future()
        self._transport: asyncio.Transport | None = None
        self._frames: deque[Frame] = deque()
        self._waiting_bytes = 0
        self._failure: SwarmdError | None = None
        self._reader: asyncio.Future[None] | None = None
        self._writers: deque[asyncio.Future[None]] = deque()
        self._paused_writing = False
        self._paused_reading = False
        self._closed = asyncio.get_running_loop().create_future()

    # ---- what users call -------------------------------------------------------------------

    @property
    def is_usable(self) -> bool:
        """Open, and nothing unread or wrong is waiting."""
        return self.is_open and not self._frames and not self._decoder.mid_frame

    @property
    def is_open(self) -> bool:
        """Messages may still be sent; unread ones may wait."""
        return (
            self._failure is None
            and self._transport is not None
            and not self._transport.is_closing()
        )

    @property
    def state(self) -> State:
        return self.protocol.state

    @property
    def waiting_bytes(self) -> int:
        """Bytes of the payloads that have arrived whole and that nobody has taken."""
        return self._waiting_bytes

    async def wait_made(self) -> None:
        """Until messages may travel. Raises ConnectionLost, or BadOutput for a stranger."""
        await asyncio.shield(self._made)
        if self.link is not None and not self.link.is_open and self._failure is not None:
            raise self._failure

    def post(self, message: Message, payload: Buffer = b"") -> None:
        """Hand one message to the transport, however much waits there: for who bounds that
        otherwise. Raises ConnectionLost."""
        transport = self._transport
        if transport is None or transport.is_closing():
            raise ConnectionLost(f"{self.address}: the connection is closed")
        header = self.protocol.send(message)
        preamble = encode_preamble(header, len(payload))
        if self.link is not None:
            try:
                transport.writelines(self.link.seal(preamble, payload))
            except LinkBroken as error:
                raise ConnectionLost(f"{self.address}: connection lost: {error}") from error
        elif payload:
            transport.writelines((preamble, payload))
        else:
            transport.write(preamble)

    async def send(self, message: Message, payload: Buffer = b"") -> None:
        """Send one message; waits while the peer reads too slowly. Raises ConnectionLost."""
        self.post(message, payload)
        if self._paused_writing:
            waiter = asyncio.get_running_loop().create_future()
            self._writers.append(waiter)
            try:
                await waiter
            finally:
                with contextlib.suppress(ValueError):
                    self._writers.remove(waiter)

    async def receive(self) -> Received:
        """The next message and its payload.

        Raises ConnectionLost at the end of the stream; the RemoteError of a frame that breaks
        the protocol (to be sent back by `refuse`); never the error of a previous session.
        """
        while not self._frames:
            if self._failure is not None:
                raise self._failure
            assert self._reader is None, "two readers on one connection"
            self._reader = asyncio.get_running_loop().create_future()
            try:
                await self._reader
            finally:
                self._reader = None
        frame = self._frames.popleft()
        self._waiting_bytes -= len(frame.payload)
        if self._paused_reading and not self._has_enough(MAX_FRAMES_WAITING // 2):
            self._paused_reading = False
            assert self._transport is not None
            self._transport.resume_reading()
        message = self.protocol.receive(frame)
        self._decoder.limits = self.protocol.limits
        return message, frame.payload

    async def refuse(self, error: RemoteError, *, step: int | None = None) -> bool:
        """Tell the peer why; ends the connection if it broke the protocol.

        Returns whether the connection goes on.
        """
        if self.state is State.ENDED:  # the peer said goodbye first
            await self.close()
            return False
        asking = (State.OPENING, State.FEEDING, State.RESERVING, State.DIALLING)
        fatal = step is None and self.state not in asking
        with contextlib.suppress(ConnectionLost):
            await self.send(ErrorMessage.of(error, step=step, fatal=fatal))
        if fatal:
            await self.close()
        return not fatal

    async def close(self, timeout: float = 2.0) -> None:
        """Flush, close and wait until closed; abort after `timeout` seconds. Idempotent."""
        if self._transport is None:
            return
        self._transport.close()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout):
                await asyncio.shield(self._closed)
        self.abort()

    def abort(self) -> None:
        """Drop the connection now, unsent bytes included. Idempotent."""
        self._aborted = True  # perhaps before the transport is known
        if self._transport is not None and not self._closed.done():
            self._transport.abort()  # asyncio's raises on a transport that flushed and closed

    # ---- what the transport calls ----------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is no subclass of it
        if self._aborted:
            self._transport.abort()
            return
        name = transport.get_extra_info("peername")
        if name:
            self.address = Address(str(name[0]), int(name[1]))
        raw = transport.get_extra_info("socket")
        if raw is not None:
            raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        if self._preface:
            self._transport.write(self._preface)
        if self.link is None:
            self._now_made()
            return
        loop = asyncio.get_running_loop()
        self._timer = loop.call_later(HANDSHAKE_SECONDS, self._handshake_is_late)
        self._flush(self.link)

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._decoder.get_buffer() if self.link is None else self.link.get_buffer()

    def buffer_updated(self, nbytes: int) -> None:
        if self._failure is not None:
            return
        try:
            if self.link is None:
                self._decoder.received(nbytes)
            else:
                self._unseal(self.link, nbytes)
        except RemoteError as error:
            self._failure = error
            if self._transport is not None:
                self._transport.pause_reading()
        except LinkBroken as error:
            self._link_broke(error)
        except Detour as detour:
            self._take(detour)
            return
        while (frame := self._decoder.next_frame()) is not None:
            self._frames.append(frame)
            self._waiting_bytes += len(frame.payload)
        if not self._paused_reading and self._has_enough(MAX_FRAMES_WAITING):
            assert self._transport is not None
            self._paused_reading = True
            self._transport.pause_reading()
        self._wake_reader()

    def _unseal(self, link: SecureLink, nbytes: int) -> None:
        """From bytes of the network to frames. Raises LinkBroken, and what the decoder raises."""
        link.received(nbytes)
        self._flush(link)
        if not link.is_open:
            return
        if not self._made.done():
            self.peer_id = link.peer_id
            self._now_made()
        while (count := link.read_into(self._decoder.get_buffer())) > 0:
            self._decoder.received(count)
        self._flush(link)

    def _flush(self, link: SecureLink) -> None:
        """Send what TLS itself has to say."""
        assert self._transport is not None
        if (data := link.outgoing()) and not self._transport.is_closing():
            if self._paused_writing:  # only new keys, again and again, by who does not read
                raise LinkBroken("TLS: keys are changed faster than answers are read")
            self._transport.write(data)

    def _link_broke(self, error: LinkBroken) -> None:
        """End the link. Who did not knock gets no byte; who did may get a TLS alert."""
        assert self.link is not None
        assert self._transport is not None
        reason = f"{self.address}: {error}"
        if self._made.done() or self.protocol.role is Role.LISTENER:
            self._failure = ConnectionLost(reason)
        else:
            self._failure = BadOutput(f"{self.address}: does not speak swarmd: {error}")
        if (data := self.link.outgoing()) and not self._paused_writing:
            self._transport.write(data)
            self._transport.close()
        else:
            self._transport.abort()

    def _take(self, detour: Detour) -> None:
        """Give the transport to whoever passes it on; this object is done."""
        assert self._transport is not None
        assert self._on_detour is not None
        transport, self._transport = self._transport, None
        self.connection_lost(None)
        transport.pause_reading()
        self._on_detour(transport, detour)

    def _now_made(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        if not self._made.done():
            self._made.set_result(None)
        if self._on_made is not None:
            self._on_made(self)

    def _handshake_is_late(self) -> None:
        self._failure = ConnectionLost(f"{self.address}: no handshake in {HANDSHAKE_SECONDS:g} s")
        self.abort()

    def eof_received(self) -> bool:
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        if self._failure is None:
            where = "in the middle of a frame" if self._decoder.mid_frame else "by the other side"
            reason = f"{exc}" if exc else f"closed {where}"
            if self.link is not None and not self.link.heard:
                reason += (
                    ", without an answer: it is of another swarm, is another peer than was meant, "
                    "does not serve now, or its clock differs by more than a minute"
                )
            self._failure = ConnectionLost(f"{self.address}: connection lost: {reason}")
        if self._timer is not None:
            self._timer.cancel()
        for ended in (self._made, self._closed):
            if not ended.done():
                ended.set_result(None)
        self._wake_reader()
        if self._on_lost is not None:
            self._on_lost(self)
        for waiter in self._writers:
            if not waiter.done():
                waiter.set_exception(ConnectionLost(f"{self.address}: connection lost"))

    def pause_writing(self) -> None:
        self._paused_writing = True

    def resume_writing(self) -> None:
        self._paused_writing = False
        while self._writers:
            waiter = self._writers.popleft()
            if not waiter.done():
                waiter.set_result(None)

    def _has_enough(self, max_frames: int) -> bool:
        """Whether so many frames, or so many bytes, wait that no more should be read."""
        most = self.protocol.limits.payload
        return len(self._frames) >= max_frames or self._waiting_bytes > most

    def _wake_reader(self) -> None:
        if self._reader is not None and not self._reader.done():
            self._reader.set_result(None)
