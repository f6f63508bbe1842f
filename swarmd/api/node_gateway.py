"""The gateway of a serving node: a client within it, over the node's own directory and links."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Sequence

from swarmd.api.errors import AGAIN_IN, ApiError
from swarmd.api.gateway import AnyGateway, Ground
from swarmd.api.limits import ApiLimits
from swarmd.client.loading import resolve_client_folder
from swarmd.client.router import Router
from swarmd.compute.model_folder import ModelFolder
from swarmd.dht.directory import Directory
from swarmd.errors import SwarmdError
from swarmd.node.announced import Announced
from swarmd.node.parts import NodeParts
from swarmd.peers import Address, PeerInfo
from swarmd.wire.ping import ping
from swarmd.wire.pool import Pool

__all__ = ["NodeGateway"]


class NodeGateway(AnyGateway):
    """There as soon as the node's process runs; answers once the node has joined, and no more when
    it leaves. The model's ends are loaded by the first request that needs them."""

    def __init__(
        self,
        parts: NodeParts,
        stopping: asyncio.Event,
        *,
        limits: ApiLimits | None = None,
        alias: str | None = None,
    ) -> None:
        super().__init__(limits, alias=alias)
        self._parts = parts
        self._stopping = stopping
        self._ground: Ground | None = None

    def ground(self) -> Ground:
        if self._ground is None:
            parts = self._parts
            if parts.directory is None or parts.pool is None or parts.announced is None:
                raise ApiError(
                    503, "the node is starting; try again", code="starting", retry_after=AGAIN_IN
                )
            self._ground = _ground(parts.directory, parts.pool, parts.announced)
        return self._ground

    async def load(self) -> None:
        if self._stopping.is_set():
            raise ApiError(
                503, "this node is leaving; ask another one", code="draining", retry_after=AGAIN_IN
            )
        await super().load()

    async def client_folder(self) -> ModelFolder:
        """A node has its own blocks only; embedding, head and tokenizer are fetched now."""
        announced = self._parts.announced
        assert announced is not None

        def report(stage: str, done: int, total: int) -> None:
            if self._stopping.is_set():  # the thread that fetches cannot be cancelled, but told
                raise SwarmdError("the node is leaving")

        return await resolve_client_folder(announced.config.model, report)


def _ground(directory: Directory, pool: Pool, announced: Announced) -> Ground:
    folder = announced.folder

    async def fetch() -> Sequence[PeerInfo]:
        peers = await directory.fetch(model_id, tombstones=True)
        return [_as_seen(peer, announced, directory) for peer in peers]

    model_id = folder.model_id
    router = Router(
        fetch,
        lambda peer: ping(peer, pool),
        model_id=model_id,
        model_name=folder.name,
        n_blocks=folder.n_blocks,
        bytes_per_token=folder.hidden_size * 4,
    )
    return Ground(folder, pool, router)


def _as_seen(peer: PeerInfo, announced: Announced, directory: Directory) -> PeerInfo:
    """The node itself is dialled where it listens: not every router leads its own address back."""
    if peer.peer_id != announced.peer_id:
        return peer
    loopback = {"0.0.0.0": "127.0.0.1", "::": "::1"}
    host = directory.address.host
    here = Address(loopback.get(host, host), directory.address.port)
    return dataclasses.replace(peer, address=here)
