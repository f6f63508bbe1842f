"""Peers made up in one line."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from swarmd.blocks import Span
from swarmd.identity import PeerId
from swarmd.peers import Address, ModelId, PeerInfo, PeerState

MakePeer = Callable[..., PeerInfo]


@pytest.fixture(scope="session")
def model_id() -> ModelId:
    return ModelId(b"m" * 16)


@pytest.fixture(scope="session")
def peer_id() -> Callable[[int], PeerId]:
    return lambda number: PeerId(number.to_bytes(20, "big"))


@pytest.fixture(scope="session")
def make_peer(model_id: ModelId, peer_id: Callable[[int], PeerId]) -> MakePeer:
    """`make_peer(number, start, end, n_blocks=..., <any field of PeerInfo>)`."""

    def make(number: int, start: int, end: int, n_blocks: int = 30, **fields: object) -> PeerInfo:
        values: dict[str, object] = {
            "peer_id": peer_id(number),
            "address": Address("127.0.0.1", 1000 + number),
            "model_id": model_id,
            "model_name": "smollm2-135m",
            "n_blocks": n_blocks,
            "span": Span(start, end),
            "state": PeerState.ONLINE,
            "decode_us": 1000,
            "prefill_us": 100,
            "kv_free": 4096,
            "dtype": "bfloat16",
            **fields,
        }
        return PeerInfo(**values)  # type: ignore[arg-type]

    return make
