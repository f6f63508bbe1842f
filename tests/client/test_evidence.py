"""What is kept of those that were caught: bounded, without the user's data, hostile files read."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path

import pytest

from swarmd.blocks import Span
from swarmd.client import evidence as module
from swarmd.client.evidence import Evidence, EvidenceFile
from swarmd.errors import StateError
from swarmd.identity import PeerId
from swarmd.routing.verification import Verdict

LIAR, OTHER = PeerId(b"l" * 20), PeerId(b"o" * 20)
ONE = Evidence(
    Verdict.HOP_LIED, LIAR, Span(0, 2), 7, 9, "float32", float("inf"), 1e-3,
    ((LIAR, "aa"), (OTHER, "bb")), "ff", 1000.0,
)  # fmt: skip


def test_a_conviction_is_remembered_for_a_week(tmp_path: Path) -> None:
    file = EvidenceFile(tmp_path / "state" / "evidence.json")
    assert file.liars(1000.0) == frozenset()
    file.record(ONE)
    file.record(dataclasses.replace(ONE, verdict=Verdict.UNSETTLED, liar=None))
    week = module.REMEMBERED_SECONDS
    assert file.liars(1000.0 + week - 1) == {LIAR}
    assert file.liars(1000.0 + week + 1) == frozenset()
    assert os.stat(file.path).st_mode & 0o777 == 0o600


def test_only_the_newest_records_are_kept(tmp_path: Path) -> None:
    file = EvidenceFile(tmp_path / "evidence.json")
    for number in range(module.MAX_RECORDS + 5):
        file.record(dataclasses.replace(ONE, position=number))
    found = [record["position"] for record in file.load()]
    assert found == list(range(5, module.MAX_RECORDS + 5))
    assert file.path.stat().st_size < module.MAX_FILE_BYTES


def test_a_record_holds_ids_numbers_and_hashes_only(tmp_path: Path) -> None:
    file = EvidenceFile(tmp_path / "evidence.json")
    file.record(ONE)
    (record,) = json.loads(file.path.read_text(), parse_constant=pytest.fail)["records"]
    assert set(record) == {
        "time", "verdict", "liar", "model", "blocks", "position", "end", "dtype", "difference",
        "tolerance", "opinions",
    }  # fmt: skip
    assert record["opinions"] == [
        {"peer": str(LIAR), "sha256": "aa"}, {"peer": str(OTHER), "sha256": "bb"},
    ]  # fmt: skip


@pytest.mark.parametrize(
    "content",
    [
        b"", b"{", b"[]", b'{"records": 3}', b'{"records": [1, {}]}', b"\xff\xfe", b"[" * 100_000,
        b'{"records": [{"liar": "zz", "time": 1000}, {"liar": "00", "time": 1000}]}',
        b'{"records": [{"liar": "' + b"00" * 20 + b'", "time": NaN}]}',
        b'{"records": [{"liar": 5, "time": 1000}, {"liar": "aa", "time": "x"}]}',
    ],
)  # fmt: skip
def test_garbage_counts_as_empty_and_is_written_over(content: bytes, tmp_path: Path) -> None:
    file = EvidenceFile(tmp_path / "evidence.json")
    file.path.write_bytes(content)
    assert file.liars(1000.0) == frozenset()
    file.record(ONE)
    assert file.liars(1000.0) == {LIAR}


def test_a_folder_that_cannot_be_written_is_one_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StateError, match="--state-dir"):
        EvidenceFile(tmp_path / "file" / "evidence.json").record(ONE)
