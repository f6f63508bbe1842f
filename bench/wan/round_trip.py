"""What a round trip takes in the lab itself: bytes there and back over TCP, without swarmd.

    python -m bench.wan.round_trip serve HOST
    python -m bench.wan.round_trip ask HOST [--bytes 2400] [--times 20]

Asking prints the median in milliseconds: the delay and the line's rate that were asked for, and
what the lab's own router and the two ends of a socket add on this machine.
"""

from __future__ import annotations

import argparse
import socket
import statistics
import subprocess
import sys
import time

from bench.wan.lab import Lab

__all__ = ["main", "round_trip_ms"]

PORT = 31399


def serve(host: str) -> None:
    """Send back what one client sends, until it ends."""
    with socket.create_server((host, PORT)) as server:
        print("listening", flush=True)
        connection, _ = server.accept()
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        with connection:
            while data := connection.recv(65536):
                connection.sendall(data)


def ask(host: str, n_bytes: int, times: int) -> float:
    found = []
    with socket.create_connection((host, PORT)) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for _ in range(times):
            began, left = time.perf_counter(), n_bytes
            connection.sendall(bytes(n_bytes))
            while left:
                left -= len(connection.recv(left))
            found.append(1e3 * (time.perf_counter() - began))
            time.sleep(0.01)
    return statistics.median(found)


def round_trip_ms(lab: Lab, one: int, other: int, n_bytes: int = 2400) -> float:
    """Between two sites of a lab, from the first."""
    program = [sys.executable, "-m", "bench.wan.round_trip"]
    target = lab[other]
    with subprocess.Popen(
        target.command(*program, "serve", target.address), stdout=subprocess.PIPE, text=True
    ) as server:
        assert server.stdout is not None
        server.stdout.readline()
        done = lab[one].run("ask", target.address, "--bytes", str(n_bytes), program=program)
        server.wait(10)
    if done.returncode != 0:
        raise RuntimeError(done.stderr)
    return float(done.stdout)


def main() -> None:
    """Serve, or ask and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("role", choices=("serve", "ask"))
    parser.add_argument("host")
    parser.add_argument("--bytes", type=int, default=2400)
    parser.add_argument("--times", type=int, default=20)
    options = parser.parse_args()
    if options.role == "serve":
        serve(options.host)
    else:
        print(ask(options.host, options.bytes, options.times))


if __name__ == "__main__":
    main()
