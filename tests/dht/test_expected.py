"""Joining by an invite: who answers must be who was meant. And meeting nodes in passing."""

from __future__ import annotations

import pytest

from swarmd.errors import BootstrapFailed
from swarmd.peers import Address
from tests.conftest import Runner
from tests.dht.swarm import directory_of, identity_of


def test_another_node_at_the_address_does_not_count(
    run_async: Runner, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        async with directory_of(1) as there, directory_of(2) as node:
            meant = identity_of(3).peer_id
            with pytest.raises(BootstrapFailed):
                await node.bootstrap([there.address], 1.0, expected={there.address: meant})
            expected = {there.address: there.peer_id}
            assert await node.bootstrap([there.address], expected=expected) == 1

    run_async(main())
    assert "was expected" in caplog.text


def test_meeting_nobody_is_no_failure(run_async: Runner) -> None:
    async def main() -> None:
        async with directory_of(1) as there, directory_of(2) as node:
            assert await node.meet([Address("127.0.0.1", 1)], 0.5) == 0
            assert await node.meet([node.address], 0.5) == 0
            assert await node.meet([Address("127.0.0.1", 1), there.address]) == 1

    run_async(main())
