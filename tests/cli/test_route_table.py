"""What `swarmd route` prints: the chain, what it costs, and what it was chosen over."""

from __future__ import annotations

import asyncio
import json

import pytest

from swarmd.blocks import Span
from swarmd.cli.route_table import as_json, show
from swarmd.client.router import Router
from swarmd.identity import PeerId
from swarmd.peers import Address, ModelId, PeerInfo, PeerState

MODEL = ModelId(b"m" * 16)


def peer(number: int, start: int, end: int, decode_us: int = 1000) -> PeerInfo:
    return PeerInfo(
        peer_id=PeerId(bytes([number]) * 20),
        address=Address("127.0.0.1", 31330 + number),
        model_id=MODEL,
        model_name="tiny",
        n_blocks=6,
        span=Span(start, end),
        state=PeerState.ONLINE,
        decode_us=decode_us,
        prefill_us=100,
        kv_free=4096,
        dtype="float32",
    )


def routed(*peers: PeerInfo) -> Router:
    async def fetch() -> list[PeerInfo]:
        return list(peers)

    async def ping(_peer: PeerInfo) -> float:
        return 0.004

    router = Router(
        fetch, ping, model_id=MODEL, model_name="tiny", n_blocks=6, bytes_per_token=1000
    )
    asyncio.run(router.refresh())
    return router


def test_the_explanation_names_chains_costs_and_the_reason(
    capsys: pytest.CaptureFixture[str],
) -> None:
    a, b, c = peer(1, 0, 3), peer(2, 3, 6), peer(3, 0, 3, decode_us=20_000)
    router = routed(a, b, c)
    found = router.candidates()
    show("tiny", router, found, 1, explain=True)
    out = capsys.readouterr().out
    assert out.startswith(f"tiny: 0:3 via {a.peer_id.short} 3:6 via {b.peer_id.short}\n")
    # two hops of 4 ms, 6 blocks of 1 ms, 4 x 1000 bytes at 100 Mbit/s
    assert "predicted: 14.32 ms for a token" in out
    assert f"without {a.peer_id.short}" in out
    assert "cheaper than the next, most of it by compute (57.00)" in out
    peers = out.partition("Peers that could be taken")[2]
    assert sum(line.rstrip().endswith(" taken") for line in peers.splitlines()) == 2
    show("tiny", router, found, 1, explain=False)
    assert len(capsys.readouterr().out.splitlines()) == 2


def test_near_ties_and_sole_chains_are_called_so(capsys: pytest.CaptureFixture[str]) -> None:
    router = routed(peer(1, 0, 6), peer(2, 0, 6))
    show("tiny", router, router.candidates(), 1, explain=True)
    assert "an answer may take either" in capsys.readouterr().out
    router = routed(peer(1, 0, 3), peer(2, 3, 6))
    show("tiny", router, router.candidates(), 1, explain=True)
    assert "No other chain" in capsys.readouterr().out


def test_the_json_adds_up() -> None:
    router = routed(peer(1, 0, 3), peer(2, 3, 6), peer(3, 0, 3, decode_us=20_000))
    said = json.loads(json.dumps(as_json("tiny", router, router.candidates(tokens=64), 64)))
    assert said["tokens"] == 64
    for one in said["candidates"]:
        parts = dict(one["milliseconds"])
        total = parts.pop("total")
        assert total == pytest.approx(sum(parts.values()), abs=0.01)
        assert total == pytest.approx(
            sum(hop["milliseconds"]["total"] for hop in one["hops"]), abs=0.01
        )
    assert [one["without"] is None for one in said["candidates"]] == [True, False]
