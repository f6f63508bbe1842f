"""The router's process: holds the far ends of all TUN devices, and delays what goes through.

    python -m bench.wan.router DEVICE...

The devices are made here, named by the arguments; whoever started it puts each into its namespace.
A packet for 10.78.0.N goes to the N-th device. Lines of JSON on stdin change links:
`[[source, target] or null, {"delay": ..., ...}]`. It ends with stdin.
"""

from __future__ import annotations

import fcntl
import heapq
import itertools
import json
import os
import select
import struct
import sys
import time

from bench.wan.links import Link, Links

__all__ = ["main"]

NETWORK = b"\x0a\x4e\x00"
"""10.78.0.x"""
SPIN = 0.0003
"""Seconds before a packet is due that the router stays awake: poll(2) counts in milliseconds."""


def open_tun(name: str) -> int:
    """A TUN device without packet information, non-blocking (Linux, tuntap.rst)."""
    tun = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    fcntl.ioctl(tun, 0x400454CA, struct.pack("16sH22x", name.encode(), 0x0001 | 0x1000))
    return tun


def main(names: list[str]) -> None:
    """Run until stdin ends."""
    tuns = [open_tun(name) for name in names]
    print("ready", flush=True)
    site_of = {tun: number for number, tun in enumerate(tuns, start=1)}
    links, numbers = Links(), itertools.count()
    waiting: list[tuple[float, int, int, bytes]] = []  # due, order, device, packet
    poller = select.poll()
    for tun in (*tuns, 0):
        poller.register(tun, select.POLLIN)
    typed = b""
    while True:
        timeout = None
        if waiting:
            timeout = max(0.0, 1e3 * (waiting[0][0] - SPIN - time.monotonic()))
        for ready, _ in poller.poll(None if timeout is None else int(timeout)):
            if ready == 0:
                said = os.read(0, 65536)
                if not said:
                    return
                *lines, typed = (typed + said).split(b"\n")
                for line in lines:
                    pair, link = json.loads(line)
                    links.set({None if pair is None else (pair[0], pair[1]): Link(**link)})
                continue
            for _ in range(64):  # fair among the devices
                try:
                    packet = os.read(ready, 65536)
                except BlockingIOError:
                    break
                if packet[:1] != b"\x45" or packet[16:19] != NETWORK:
                    continue  # IPv6 chatter of the kernel, strangers
                target = packet[19]
                if not 1 <= target <= len(tuns):
                    continue
                now = time.monotonic()
                due = links.arrival(site_of[ready], target, len(packet), now)
                if due is not None:
                    heapq.heappush(waiting, (due, next(numbers), tuns[target - 1], packet))
        while waiting and waiting[0][0] <= time.monotonic():
            _, _, device, packet = heapq.heappop(waiting)
            try:
                os.write(device, packet)
            except BlockingIOError:
                pass  # the receiver's queue is full: lost, as on a real line
            except OSError:
                pass  # the device is down: its namespace goes


if __name__ == "__main__":
    main(sys.argv[1:])
