"""Whole daemons and a client, told another family or another key than the usual."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import pytest

from swarmd.blocks import BlockRequest, Span
from swarmd.client.swarm import SwarmClient, choose_chain
from swarmd.compute.model_folder import open_folder
from swarmd.config import DaemonConfig
from swarmd.errors import BootstrapFailed
from swarmd.node.daemon import Daemon
from swarmd.peers import Address, parse_address
from swarmd.swarm_key import PUBLIC_KEYS, KeyRing, SwarmKey
from tests.conftest import Runner
from tests.families import N_BLOCKS, save_tiny

HALF = N_BLOCKS // 2
PRIVATE = KeyRing(SwarmKey(b"p" * 32))


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny("llama", tmp_path_factory.mktemp("own") / "llama")


@contextlib.asynccontextmanager
async def serving(
    folder: Path, state: Path, span: Span, host: str, keys: KeyRing, peers: Sequence[Address] = ()
) -> AsyncIterator[Address]:
    """A daemon that serves `span`, stopped in good order at the end."""
    daemon = Daemon(
        DaemonConfig(
            model=str(folder),
            blocks=BlockRequest(span=span),
            host=host,
            port=0,
            peers=tuple(peers),
            state_dir=state,
            keys=keys,
            entry_delay=0.0,
        )
    )
    running = asyncio.get_running_loop().create_task(daemon.run())
    ready = asyncio.get_running_loop().create_task(daemon.ready.wait())
    try:
        await asyncio.wait([running, ready], return_when=asyncio.FIRST_COMPLETED)
        assert not running.done(), running
        assert daemon.address is not None
        yield daemon.address
    finally:
        ready.cancel()
        daemon.stop()
        await running


@pytest.mark.parametrize(("host", "keys"), [("::1", PUBLIC_KEYS), ("127.0.0.1", PRIVATE)])
def test_daemons_and_a_client_meet(
    run_async: Runner, tiny: Path, tmp_path: Path, host: str, keys: KeyRing
) -> None:
    model = open_folder(tiny)

    async def main() -> None:
        first, second = Span(0, HALF), Span(HALF, N_BLOCKS)
        async with serving(tiny, tmp_path / "a", first, host, keys) as a:
            contact = parse_address(str(a))  # as `--peer [::1]:PORT` is read
            async with (
                serving(tiny, tmp_path / "b", second, host, keys, [contact]),
                SwarmClient([contact], state_dir=tmp_path / "c", keys=keys) as client,
            ):
                pool = await client.pool(model.model_id)
                router = client.router(
                    pool,
                    model_id=model.model_id,
                    model_name=model.name,
                    n_blocks=N_BLOCKS,
                    bytes_per_token=4 * model.hidden_size,
                )
                chain = await choose_chain(router, wait=10.0)
                assert [hop.span for hop in chain.hops] == [first, second]
                assert {hop.peer.address.host for hop in chain.hops} == {host}
            foreign = KeyRing(SwarmKey(b"f" * 32))
            with pytest.raises(BootstrapFailed):
                async with SwarmClient([contact], state_dir=tmp_path / "c", keys=foreign):
                    pass

    run_async(main())
