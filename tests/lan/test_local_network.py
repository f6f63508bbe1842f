"""Daemons and clients of one local network find one another; real mDNS in network namespaces."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.families import save_tiny
from tests.lan.namespaces import Machine, local_network, wait_for, why_not

_obstacle = why_not()
pytestmark = [
    pytest.mark.no_leak_check,
    pytest.mark.skipif(_obstacle is not None, reason=f"no network namespaces: {_obstacle}"),
]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny("llama", tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture
def network(tmp_path: Path) -> Iterator[list[Machine]]:
    with local_network(tmp_path, 3) as machines:
        yield machines


def spans(machine: Machine, *arguments: str) -> list[list[int]]:
    done = machine.run("peers", "--json", *arguments)
    assert done.returncode == 0, done.stderr
    (model,) = json.loads(done.stdout)["models"]
    return sorted(peer["blocks"] for peer in model["peers"])


def test_two_daemons_and_a_client_find_one_another(network: list[Machine], tiny: Path) -> None:
    first, second, client = network
    common = ("--model", str(tiny), "--threads", "1")
    one = first.serve(*common, "--host", first.address, "--blocks", "0:3")
    two = second.serve(*common, "--host", second.address, "--blocks", "3:6")
    wait_for(one, "serving blocks")
    wait_for(two, "serving blocks")
    assert "on the local network" in one.read_text() + two.read_text()
    # a client on a third machine, with nothing remembered and no option
    assert spans(client) == [[0, 3], [3, 6]]
    # and with LAN discovery off it knows nobody (its memory of the last time set aside)
    for file in client.state.glob("peers*.json"):
        file.unlink()
    lonely = client.run("peers", "--no-lan")
    assert lonely.returncode == 1
    assert "swarmd serve" in lonely.stderr
    # each asked the other to dial it
    wait_for(one, "others can dial this node: 10.77.0.1", 30)
    wait_for(two, "others can dial this node: 10.77.0.2", 30)


def test_who_is_told_not_to_look_is_not_found(network: list[Machine], tiny: Path) -> None:
    first, _, client = network
    hidden = first.serve(
        "--model", str(tiny), "--threads", "1", "--host", first.address, "--blocks", "0:6",
        "--no-lan",
    )  # fmt: skip
    wait_for(hidden, "serving blocks")
    assert client.run("peers").returncode == 1
    assert spans(client, "--peer", f"{first.address}:31330") == [[0, 6]]


def test_a_node_that_nobody_can_dial_is_told_and_relayed(
    network: list[Machine], tiny: Path
) -> None:
    """The second node says a port at which nothing listens, as behind a router that forwards
    nothing: the first finds that out for it, and relays it from then on."""
    first, second, client = network
    common = ("--model", str(tiny), "--threads", "1", "--blocks", "0:6")
    wait_for(first.serve(*common, "--host", first.address), "serving blocks")
    log = second.serve(
        *common, "--host", "0.0.0.0", "--port", "31330",
        "--advertise", f"{second.address}:41330", "--peer", f"{first.address}:31330",
    )  # fmt: skip
    wait_for(log, "others cannot dial this node: 1 of 1 peers that see it at 10.77.0.2", 60)
    assert "port 41330" in log.read_text()
    wait_for(log, "reached through relay", 60)

    def found() -> list[tuple[str, str]]:
        (model,) = json.loads(client.run("peers", "--json").stdout)["models"]
        return [(peer["address"], peer["state"]) for peer in model["peers"]]

    give_up = time.monotonic() + 30
    while found() != 2 * [("10.77.0.1:31330", "online")]:
        assert time.monotonic() < give_up, found()
        time.sleep(0.2)


def test_a_private_swarm_by_an_invite(network: list[Machine], tiny: Path) -> None:
    first, second, client = network
    key = first.state / "home.key"
    assert first.run("key", "new", str(key)).returncode == 0
    common = ("--model", str(tiny), "--threads", "1")
    private = ("--swarm-key", str(key))
    one = first.serve(*common, *private, "--host", first.address, "--blocks", "0:3")
    wait_for(one, "serving blocks")
    printed = first.run("invite")
    assert printed.returncode == 0, printed.stderr
    assert "lets in anybody" in printed.stderr
    invite = printed.stdout.strip()
    two = second.serve(*common, "--host", second.address, "--blocks", "3:6", "--invite", invite)
    wait_for(two, "serving blocks")
    assert spans(client, "--peer", invite) == [[0, 3], [3, 6]]
    # outsiders see neither by multicast nor by address
    for file in client.state.glob("peers*.json"):
        file.unlink()
    assert client.run("peers").returncode == 1
    assert client.run("peers", "--peer", f"{first.address}:31330").returncode == 1


def test_a_daemon_on_loopback_sends_no_multicast(network: list[Machine], tiny: Path) -> None:
    first, second, _ = network
    sniffer = subprocess.Popen(
        second.command(sys.executable, "-c", _SNIFF), stdout=subprocess.PIPE, text=True
    )
    assert sniffer.stdout is not None
    try:
        assert sniffer.stdout.readline() == "listening\n"
        log = first.serve("--model", str(tiny), "--threads", "1", "--blocks", "0:6")
        wait_for(log, "serving blocks")
        assert first.run("peers").returncode == 0  # its contacts are on loopback: no look around
        assert first.run("peers", "--peer", "127.0.0.1:9").returncode == 1
        # the sniffer works: a client that knows nobody asks, and is heard
        third = network[2]
        assert third.run("peers").returncode == 1
        heard = sniffer.stdout.readline().strip()
        assert heard == third.address
    finally:
        sniffer.kill()
        sniffer.wait()
        sniffer.stdout.close()


_SNIFF = """
import socket, struct
sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
sock.bind(("224.0.0.251", 5353))
group = socket.inet_aton("224.0.0.251") + socket.inet_aton("10.77.0.2")
sock.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, group)
print("listening", flush=True)
while True:
    print(sock.recvfrom(9000)[1][0], flush=True)
"""
