"""Links that are half made: who is slow or silent keeps nobody out."""

from __future__ import annotations

import asyncio
import contextlib
import socket

import pytest

from swarmd.wire import connection as connection_module
from swarmd.wire import transport as transport_module
from tests.conftest import Runner
from tests.wire.ends import Greeter
from tests.wire.strangers import PRIVATE, first_words, reached
from tests.wire.talk import until


def test_who_is_slow_to_shake_hands_is_cut(
    run_either: Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection_module, "HANDSHAKE_SECONDS", 0.3)

    async def work() -> None:
        loop = asyncio.get_running_loop()
        async with Greeter(PRIVATE) as greeter:
            words = first_words(PRIVATE, greeter.peer_id)
            for at_once in (0, 55, 56, 100):  # silent, or a byte at a time in either stage
                began = loop.time()
                with socket.socket() as raw:
                    raw.setblocking(False)
                    await loop.sock_connect(raw, (greeter.address.host, greeter.address.port))
                    await loop.sock_sendall(raw, words[:at_once])
                    with contextlib.suppress(OSError):
                        for byte in words[at_once : at_once + 200] if at_once else b"":
                            await loop.sock_sendall(raw, bytes([byte]))
                            await asyncio.sleep(0.05)
                    with contextlib.suppress(OSError):
                        async with asyncio.timeout(20):
                            assert await loop.sock_recv(raw, 1) == b""
                assert loop.time() - began < 5.0
                words = first_words(PRIVATE, greeter.peer_id)
            await until(lambda: greeter.listener.handshakes == 0)
            assert greeter.connections == []

    run_either(work())


def test_silent_strangers_lock_nobody_out(
    run_either: Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transport_module, "MAX_HANDSHAKES", 3)

    async def work() -> None:
        async with Greeter(PRIVATE) as greeter:
            with contextlib.ExitStack() as stack:
                silent = []
                for number in range(8):
                    silent.append(stack.enter_context(socket.create_connection(
                        (greeter.address.host, greeter.address.port))))  # fmt: skip
                    await until(lambda n=number: greeter.listener.handshakes == min(n + 1, 3))
                for raw in silent[:5]:
                    raw.settimeout(20)
                    with contextlib.suppress(ConnectionResetError):
                        assert await asyncio.to_thread(raw.recv, 1) == b""
                await reached(greeter, PRIVATE)
                assert greeter.listener.handshakes <= 3

    run_either(work())


def test_closing_a_listener_ends_what_is_half_made(run_either: Runner) -> None:
    async def work() -> None:
        async with Greeter(PRIVATE) as greeter:
            address = (greeter.address.host, greeter.address.port)
            with socket.create_connection(address, timeout=20) as raw:
                await until(lambda: greeter.listener.handshakes == 1)
                greeter.listener.close()
                await until(lambda: greeter.listener.handshakes == 0)
                with contextlib.suppress(ConnectionResetError):
                    assert raw.recv(1) == b""

    run_either(work())
