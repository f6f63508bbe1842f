"""The peers file: shared, atomic, and forgiving."""

from __future__ import annotations

import asyncio
import fcntl
import json
import multiprocessing
import time
from pathlib import Path

import pytest

from swarmd.dht.peers_file import MAX_PEERS, PeersFile
from swarmd.errors import StateError
from swarmd.identity import PeerId
from swarmd.peers import Address
from tests.conftest import Runner


def entry(n: int, last_ok: float = 1.0) -> tuple[PeerId, Address, float]:
    return PeerId(n.to_bytes(20, "big")), Address("10.0.0.1", 1 + n), last_ok


def test_round_trip_newest_first(tmp_path: Path) -> None:
    file = PeersFile(tmp_path / "state" / "peers.json")
    assert file.load() == []
    file.record([entry(1, 10.0), entry(2, 30.0)])
    file.record([entry(3, 20.0), entry(1, 5.0)])
    assert file.load() == [entry(2, 30.0), entry(3, 20.0), entry(1, 10.0)]
    file.forget([entry(3)[0]])
    assert file.load() == [entry(2, 30.0), entry(1, 10.0)]
    saved = json.loads((tmp_path / "state" / "peers.json").read_text())
    assert set(saved["peers"][0]) == {"id", "host", "port", "last_ok"}


def test_at_most_200(tmp_path: Path) -> None:
    file = PeersFile(tmp_path / "peers.json")
    file.record([entry(n, float(n)) for n in range(300)])
    assert [e[2] for e in file.load()] == [float(n) for n in range(299, 299 - MAX_PEERS, -1)]


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"[]", b"null", b'{"peers": 5}', b'{"peers": [5, null, {}]}', b"\xff\xfe",
     b"[" * 9999],
)  # fmt: skip
def test_garbage_counts_as_empty(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "peers.json"
    path.write_bytes(content)
    file = PeersFile(path)
    assert file.load() == []
    file.record([entry(1)])
    assert file.load() == [entry(1)]


def test_every_truncation_is_tolerated(tmp_path: Path) -> None:
    path = tmp_path / "peers.json"
    PeersFile(path).record([entry(n) for n in range(3)])
    whole = path.read_bytes()
    for size in range(len(whole) - 1):
        path.write_bytes(whole[:size])
        assert PeersFile(path).load() == []


@pytest.mark.parametrize(
    "bad",
    [
        {"id": "zz" * 20},
        {"id": "00"},
        {"id": 5},
        {"host": "example.org"},
        {"host": None},
        {"port": 70000},
        {"port": "1"},
        {"port": True},
        {"last_ok": float("nan")},
        {"last_ok": "now"},
        {"last_ok": None},
    ],
)
def test_a_wrong_entry_costs_only_itself(tmp_path: Path, bad: dict[str, object]) -> None:
    good = {"id": "01" * 20, "host": "10.0.0.1", "port": 5, "last_ok": 1.0}
    path = tmp_path / "peers.json"
    path.write_text(json.dumps({"peers": [{**good, **bad}, good]}))
    assert PeersFile(path).load() == [(PeerId(b"\x01" * 20), Address("10.0.0.1", 5), 1.0)]


def test_a_failed_write_keeps_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = PeersFile(tmp_path / "peers.json")
    file.record([entry(1)])

    def fail(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("swarmd.dht.peers_file.os.fsync", fail)
    with pytest.raises(StateError, match="No space left"):
        file.record([entry(2)])
    assert file.load() == [entry(1)]
    assert {path.name for path in tmp_path.iterdir()} == {"peers.json", "peers.json.lock"}


def _write(path: str, first: int) -> None:
    for n in range(first, first + 10):
        PeersFile(path).record([entry(n)])


def test_several_processes_lose_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("swarmd.dht.peers_file.LOCK_TRIES", 3000)
    path = str(tmp_path / "peers.json")
    context = multiprocessing.get_context("fork")
    workers = [context.Process(target=_write, args=(path, 10 * n)) for n in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(30)
        assert worker.exitcode == 0
    assert {e[0] for e in PeersFile(path).load()} == {entry(n)[0] for n in range(40)}


def test_the_loop_runs_on_while_somebody_else_holds_the_lock(
    tmp_path: Path, run_either: Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("swarmd.dht.peers_file.LOCK_TRIES", 3000)
    file = PeersFile(tmp_path / "peers.json")
    file.path.with_name("peers.json.lock").touch()

    async def main() -> None:
        with file.path.with_name("peers.json.lock").open("ab") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            async with asyncio.TaskGroup() as group:
                noted = group.create_task(file.async_record(iter([entry(1), entry(2)])))
                turns = 0
                end = time.monotonic() + 0.3
                while time.monotonic() < end:
                    await asyncio.sleep(0.005)
                    turns += 1
                assert turns >= 3  # a loop that is blocked would not get this far
                assert not noted.done()
                assert await file.async_load() == []  # reading needs no lock
                fcntl.flock(lock, fcntl.LOCK_UN)
        assert await file.async_load() == [entry(1), entry(2)]
        await file.async_forget([entry(1)[0]])
        assert await file.async_load() == [entry(2)]

    run_either(main())


def test_what_goes_wrong_in_the_thread_is_told(tmp_path: Path, run_async: Runner) -> None:
    (tmp_path / "file").touch()
    file = PeersFile(tmp_path / "file" / "peers.json")

    async def main() -> None:
        assert await file.async_load() == []
        with pytest.raises(StateError, match="cannot write the peers file"):
            await file.async_record([entry(1)])
        with pytest.raises(StateError, match="cannot write the peers file"):
            await file.async_forget([entry(1)[0]])

    run_async(main())
