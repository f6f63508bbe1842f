"""Discovery, gateway and mapper against a fake router; all on loopback."""

from __future__ import annotations

import asyncio
import random
import socket
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from ipaddress import IPv4Interface
from typing import Any

import pytest

from swarmd.errors import GatewayError, GatewayRefused
from swarmd.peers import Address
from swarmd.tasks import TaskOwner
from swarmd.upnp import gateway as gateway_module
from swarmd.upnp.discovery import Responder, discover, local_interfaces, location_of
from swarmd.upnp.gateway import MAX_BODY, MAX_REQUESTS, Gateway
from swarmd.upnp.mapping import Protocol
from swarmd.upnp.port_mapper import PortMapper
from tests.conftest import Runner
from tests.node.hostile_client import until
from tests.upnp.fake_router import FakeRouter

HOME = IPv4Interface("127.0.0.1/8")
TCP, UDP = Protocol.TCP, Protocol.UDP
LOCATION = "http://192.168.1.1:5000/d.xml"


@asynccontextmanager
async def mapper(
    router: FakeRouter, check: Callable[[Address], bool] = lambda _: True
) -> AsyncIterator[tuple[PortMapper, list[Address | None]]]:
    """A mapper at work, and what it told; dropped at the end."""
    told: list[Address | None] = []

    async def checked(address: Address) -> bool:
        return check(address)

    async def change(address: Address | None) -> None:
        told.append(address)

    one = PortMapper(
        31330, [HOME], checked, change,
        rng=random.Random(1), ssdp=(router.host, router.ssdp_port),
    )  # fmt: skip
    async with TaskOwner("test") as owner:
        task = owner.spawn(one.run(), name="mapper")
        yield one, told
        task.cancel()
        await asyncio.wait([task])
        await one.drop()


def test_a_router_maps_and_takes_it_back(run_either: Runner) -> None:
    async def main() -> None:
        async with FakeRouter().running() as router:
            async with mapper(router) as (_, told):
                await until(lambda: told == [Address("1.2.3.4", 31330)])
                inside = ("127.0.0.1", 31330, 3600)
                assert router.mapped == {("TCP", 31330): inside, ("UDP", 31330): inside}
            assert router.mapped == {}

    run_either(main())


@pytest.mark.parametrize("version", [1, 2])
def test_a_taken_port(version: int, run_async: Runner) -> None:
    async def main() -> None:
        taken = {("TCP", 31330)}
        async with FakeRouter(version=version, taken=taken).running() as router:
            async with mapper(router) as (_, told):
                await until(lambda: len(told) == 1)
                assert told[0] is not None
                port = told[0].port
                assert port != 31330
                assert set(router.mapped) == {("TCP", port), ("UDP", port)}
                assert ("AddAnyPortMapping" in router.calls) is (version == 2)
            assert router.mapped == {}

    run_async(main())


def test_version_2_chooses_a_port(run_async: Runner) -> None:
    async def main() -> None:
        async with FakeRouter(version=2).running() as router:
            (responder,) = await discover([HOME], ssdp=(router.host, router.ssdp_port))
            gate = await Gateway.open(responder)
            router.taken = {("TCP", 40000)}
            assert await gate.add(TCP, 40000, 31330, 60, any=True) == 45678
            with pytest.raises(GatewayRefused) as refused:
                await gate.add(TCP, 40000, 31330, 60)
            assert refused.value.code == 718
            assert "\x1b" not in str(refused.value)

    run_async(main())


