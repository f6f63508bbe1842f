"""From a host name to the address of one IP family."""

from __future__ import annotations

import asyncio
import ipaddress
import socket

__all__ = ["FAMILIES", "resolve"]

FAMILIES = {4: socket.AF_INET, 6: socket.AF_INET6}
"""The address family of each version of the Internet Protocol."""


async def resolve(host: str, version: int | None = None) -> str | None:
    """The IP literal of a host name, or None; of both families IPv4 is preferred if `version` is
    None. A literal is not looked up."""
    try:
        literal = ipaddress.ip_address(host)
    except ValueError:
        pass
    else:
        return str(literal) if version in (None, literal.version) else None
    for family in [version] if version is not None else [4, 6]:
        try:
            found = await asyncio.get_running_loop().getaddrinfo(
                host, None, family=FAMILIES[family], type=socket.SOCK_DGRAM
            )
        except (OSError, UnicodeError, ValueError):
            continue
        if found:
            return str(found[0][4][0])
    return None
