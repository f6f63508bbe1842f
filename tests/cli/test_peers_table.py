"""The table of `swarmd peers`: no record speaks for the others, and no text is obeyed."""

from __future__ import annotations

import dataclasses
import re

import pytest

from swarmd.blocks import Span
from swarmd.cli.peers_table import BAR_WIDTH, ModelPeers, show
from swarmd.identity import PeerId
from swarmd.peers import Address, ModelId, PeerInfo, PeerState

MODEL = ModelId(b"m" * 16)
NOW = 1000.0


def peer(
    number: int,
    start: int = 0,
    end: int = 6,
    n_blocks: int = 6,
    *,
    state: PeerState = PeerState.ONLINE,
    name: str = "tiny",
    version: str = "0.1.0",
) -> PeerInfo:
    return PeerInfo(
        peer_id=PeerId(number.to_bytes(1, "big") * 20),
        address=Address("127.0.0.1", 31330 + number),
        model_id=MODEL,
        model_name=name,
        n_blocks=n_blocks,
        span=Span(start, end),
        state=state,
        decode_us=1000,
        prefill_us=100,
        kv_free=4096,
        dtype="float32",
        version=version,
        announced_at=NOW - 3,
    )


def model_of(*peers: PeerInfo, silent: tuple[int, ...] = ()) -> ModelPeers:
    """The model, where all peers but the `silent` ones (by position) answered in 2 ms."""
    rtts = {p.peer_id: 0.002 for n, p in enumerate(peers) if n not in silent}
    return ModelPeers(MODEL, peers, rtts)


def printed(model: ModelPeers, capsys: pytest.CaptureFixture[str]) -> str:
    show(model, now=NOW)
    return capsys.readouterr().out


def line_of(p: PeerInfo, table: str) -> str:
    (line,) = [line for line in table.splitlines() if str(p.address) in line]
    return line


def test_a_table_says_who_holds_what_and_what_is_missing(
    capsys: pytest.CaptureFixture[str],
) -> None:
    peers = [peer(1, 0, 3), peer(2, 0, 3), peer(3, 3, 5), peer(4, 5, 6, state=PeerState.JOINING)]
    model = model_of(*peers, silent=(1, 3))
    table = printed(model, capsys)
    assert f"tiny (6 blocks, id {MODEL.short})" in table
    assert re.search(
        r"0:3 +online +float32 +333\.3 +2\.00 ms +4096 +0\.1\.0 +3 s", line_of(peers[0], table)
    )
    assert re.search(r"0:3 +unreachable .* - ", line_of(peers[1], table))
    assert "joining" in line_of(peers[3], table)
    assert "coverage  0 11111· 6 " in table
    assert "missing   blocks 5:6; start one: swarmd serve --blocks 5:6" in table
    assert "not counted" not in table


def test_the_table_names_the_quantization_else_the_dtype(
    capsys: pytest.CaptureFixture[str],
) -> None:
    quantized = dataclasses.replace(peer(1, 0, 3), quantization="int8")
    unknown = dataclasses.replace(peer(2, 0, 3), quantization="q" * 16)
    table = printed(model_of(quantized, unknown, peer(3, 3, 6)), capsys)
    assert " int8 " in line_of(quantized, table)
    assert f" {'q' * 7}… " in line_of(unknown, table)


@pytest.mark.parametrize("liar", [peer(9, 0, 6, 65_535), peer(9, 0, 1, 1), peer(9, 7, 9, 9)])
def test_one_peer_does_not_change_the_table_of_the_others(
    liar: PeerInfo, capsys: pytest.CaptureFixture[str]
) -> None:
    honest = [peer(1, 0, 3), peer(2, 3, 6)]
    model = model_of(liar, *honest)
    assert (model.n_blocks, model.coverage, model.holes) == (6, [1] * 6, [])
    table = printed(model, capsys)
    assert "coverage  0 111111 6 " in table
    assert "not counted: 1 of 3 peers" in table
    assert f"says {liar.n_blocks} blocks" in line_of(liar, table)
    assert "missing" not in table
    alone = printed(model_of(*honest), capsys)
    for one in honest:
        assert "online" in line_of(one, table)
        assert line_of(one, table).split() == line_of(one, alone).split()


def test_the_majority_is_of_online_peers_then_of_all_then_the_smaller() -> None:
    joining = PeerState.JOINING
    crowd = [peer(n, 0, 1, 9, state=joining) for n in range(1, 6)]
    assert model_of(*crowd, peer(7, n_blocks=6)).n_blocks == 6
    assert model_of(peer(1, 0, 1, 9), peer(2, 0, 1, 9, state=joining), peer(3)).n_blocks == 9
    assert model_of(peer(1, 0, 1, 9), peer(2)).n_blocks == 6
    assert model_of(*crowd).n_blocks == 9


def test_the_name_is_that_of_the_majority_that_agrees() -> None:
    liars = [peer(n, 0, 1, 9, state=PeerState.DRAINING, name="a lie") for n in range(3, 9)]
    assert model_of(peer(1, name="Tiny"), peer(2, name="Tiny"), *liars).name == "Tiny"
    assert model_of(peer(1, name="Tiny"), peer(2, name="Tiny"), peer(3, name="A")).name == "Tiny"


def test_text_of_peers_is_printed_and_not_obeyed(capsys: pytest.CaptureFixture[str]) -> None:
    hostile = peer(
        1,
        name="\x1b]0;owned\x07[red]:skull:\u202e\n" + "x" * 5000,
        version="[bold]\x9b2J\r1",
    )
    table = printed(model_of(hostile), capsys)
    assert all(character.isprintable() for character in table.replace("\n", ""))
    assert "\\x1b]0;owned\\x07[red]:skull:\\u202e\\nxxx" in table
    assert "[bold]\\x9b2J\\r1" in line_of(hostile, table)
    assert "x" * 64 not in table
    assert max(map(len, table.splitlines())) <= 120


def test_a_table_of_long_texts_still_shows_every_column(
    capsys: pytest.CaptureFixture[str],
) -> None:
    peers = [peer(1, version="9" * 24), peer(2), peer(3), peer(4, 0, 1, 65_535)]
    table = printed(model_of(*peers), capsys)
    assert "says 65535 blocks" in line_of(peers[3], table)
    assert "999999999999999…" in line_of(peers[0], table)
    assert line_of(peers[0], table).rstrip().endswith("3 s")


def test_the_bar_of_a_huge_model_has_an_end(capsys: pytest.CaptureFixture[str]) -> None:
    table = printed(model_of(peer(1, 0, 65_000, 65_535)), capsys)
    (bar,) = re.findall(r"0 ([1·\n]+) 65535", table)
    marks = bar.replace("\n", "")
    assert len(marks) <= BAR_WIDTH
    assert marks.count("·") == 3
    assert "missing   blocks 65000:65535" in table
