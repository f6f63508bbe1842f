"""Tells the service manager how the node is: systemd's notifications (sd_notify(3)).

A service of `Type=notify` finds in $NOTIFY_SOCKET the Unix datagram socket that its manager reads.
`WATCHDOG=1` has to come within $WATCHDOG_USEC microseconds each time, if that is set.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from collections.abc import Mapping

__all__ = ["READY", "STOPPING", "WATCHDOG", "ServiceNotifier", "message", "watchdog_period"]

log = logging.getLogger(__name__)
READY, STOPPING, WATCHDOG = "READY", "STOPPING", "WATCHDOG"
LONGEST = 1024
"""Characters of one value; what is longer is cut."""


def message(fields: Mapping[str, str]) -> bytes:
    """The datagram that assigns `fields`, a line each. What would begin another line is blanked.

    Raises ValueError for a name that is none of a variable.
    """
    lines = []
    for name, value in fields.items():
        if not (name.isascii() and name.isidentifier()):
            raise ValueError(f"{name!r} names no variable")
        flat = "".join(char if char.isprintable() else " " for char in value)
        lines.append(f"{name}={flat[:LONGEST]}")
    return "\n".join(lines).encode("utf-8", "replace")


def watchdog_period(environment: Mapping[str, str], pid: int) -> float | None:
    """Seconds between two signs of life, half of what the manager waits for them; None if it waits
    for none of this process."""
    try:
        microseconds = int(environment.get("WATCHDOG_USEC", "0"))
        meant = int(environment.get("WATCHDOG_PID", pid))
    except ValueError:
        return None
    return microseconds / 2e6 if microseconds > 0 and meant == pid else None


def _address(environment: Mapping[str, str]) -> str | None:
    """Where the manager listens: a path, or an abstract name, which `@` stands before."""
    given = environment.get("NOTIFY_SOCKET", "")
    if not given:
        return None
    if given[0] == "@":
        return f"\0{given[1:]}"
    if given[0] == "/":
        return given
    log.warning("$NOTIFY_SOCKET is neither a path nor @NAME: the service manager is told nothing")
    return None


class ServiceNotifier:
    """`with ServiceNotifier(os.environ) as notifier:`; without a service manager it does nothing.

    A manager that cannot be reached, or reads no more, is one warning: the node goes on.
    """

    def __init__(self, environment: Mapping[str, str] | None = None) -> None:
        environment = os.environ if environment is None else environment
        has_unix = hasattr(socket, "AF_UNIX")
        self._address = _address(environment) if has_unix else None
        self._period = watchdog_period(environment, os.getpid())
        self._socket: socket.socket | None = None
        self._warned = False

    def __enter__(self) -> ServiceNotifier:
        if self._address is not None:
            self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
            self._socket.setblocking(False)
        return self

    def __exit__(self, *_exc: object) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def tell(self, state: str, status: str | None = None) -> bool:
        """Say one of READY, STOPPING and WATCHDOG, and for people what the node does. Returns
        whether it was sent. Never waits."""
        if self._socket is None or self._address is None:
            return False
        fields = {state: "1"} if status is None else {state: "1", "STATUS": status}
        try:
            self._socket.sendto(message(fields), self._address)
        except OSError as error:
            if not self._warned:
                log.warning("the service manager cannot be told anything: %s", error.strerror)
            self._warned = True
            return False
        return True

    async def watch(self) -> None:
        """Give signs of life for as long as the event loop runs; returns at once if nobody waits
        for them."""
        if self._socket is None or self._period is None:
            return
        while True:
            self.tell(WATCHDOG)
            await asyncio.sleep(self._period)
