"""Real daemons, one behind a router with NAT, in network namespaces: nothing leaves them."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.families import save_tiny
from tests.lan.namespaces import Machine, ip, wait_for, why_not

_obstacle = why_not() or (None if os.path.exists("/dev/net/tun") else "no /dev/net/tun")
pytestmark = [
    pytest.mark.no_leak_check,
    pytest.mark.skipif(_obstacle is not None, reason=f"no network namespaces: {_obstacle}"),
]
OUTSIDE = "1.2.3.4"
_names = itertools.count()


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny("llama", tmp_path_factory.mktemp("model") / "tiny")


@contextlib.contextmanager
def behind_a_router(folder: Path, **faults: object) -> Iterator[tuple[Machine, Machine, Path]]:
    """A machine at home (10.77.0.2), one outside (1.2.3.9), and the log of the router between."""
    stem = f"swu{os.getpid()}x{next(_names)}"
    home, router, outside = (f"{stem}{one}" for one in ("h", "r", "o"))
    made: list[str] = []
    machines = []
    log = folder / "router.log"
    running: subprocess.Popen[bytes] | None = None
    try:
        for name in (home, router, outside):
            ip("netns", "add", name)
            made.append(name)
            ip("-n", name, "link", "set", "lo", "up")
        for name, far, here, there in (
            (home, "lan", "10.77.0.2/24", "10.77.0.1/24"),
            (outside, "wan", "1.2.3.9/24", "1.2.3.1/24"),
        ):
            ip("-n", name, "link", "add", "net", "type", "veth", "peer", "name", far)
            ip("-n", name, "link", "set", far, "netns", router)
            ip("-n", name, "address", "add", here, "dev", "net")
            ip("-n", name, "link", "set", "net", "up")
            ip("-n", router, "address", "add", there, "dev", far)
            ip("-n", router, "link", "set", far, "up")
        ip("-n", home, "route", "add", "default", "via", "10.77.0.1")
        ip("-n", outside, "route", "add", f"{OUTSIDE}/32", "via", "1.2.3.1")
        ip("-n", router, "tuntap", "add", "tun0", "mode", "tun")
        ip("-n", router, "link", "set", "tun0", "up")
        ip("-n", router, "route", "add", f"{OUTSIDE}/32", "dev", "tun0")
        ip("-n", router, "route", "add", "default", "dev", "tun0", "table", "100")
        ip("-n", router, "rule", "add", "iif", "lan", "lookup", "100")
        unfiltered = [f"conf/{device}/rp_filter" for device in ("all", "tun0", "lan", "wan")]
        for name, value in [("ip_forward", 1), *((name, 0) for name in unfiltered)]:
            script = f"echo {value} > /proc/sys/net/ipv4/{name}"
            subprocess.run(["ip", "netns", "exec", router, "sh", "-c", script], check=True)
        for name, address in ((home, "10.77.0.2"), (outside, "1.2.3.9")):
            state = folder / name
            state.mkdir()
            machines.append(Machine(name, address, state))
        with log.open("wb") as file:
            running = subprocess.Popen(
                ["ip", "netns", "exec", router, sys.executable, "-m", "tests.upnp.nat_router",
                 "10.77.0.1", OUTSIDE, json.dumps(faults)],
                stdout=file,
                stderr=subprocess.STDOUT,
            )  # fmt: skip
        wait_for(log, "ready", 20)
        yield machines[0], machines[1], log
    finally:
        for machine in machines:
            machine.stop()
        if running is not None:
            running.kill()
            running.wait()
        for name in made:
            subprocess.run(["ip", "netns", "del", name], capture_output=True, check=False)


def addresses(machine: Machine) -> dict[str, tuple[str, str]]:
    """Address and state by blocks, as one sees it at this machine."""
    (model,) = json.loads(machine.run("peers", "--json", "--no-lan").stdout)["models"]
    return {"{}:{}".format(*p["blocks"]): (p["address"], p["state"]) for p in model["peers"]}


def until_at(machine: Machine, blocks: str, address: str) -> None:
    give_up = time.monotonic() + 40
    while (found := addresses(machine)).get(blocks) != (address, "online"):
        assert time.monotonic() < give_up, found
        time.sleep(0.3)


def start(home: Machine, outside: Machine, tiny: Path, *options: str) -> Path:
    common = ("--model", str(tiny), "--threads", "1")
    first = outside.serve(*common, "--host", outside.address, "--blocks", "0:3", "--no-upnp")
    wait_for(first, "serving blocks")
    return home.serve(
        *common, "--host", home.address, "--blocks", "3:6",
        "--peer", f"{outside.address}:31330", *options,
    )  # fmt: skip


def test_a_daemon_is_reached_through_its_router(tmp_path: Path, tiny: Path) -> None:
    taken = [["TCP", 31330]]
    with behind_a_router(tmp_path, taken=taken) as (home, outside, router):
        log = start(home, outside, tiny)
        text = wait_for(log, "the router forwards 1.2.3.4:", 60)
        mapped = json.loads(router.read_text().splitlines()[-1])
        ports = {port for _, port, *_ in mapped}
        assert {protocol for protocol, *_ in mapped} == {"TCP", "UDP"}
        assert len(ports) == 1
        port = ports.pop()
        assert port != 31330
        assert all(rest == ["10.77.0.2", 31330, 3600] for _, _, *rest in mapped)
        assert f"1.2.3.4:{port}" in text
        until_at(outside, "3:6", f"1.2.3.4:{port}")
        # a node outside joins through the mapped UDP port, which nobody had asked from
        for file in outside.state.glob("peers*.json"):
            file.unlink()
        found = outside.run("peers", "--json", "--no-lan", "--peer", f"1.2.3.4:{port}")
        assert found.returncode == 0, found.stderr
        assert "relay" not in log.read_text().split("the router forwards")[1]
        home.stop()
        assert json.loads(router.read_text().splitlines()[-1]) == []


def test_behind_a_carriers_nat_a_relay_is_sought(tmp_path: Path, tiny: Path) -> None:
    with behind_a_router(tmp_path, outside="100.64.7.7") as (home, outside, router):
        log = start(home, outside, tiny)
        text = wait_for(log, "reached through relay", 60)
        assert "the router's own address 100.64.7.7 is not one of the internet" in text
        until_at(outside, "3:6", "1.2.3.9:31330")
        assert "TCP" not in router.read_text()
