"""A stop while the model is fetched, converted or loaded acts soon and leaves nothing behind."""

from __future__ import annotations

import asyncio
import logging
import threading
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest

from swarmd.blocks import BlockRequest, Span
from swarmd.compute.block_span import BlockSpan
from swarmd.compute.convert import convert_folder
from swarmd.compute.hub import fetch_model
from swarmd.compute.model_folder import open_folder
from swarmd.compute.source import resolve_model
from swarmd.config import DaemonConfig
from swarmd.dht.peers_file import PeersFile
from swarmd.errors import ConnectionLost
from swarmd.node import daemon as daemon_module
from swarmd.node.announcer import Announcer
from swarmd.node.daemon import Daemon
from swarmd.peers import PeerInfo, PeerState
from swarmd.wire.transport import Greeting, dial
from tests.conftest import Runner
from tests.families import N_BLOCKS, save_tiny
from tests.models.fake_hub import FakeHub

LOADING = "loading blocks"


class Halt(Exception):
    """What a caller's progress raises to stop."""


class Loading:
    """Progress that notes every report, and calls `act` at the first one of `stage`."""

    def __init__(self, stage: str, act: Any) -> None:
        self.reports: list[tuple[str, int, int]] = []
        self._stage = stage
        self._act = act

    def __call__(self, stage: str, done: int, total: int) -> None:
        first = not self.of(stage)
        self.reports.append((stage, done, total))
        if first and stage == self._stage:
            self._act()

    def of(self, stage: str) -> list[tuple[int, int]]:
        return [(done, total) for name, done, total in self.reports if name == stage]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny("llama", tmp_path_factory.mktemp("stop") / "llama")


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> list[PeerState]:
    """What the node announces, in order."""
    states: list[PeerState] = []
    announce, withdraw = Announcer.announce, Announcer.withdraw

    async def noted(self: Announcer, state: PeerState | None = None) -> PeerInfo:
        info = await announce(self, state)
        states.append(info.state)
        return info

    async def withdrawn(self: Announcer) -> None:
        await withdraw(self)
        states.append(PeerState.GONE)

    monkeypatch.setattr(Announcer, "announce", noted)
    monkeypatch.setattr(Announcer, "withdraw", withdrawn)
    return states


def config(tiny: Path, state: Path, span: Span | None = None) -> DaemonConfig:
    blocks = BlockRequest(span=span or Span(0, N_BLOCKS))
    return DaemonConfig(model=str(tiny), blocks=blocks, state_dir=state, kv_tokens=256)


