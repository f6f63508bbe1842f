"""What a node announces, against where it is bound."""

from __future__ import annotations

import pytest

from swarmd.config import announced_address, check_host
from swarmd.errors import UsageError
from swarmd.peers import Address


@pytest.mark.parametrize(
    ("host", "advertise", "announced"),
    [
        ("127.0.0.1", None, Address("127.0.0.1", 31330)),
        ("10.0.0.2", None, Address("10.0.0.2", 31330)),
        ("0.0.0.0", "192.0.2.7", Address("192.0.2.7", 31330)),
        ("0.0.0.0", "192.0.2.7:40000", Address("192.0.2.7", 40000)),
        ("10.0.0.2", "home.example:40000", Address("home.example", 40000)),
    ],
)
def test_the_announced_address(host: str, advertise: str | None, announced: Address) -> None:
    assert announced_address(check_host(host, advertise), 31330, advertise) == announced


@pytest.mark.parametrize(
    "advertise", ["", " ", "192.0.2.7:", ":40000", "192.0.2.7:0", "192.0.2.7:65536", "a:b:c"]
)
def test_a_wrong_one_is_told(advertise: str) -> None:
    with pytest.raises(UsageError, match="--advertise"):
        check_host("0.0.0.0", advertise)
