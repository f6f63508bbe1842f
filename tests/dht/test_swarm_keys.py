"""Private swarms: outsiders get no answer at all, and keys change without a gap."""

from __future__ import annotations

import pytest

from swarmd.dht.envelope import Drop
from swarmd.errors import BootstrapFailed
from swarmd.swarm_key import PUBLIC_SWARM_KEY, KeyRing, SwarmKey
from tests.conftest import Runner
from tests.dht.swarm import MODEL, announce_all, directory_of, ids, info_of, open_swarm

OLD, NEW = SwarmKey(b"o" * 32), SwarmKey(b"n" * 32)


@pytest.mark.parametrize("foreign", [PUBLIC_SWARM_KEY, NEW])
def test_an_outsider_gets_no_reply_at_all(run_async: Runner, foreign: SwarmKey) -> None:
    async def main() -> None:
        ring = KeyRing(OLD)
        async with (
            directory_of(1, keys=ring) as node,
            directory_of(2, keys=KeyRing(foreign)) as stranger,
        ):
            with pytest.raises(BootstrapFailed, match="same swarm key"):
                await stranger.bootstrap([node.address], timeout=0.7)
            assert node.statistics().datagrams_out == 0
            assert node.statistics().drops[Drop.TAG] > 0

    run_async(main())


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (KeyRing(OLD), KeyRing(OLD, NEW)),
        (KeyRing(OLD, NEW), KeyRing(NEW, OLD)),
        (KeyRing(NEW, OLD), KeyRing(NEW)),
    ],
)
def test_each_step_of_a_change_of_keys_keeps_the_swarm_whole(
    run_async: Runner, one: KeyRing, other: KeyRing
) -> None:
    """Half the nodes took the step, half did not yet: everybody is found by everybody."""

    async def main() -> None:
        nodes = [directory_of(seed, keys=one if seed % 2 else other) for seed in range(8)]
        for node in nodes:
            await node.__aenter__()
        for node in nodes[1:]:
            await node.bootstrap([nodes[0].address])
        await announce_all(nodes)
        for node in nodes:
            assert ids(await node.fetch(MODEL)) == {n.peer_id for n in nodes}
        for node in nodes:
            await node.__aexit__()

    run_async(main())


def test_after_the_change_the_old_key_is_foreign(run_async: Runner) -> None:
    async def main() -> None:
        async with open_swarm(3, keys=KeyRing(NEW)) as nodes:
            await nodes[0].announce(info_of(nodes[0].peer_id))
            async with directory_of(9, keys=KeyRing(OLD), serving=False) as late:
                with pytest.raises(BootstrapFailed):
                    await late.bootstrap([node.address for node in nodes], timeout=0.7)
            async with directory_of(9, keys=KeyRing(OLD, NEW), serving=False) as both:
                await both.bootstrap([nodes[1].address])
                assert ids(await both.fetch(MODEL)) == {nodes[0].peer_id}

    run_async(main())