def test_a_stop_takes_effect_between_blocks(
    tiny: Path, tmp_path: Path, told: list[PeerState], run_either: Runner,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    caplog.set_level(logging.INFO, logger="swarmd")

    async def work() -> None:
        progress = Loading(LOADING, lambda: daemon.stop())
        daemon = Daemon(config(tiny, tmp_path), progress=progress)
        await daemon.run()
        (report,) = progress.of(LOADING)
        assert report == (0, N_BLOCKS), "no block was read after the stop"
        assert not daemon.ready.is_set()
        assert told[0] is PeerState.JOINING
        assert told[-1] is PeerState.GONE
        assert PeerState.ONLINE not in told
        assert daemon.peer_id not in [
            entry[0] for entry in PeersFile(tmp_path / "peers.json").load()
        ]
        assert "left the swarm" in caplog.text

    run_either(work())


def test_who_dials_a_node_that_loads_is_told_at_once(
    tiny: Path, tmp_path: Path, run_either: Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A node that was restarted at once: others still have its old announcement."""
    loading, go_on = threading.Event(), threading.Event()
    original = BlockSpan.__init__

    def slow(self: BlockSpan, *args: Any, **kwargs: Any) -> None:
        loading.set()
        assert go_on.wait(60)
        original(self, *args, **kwargs)

    monkeypatch.setattr(BlockSpan, "__init__", slow)

    async def work() -> None:
        daemon = Daemon(config(tiny, tmp_path))
        running = asyncio.ensure_future(daemon.run())
        await asyncio.to_thread(loading.wait, 60)
        assert daemon.address is not None
        for _ in range(3):
            with pytest.raises(ConnectionLost):
                await dial(daemon.address, Greeting(), timeout=60)
        go_on.set()
        await daemon.ready.wait()
        greeted = await dial(daemon.address, Greeting(), expected=daemon.peer_id)
        await greeted.connection.close()
        daemon.stop()
        await running

    run_either(work())


def test_a_slow_loader_is_not_waited_for(
    tiny: Path, tmp_path: Path, told: list[PeerState], run_async: Runner,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """Blocks that come one by one; each takes until the test allows it."""
    began, allowed = threading.Semaphore(0), threading.Semaphore(0)
    read: list[int] = []

    def slow(*_args: Any, progress: Any, **_kwargs: Any) -> None:
        for block in range(1000):
            began.release()
            assert allowed.acquire(timeout=60)
            read.append(block)
            progress(block + 1, 1000)

    monkeypatch.setattr(daemon_module, "BlockSpan", slow)

    async def work() -> None:
        daemon = Daemon(config(tiny, tmp_path))
        running = asyncio.ensure_future(daemon.run())
        for _ in range(3):
            await asyncio.to_thread(began.acquire, timeout=60)
            allowed.release()
        await asyncio.to_thread(began.acquire, timeout=60)
        daemon.stop()
        assert not running.done()
        allowed.release()  # the block under way ends, and no other begins
        await running
        assert read == [0, 1, 2, 3]
        assert told == [*[PeerState.JOINING] * (len(told) - 1), PeerState.GONE]

    run_async(work())


def test_a_cancel_ends_the_loading_thread_too(
    tiny: Path, tmp_path: Path, told: list[PeerState], run_async: Runner,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    ended = threading.Event()
    began = threading.Event()

    def slow(*_args: Any, progress: Any, **_kwargs: Any) -> None:
        try:
            began.set()
            while True:
                progress(0, 1)
        finally:
            ended.set()

    monkeypatch.setattr(daemon_module, "BlockSpan", slow)

    async def work() -> None:
        running = asyncio.ensure_future(Daemon(config(tiny, tmp_path)).run())
        assert await asyncio.to_thread(began.wait, 60)
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
        assert await asyncio.to_thread(ended.wait, 60)
        assert told[-1] is PeerState.GONE
        assert PeersFile(tmp_path / "peers.json").load() == []

    run_async(work())


def test_a_stop_before_the_node_joined(
    tiny: Path, tmp_path: Path, told: list[PeerState], run_async: Runner
) -> None:
    async def work() -> None:
        folder = tmp_path / "model"
        convert_folder(tiny, folder)
        (folder / "swarmd.json").unlink()  # the cached hashes: it is hashed again
        progress = Loading("hash", lambda: daemon.stop())
        daemon = Daemon(config(folder, tmp_path / "state"), progress=progress)
        await daemon.run()
        assert len(progress.reports) == 1
        assert told == []
        assert daemon.address is None

    run_async(work())


def test_a_node_that_is_not_stopped_shows_its_loading(
    tiny: Path, tmp_path: Path, run_async: Runner
) -> None:
    async def work() -> None:
        progress = Loading("", None)
        daemon = Daemon(config(tiny, tmp_path, Span(1, 4)), progress=progress)
        running = asyncio.ensure_future(daemon.run())
        await daemon.ready.wait()
        daemon.stop()
        await running
        found = progress.of(LOADING)
        assert found == sorted(found)
        assert found[-1] == (3, 3)

    run_async(work())


# ---- what the stages do when their progress raises ---------------------------------------------


def raising(prefix: str) -> Any:
    def halt(stage: str, done: int, total: int) -> None:
        if stage.startswith(prefix):
            raise Halt

    return halt


@pytest.mark.parametrize("family", ["llama", "mixtral", "bloom"])
def test_loading_stops_with_what_progress_raises(family: str, tmp_path: Path) -> None:
    folder = open_folder(save_tiny(family, tmp_path / family))
    calls: list[int] = []

    def halt(done: int, total: int) -> None:
        assert total == N_BLOCKS
        calls.append(done)
        if done >= 2:
            raise Halt

    with pytest.raises(Halt):
        BlockSpan(folder, Span(0, N_BLOCKS), dtype="float32", progress=halt)
    assert 2 in calls
    assert N_BLOCKS not in calls


def test_a_wait_for_another_conversion_ends(tiny: Path, tmp_path: Path) -> None:
    release, writing = threading.Event(), threading.Event()

    def hold() -> None:
        writing.set()
        assert release.wait(60)

    first = threading.Thread(
        target=convert_folder, args=(tiny, tmp_path / "out", Loading("write", hold))
    )
    first.start()
    try:
        assert writing.wait(60)
        with pytest.raises(Halt):
            convert_folder(tiny, tmp_path / "out", raising("wait"))
    finally:
        release.set()
        first.join(60)
    assert convert_folder(tiny, tmp_path / "out").n_blocks == N_BLOCKS


@pytest.fixture
def hub(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("SWARMD_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hf"))
    with FakeHub() as hub:
        hub.repos["owner/tiny"] = tiny
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        yield hub


@pytest.mark.no_leak_check
def test_a_download_that_is_stopped_leaves_no_part(hub: FakeHub, tmp_path: Path) -> None:
    with pytest.raises(Halt):
        resolve_model("owner/tiny", client=True, progress=raising("download model-"))
    assert not list((tmp_path / "hf").rglob("*.incomplete"))
    assert not list((tmp_path / "hf").rglob("model-*.safetensors"))
    assert fetch_model("owner/tiny", None, None, True).n_blocks == N_BLOCKS


@pytest.mark.no_leak_check
def test_a_download_that_reports_from_another_thread_is_stopped(
    hub: FakeHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As hf-xet does, which loses what a report raises."""
    real = huggingface_hub.hf_hub_download

    def download(repo: str, name: str, *, tqdm_class: Any, **kwargs: Any) -> str:
        if name.endswith(".safetensors"):
            thread = threading.Thread(target=tqdm_class().update, args=(1,))
            thread.start()
            thread.join()
            raise RuntimeError("cancelled")
        return str(real(repo, name, tqdm_class=tqdm_class, **kwargs))

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    with pytest.raises(Halt):
        fetch_model("owner/tiny", None, None, True, raising("download model-"))
