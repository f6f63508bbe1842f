"""`swarmd doctor`: what each check finds on a machine that is well, and on one that is not."""

from __future__ import annotations

import json
import socket
from pathlib import Path

import pytest

from bench.nodes import free_port
from swarmd.cli import main
from swarmd.client.swarm import SwarmClient
from swarmd.compute.model_folder import open_folder
from swarmd.config import DaemonConfig
from swarmd.dht.config import DhtConfig
from swarmd.errors import BootstrapFailed
from swarmd.identity import PeerId
from swarmd.node import checkup, checkup_swarm
from swarmd.node.checkup import Level
from swarmd.node.reachability import Answer
from swarmd.peers import Address
from swarmd.running import RunningNode, noted
from swarmd.state import StateFolder
from swarmd.swarm_key import PUBLIC_KEYS
from tests.conftest import Runner
from tests.families import save_tiny
from tests.local_swarm import LocalSwarm
from tests.node.hostile_client import ALL


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny("llama", tmp_path_factory.mktemp("doctor") / "tiny")


@pytest.mark.parametrize("kind", [socket.SOCK_STREAM, socket.SOCK_DGRAM])
def test_a_port_is_free_only_for_both(kind: int, tmp_path: Path) -> None:
    state = StateFolder(tmp_path)
    with socket.socket(socket.AF_INET, kind) as taken:
        number = free_port()
        taken.bind(("127.0.0.1", number))
        if kind == socket.SOCK_STREAM:
            taken.listen()
        found, free = checkup.port(DaemonConfig(port=number), state)
        assert (found.level, free) == (Level.FAIL, None)
        assert "--port" in found.remedy
        mine = RunningNode(
            PeerId(b"p" * 20), Address("127.0.0.1", number), PUBLIC_KEYS.current.swarm_id
        )
        with noted(tmp_path, mine):
            assert checkup.port(DaemonConfig(port=number), state)[0].level is Level.OK
    found, free = checkup.port(DaemonConfig(port=number), state)
    assert (found.level, free) == (Level.OK, number)
    found, free = checkup.port(DaemonConfig(host="192.0.2.1", port=number), state)
    assert (found.level, free) == (Level.FAIL, None)
    assert "--host" in found.remedy


def test_the_state_folder(tmp_path: Path) -> None:
    with StateFolder(tmp_path / "state").identity():
        assert checkup.state(tmp_path / "state").level is Level.OK
    key = tmp_path / "state" / "identity" / "0.key"
    key.chmod(0o644)
    found = checkup.state(tmp_path / "state")
    assert (found.level, found.remedy) == (Level.FAIL, f"chmod 600 {key}")
    key.chmod(0o600)
    key.write_bytes(b"short")
    assert checkup.state(tmp_path / "state").level is Level.FAIL
    (tmp_path / "file").write_text("")
    assert "--state-dir" in checkup.state(tmp_path / "file" / "state").remedy


def test_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SWARMD_CACHE", str(tmp_path / "not" / "yet"))
    monkeypatch.setattr(checkup, "LITTLE_DISK", 0)
    assert checkup.disk().level is Level.OK
    monkeypatch.setattr(checkup, "LITTLE_DISK", 1 << 80)
    assert checkup.disk().level is Level.WARN
    monkeypatch.setattr(checkup, "NO_DISK", 1 << 80)
    assert checkup.disk().level is Level.FAIL
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("SWARMD_CACHE", str(tmp_path / "file"))
    assert "$SWARMD_CACHE" in checkup.disk().remedy


def test_memory_for_the_model(model: Path) -> None:
    folder = open_folder(model)
    found = checkup.memory(DaemonConfig(), folder)
    assert found.level is Level.OK
    assert "6 of the 6 blocks" in found.found
    small = checkup.memory(DaemonConfig(memory=1 << 20), folder)
    assert small.level is Level.FAIL
    assert "--kv-tokens" in small.remedy


def test_a_device_that_torch_does_not_know() -> None:
    assert checkup.python().level is Level.OK
    assert checkup.torch_build("cpu").level is not Level.FAIL


@pytest.mark.parametrize(
    ("offset", "level", "word"),
    [
        (None, Level.OK, "not compared"),
        (-1.0, Level.OK, "ahead"),
        (6.0, Level.WARN, "behind"),
        (-31.0, Level.FAIL, "ahead"),
    ],
)
def test_the_clock(offset: float | None, level: Level, word: str) -> None:
    found = checkup_swarm.clock(offset, DhtConfig())
    assert found.level is level
    assert word in found.found


def test_others_dial_us_and_say_what_they_found(model: Path, run_async: Runner) -> None:
    swarm = LocalSwarm(open_folder(model))

    async def scenario() -> None:
        async with swarm.running([ALL]):
            peers = [peer.info for peer in swarm.peers]
            port = free_port()
            found = await checkup_swarm.reachability(
                "127.0.0.1", port, peers, PUBLIC_KEYS, loopback=True
            )
            assert found.level is Level.OK
            assert str(port) in found.found
            # nobody on loopback is asked about an address of the network
            found = await checkup_swarm.reachability("127.0.0.1", port, peers, PUBLIC_KEYS)
            assert "no node could be asked" in found.found

    run_async(scenario())


def test_who_cannot_be_dialled_is_told_what_to_do() -> None:
    found = checkup_swarm._finding(31330, [Answer(False, "192.0.2.1\x1b")])
    assert found.level is Level.WARN
    assert "firewall" in found.remedy
    assert "\x1b" not in found.found


def doctor(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, dict[str, str]]:
    capsys.readouterr()
    with pytest.raises(SystemExit) as ended:
        main(["doctor", "--json", *map(str, arguments)])
    checks = json.loads(capsys.readouterr().out)["checks"]
    for one in checks:
        assert (one["level"] == "ok") or one["remedy"], one
    return int(ended.value.code or 0), {one["name"]: one["level"] for one in checks}


def test_the_exit_code_says_whether_a_check_failed(
    model: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    port = free_port()
    common = ["--state-dir", tmp_path, "--port", port]
    code, levels = doctor(capsys, *common, "--model", model)
    assert (code, levels["memory"], levels["swarm"]) == (0, "ok", "ok")
    assert set(levels) == {"python", "torch", "memory", "state", "disk", "port", "swarm"}
    code, levels = doctor(capsys, *common, "--model", tmp_path)
    assert (code, levels["model"]) == (1, "fail")
    code, levels = doctor(capsys, *common, "--model", "owner/name")
    assert (code, levels["model"]) == (0, "warn")
    # on loopback a node elsewhere is not asked, also if it is named
    code, levels = doctor(capsys, *common, "--peer", "192.0.2.1:31330")
    assert (code, levels["swarm"]) == (0, "ok")

    async def nobody(_client: SwarmClient) -> SwarmClient:
        raise BootstrapFailed("nobody answers")

    monkeypatch.setattr(SwarmClient, "__aenter__", nobody)
    code, levels = doctor(capsys, *common, "--peer", "127.0.0.1:1")
    assert (code, levels["swarm"]) == (0, "warn")
    (tmp_path / "file").write_text("")
    code, levels = doctor(capsys, "--state-dir", tmp_path / "file" / "state")
    assert (code, levels["state"]) == (1, "fail")