def test_permanent_leases(run_async: Runner, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", logger="swarmd")

    async def main() -> None:
        async with FakeRouter(permanent_only=True).running() as router:
            async with mapper(router) as (_, told):
                await until(lambda: len(told) == 1)
                assert router.mapped[("UDP", 31330)] == ("127.0.0.1", 31330, 0)
            assert router.mapped == {}

    run_async(main())
    assert "knows no leases" in caplog.text


@pytest.mark.parametrize("outside", ["100.64.1.2", "192.168.0.2", "10.1.1.1"])
def test_an_outside_address_that_is_none(
    outside: str, run_async: Runner, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", logger="swarmd")

    async def main() -> None:
        async with FakeRouter(outside=outside).running() as router:
            async with mapper(router) as (_, told):
                await until(lambda: told == [None])
            assert "AddPortMapping" not in router.calls

    run_async(main())
    (line,) = caplog.messages
    assert outside in line
    assert "carrier's NAT" in line


def test_what_nobody_can_dial_is_taken_back(run_async: Runner) -> None:
    async def main() -> None:
        async with FakeRouter().running() as router:
            async with mapper(router, lambda _: False) as (_, told):
                await until(lambda: told == [None])
                assert router.mapped == {}
                assert router.calls.count("DeletePortMapping") == 2

    run_async(main())


def test_a_router_that_forgot_maps_again(run_async: Runner) -> None:
    """As after its restart: with another outside address, even."""

    async def main() -> None:
        async with FakeRouter().running() as router:
            async with mapper(router) as (one, told):
                await until(lambda: len(told) == 1)
                router.mapped.clear()
                router.outside = "1.2.3.5"
                one.shaken()
                await until(lambda: told[1:] == [Address("1.2.3.5", 31330)])
                assert len(router.mapped) == 2

    run_async(main())


def test_no_router_is_quick_and_silent(
    run_either: Runner, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", logger="swarmd")

    async def main() -> None:
        silent = FakeRouter()
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.bind(("127.0.0.1", 0))
            silent.ssdp_port = sock.getsockname()[1]
            began = time.monotonic()
            async with mapper(silent) as (_, told):
                await until(lambda: told == [None])
            assert time.monotonic() - began < 5
            assert sock.recv(999).startswith(b"M-SEARCH * HTTP/1.1")

    run_either(main())
    assert caplog.messages == []


BOMB = (
    '<?xml version="1.0"?><!DOCTYPE x [<!ENTITY a "aaaaaaaaaa">'
    + "".join(
        f'<!ENTITY {b} "{f"&{a};" * 10}">' for a, b in zip("abcdefgh", "bcdefghi", strict=True)
    )
    + "]><x>&i;</x>"
)
DEEP = (
    '<root xmlns="urn:schemas-upnp-org:device-1-0">' + "<device><deviceList>" * 4000
    + "</deviceList></device>" * 4000 + "</root>"
)  # fmt: skip


@pytest.mark.parametrize(
    ("faults", "says"),
    [
        ({"raw_description": "no XML"}, "of no use"),
        ({"raw_description": ""}, "of no use"),
        ({"raw_description": BOMB}, "of no use"),
        ({"raw_description": DEEP}, "of no use"),
        ({"services": 0}, "maps no ports"),
        ({"services": MAX_REQUESTS + 1}, "without end"),
        ({"description_bytes": MAX_BODY}, "too much"),
        ({"slow": 60.0}, "in time"),
        ({"redirect": "http://127.0.0.2:9/"}, "of no use"),
        ({"control_url": "http://127.0.0.2:9/x"}, "maps no ports"),
        ({"outside": "&#10;1.2.3.4"}, "outside address"),
        ({"outside": "1.2.3.4.example.org"}, "outside address"),
    ],
)
def test_a_router_of_no_use(
    faults: dict[str, Any], says: str, run_async: Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gateway_module, "REQUEST_SECONDS", 0.5)

    async def main() -> None:
        async with FakeRouter(**faults).running() as router:
            location = f"http://127.0.0.1:{router.http_port}/device.xml"
            with pytest.raises(GatewayError, match=says):
                await Gateway.open(Responder(location, "127.0.0.1", "127.0.0.1"))
            assert len(router.fetched) <= MAX_REQUESTS

    run_async(main())


@pytest.mark.parametrize(
    "faults", [{"location_host": "127.0.0.2"}, {"location_scheme": "file"}, {"garbled_ssdp": True}]
)
def test_who_names_another_host_is_not_asked(faults: dict[str, Any], run_async: Runner) -> None:
    async def main() -> None:
        async with FakeRouter(**faults).running() as router:
            assert await discover([HOME], ssdp=(router.host, router.ssdp_port)) == []
            assert router.fetched == []

    run_async(main())


@pytest.mark.parametrize(
    ("url", "responder", "fine"),
    [
        (LOCATION, "192.168.1.1", True),
        (LOCATION, "192.168.1.2", False),  # another host of the subnet
        (LOCATION, "192.168.2.1", False),
        ("http://192.168.2.1/", "192.168.2.1", False),  # another subnet
        ("http://192.168.1.1@8.8.8.8/", "192.168.1.1", False),
        ("http://8.8.8.8@192.168.1.1/", "192.168.1.1", False),
        ("http://192.168.1.1.example.org/", "192.168.1.1", False),
        ("https://192.168.1.1/", "192.168.1.1", False),
        ("http://192.168.1.1:99999/", "192.168.1.1", False),
        ("http://192.168.1.1:0/", "192.168.1.1", False),
        ("http://[::1]/", "::1", False),
        ("http://192.168.1.1/" + "x" * 600, "192.168.1.1", False),
        ("", "192.168.1.1", False),
        (None, "192.168.1.1", False),
    ],
)
def test_which_descriptions_are_fetched(url: str | None, responder: str, fine: bool) -> None:
    home = IPv4Interface("192.168.1.7/24")
    assert location_of(url, responder, home) == (url if fine else None)


def test_interfaces_are_those_asked_for() -> None:
    assert local_interfaces(["127.0.0.1"]) == [HOME]
    assert local_interfaces(["192.0.2.77"]) == []
