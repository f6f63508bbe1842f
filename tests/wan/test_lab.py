"""The lab itself: packets between namespaces take as long as was asked for, and nothing is left."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Iterator

import pytest

from bench.wan import Lab, Link, why_not

REASON = why_not()
pytestmark = [
    pytest.mark.skipif(REASON is not None, reason=f"no namespaces here: {REASON}"),
    pytest.mark.no_leak_check,
]

SERVER = """
import socket, sys
server = socket.create_server((sys.argv[1], 900))
print("listening", flush=True)
one = server.accept()[0]
while data := one.recv(65536):
    if len(data) < 100:
        one.sendall(data)
one.sendall(b"all")
"""
CLIENT = """
import socket, sys, time
one = socket.create_connection((sys.argv[1], 900))
one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
trips = []
for _ in range(9):
    began = time.monotonic()
    one.sendall(b"x")
    one.recv(10)
    trips.append(time.monotonic() - began)
one.sendall(bytes(1 << 20))
began = time.monotonic()
one.sendall(bytes(int(sys.argv[2])))
one.shutdown(socket.SHUT_WR)
while one.recv(65536)[-3:] != b"all":
    pass
print(sorted(trips)[4], time.monotonic() - began)
"""
COUNT = """
import socket, sys
one = socket.socket(type=socket.SOCK_DGRAM)
one.bind((sys.argv[1], 902))
one.settimeout(10)
print("listening", flush=True)
count = 0
while one.recv(100) != b"end":
    count += 1
print(count)
"""
SEND = """
import socket, sys, time
one = socket.socket(type=socket.SOCK_DGRAM)
for _ in range(500):
    one.sendto(b"x", (sys.argv[1], 902))
    time.sleep(0.0005)
time.sleep(0.1)
for _ in range(100):
    one.sendto(b"end", (sys.argv[1], 902))
"""
KNOCK = """
import socket, sys
try:
    socket.create_connection((sys.argv[1], 901), timeout=0.5)
except ConnectionRefusedError:
    print("yes")
except TimeoutError:
    print("no")
"""


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with Lab.of(2) as lab:
        yield lab


def measured(lab: Lab, size: int) -> tuple[float, float]:
    """The median round trip, and the seconds that `size` bytes take."""
    python = ["python3", "-c"]
    server = subprocess.Popen(
        lab[2].command(*python, SERVER, lab[2].address), stdout=subprocess.PIPE, text=True
    )
    try:
        assert server.stdout is not None
        assert server.stdout.readline() == "listening\n"
        done = lab[1].run(CLIENT, lab[2].address, str(size), program=python, limit=60)
        assert done.returncode == 0, done.stderr
    finally:
        server.kill()
        server.communicate()
    trip, seconds = map(float, done.stdout.split())
    return trip, seconds


def test_a_round_trip_takes_both_delays(lab: Lab) -> None:
    lab.set(Link(delay=0.03))
    lab.set(Link(delay=0.07), 2, 1)
    trip, _ = measured(lab, 1)
    assert 0.0995 <= trip < 0.13
    lab.both(Link(delay=0.01), 1, 2)
    trip, _ = measured(lab, 1)
    assert 0.0195 <= trip < 0.05


def test_bytes_take_as_long_as_the_rate_says(lab: Lab) -> None:
    lab.both(Link(delay=0.002, rate=40e6), 1, 2)
    _, seconds = measured(lab, 4 << 20)
    assert seconds > 8 * (4 << 20) / 40e6 * 0.9
    assert seconds < 3.0


def test_a_line_that_loses_packets_still_brings_all_bytes(lab: Lab) -> None:
    lab.both(Link(delay=0.001, loss=0.02), 1, 2)
    measured(lab, 1 << 20)


def test_so_many_datagrams_are_lost_as_was_asked_for(lab: Lab) -> None:
    lab.set(Link(loss=0.3), 1, 2)
    server = subprocess.Popen(
        lab[2].command("python3", "-c", COUNT, lab[2].address), stdout=subprocess.PIPE, text=True
    )
    try:
        assert server.stdout is not None
        assert server.stdout.readline() == "listening\n"
        done = lab[1].run(SEND, lab[2].address, program=["python3", "-c"], limit=30)
        assert done.returncode == 0, done.stderr
        arrived = int(server.communicate(timeout=15)[0])
    finally:
        server.kill()
        server.communicate()
    assert 0.5 < arrived / 500 < 0.9  # nine standard deviations to each side


def test_nothing_is_left(lab: Lab) -> None:
    with Lab.of(2) as other:
        names = [site.namespace for site in other.sites]
        folders = [site.state for site in other.sites]
        process = other[1].start("version")
        listed = subprocess.run(["ip", "netns"], capture_output=True, text=True, check=True).stdout
        assert all(name in listed for name in names)
    listed = subprocess.run(["ip", "netns"], capture_output=True, text=True, check=True).stdout
    assert not any(name in listed for name in names)
    assert process.poll() is not None
    assert not any(folder.exists() for folder in folders)
    assert lab[1].state.exists()


def routers() -> set[str]:
    """The router processes that run for labs of this process, by pid."""
    listed = subprocess.run(
        ["ps", "-o", "pid=,args=", "--ppid", str(os.getpid())],
        capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    return {line.split()[0] for line in listed.splitlines() if "bench.wan.router" in line}


def test_nothing_is_left_when_the_body_fails_with_a_stopped_daemon() -> None:
    before = routers()
    began = 0.0
    with pytest.raises(RuntimeError, match="the body failed"), Lab.of(2) as lab:
        assert len(routers() - before) == 1
        names = [site.namespace for site in lab.sites]
        process = lab[2].start("version")
        process.send_signal(signal.SIGSTOP)
        began = time.monotonic()
        raise RuntimeError("the body failed")
    assert time.monotonic() - began < 10  # a stopped process is woken, not waited for
    assert process.poll() is not None
    assert routers() == before
    listed = subprocess.run(["ip", "netns"], capture_output=True, text=True, check=True).stdout
    assert not any(name in listed for name in names)


def test_a_line_can_be_cut_and_mended_while_it_is_in_use(lab: Lab) -> None:
    """As `bench.wan_failover` does: in between nothing comes through, not even a refusal."""
    for link, heard in ((Link(delay=0.005), "yes"), (Link(loss=1.0), "no"), (Link(), "yes")):
        lab.both(link, 1, 2)
        done = lab[1].run(KNOCK, lab[2].address, program=["python3", "-c"], limit=30)
        assert done.stdout.strip() == heard, done.stderr
