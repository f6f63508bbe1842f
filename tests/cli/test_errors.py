"""A user's mistake is one line that says what to do, with exit code 1 or 2; never a traceback."""

from __future__ import annotations

import json
import os
import socket
import subprocess
from pathlib import Path

import pytest

from bench.nodes import SWARMD, free_port
from tests.families import save_tiny

pytestmark = pytest.mark.no_leak_check


def run(state: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*SWARMD, *arguments],
        env={**os.environ, "SWARMD_STATE": str(state)},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )


def refused(done: subprocess.CompletedProcess[str], code: int, *words: str) -> None:
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    last = done.stderr.strip().splitlines()[-1]
    for word in words:
        assert word in last, last


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny("llama", tmp_path_factory.mktemp("model") / "tiny")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["serve", "--blocks", "twelve"], ["auto", "10:20"]),
        (["serve", "--blocks", "9:3"], ["auto", "10:20"]),
        (["serve", "--peer", "nonsense"], ["host:port"]),
        (["serve", "--memory", "lots"], ["350MB"]),
        (["serve", "--invite", "swarmd-invite-1-x"], ["swarmd invite"]),
        (["peers", "--peer", "swarmd-invite-1-x"], ["swarmd invite"]),
        (["serve", "--swarm-key", "no-such-file"], ["swarmd key new"]),
        (["generate", "x", "--swarm-key", "no-such-file"], ["swarmd key new"]),
        (["serve", "--host", "0.0.0.0", "--advertise", "1.2.3.4:x"], ["--advertise"]),
        (["api", "--host", "0.0.0.0"], ["--api-key-file"]),
        (["api", "--api-key", "short"], ["16", "openssl"]),
        (["api", "--api-key-file", "no-such-file"], ["no-such-file"]),
        (["key", "show", "no-such-file"], ["swarmd key new"]),
        (["invite", "--address", "here"], ["host:port"]),
        (["serve", "--host", "0.0.0.0"], ["--advertise"]),
        (["serve", "--device", "cuda:9"], ["--device cuda:9"]),
        (["serve", "--device", "abacus"], ["--device abacus"]),
        (["serve", "--max-connections", "0"], ["--max-connections", "1<=x<=65536"]),
        (["serve", "--max-connections", "many"], ["--max-connections"]),
        (["serve", "--kv-share", "0"], ["--kv-share", "1<=x<=100"]),
        (["serve", "--kv-share", "101"], ["--kv-share", "1<=x<=100"]),
        (["serve", "--max-upload", "0"], ["--max-upload", "0.01<=x"]),
        (["serve", "--max-upload", "nan"], ["--max-upload"]),
        (["serve", "--no-such-flag"], ["--no-such-flag"]),
        (["generate", "x", "--temperature", "-1"], ["--temperature"]),
        (["generate", "x", "--system", "y"], ["--chat"]),
        (["generate", "x", "--model", "what is this"], ["--model"]),
        (["generate", "x", "--codec", "int4"], ["raw", "zstd", "int8"]),
        (["generate", "x", "--codec", "int8", "--verify", "0.1"], ["--verify", "--codec"]),
        (["frobnicate"], ["frobnicate"]),
    ],
)
def test_misuse_exits_with_2(arguments: list[str], words: list[str], tmp_path: Path) -> None:
    refused(run(tmp_path, *arguments), 2, *words)


def test_blocks_beyond_the_model(tiny: Path, tmp_path: Path) -> None:
    done = run(tmp_path, "serve", "--model", str(tiny), "--blocks", "4:9")
    refused(done, 2, "--blocks 4:9", "0:6")
    done = run(tmp_path, "serve", "--model", str(tiny), "--blocks", "7")
    refused(done, 2, "only 6 blocks")


def test_memory_for_not_even_one_block(tiny: Path, tmp_path: Path) -> None:
    done = run(tmp_path, "serve", "--model", str(tiny), "--memory", "1MB")
    refused(done, 2, "--memory")


def test_model_folders_that_cannot_be_used(tiny: Path, tmp_path: Path) -> None:
    missing = run(tmp_path, "serve", "--model", str(tmp_path / "nowhere"))
    refused(missing, 1, "nowhere")
    broken = tmp_path / "broken"
    broken.mkdir()
    for file in tiny.iterdir():
        (broken / file.name).write_bytes(file.read_bytes())
    shard = next(broken.glob("*.safetensors"))
    shard.write_bytes(shard.read_bytes()[:-100])
    refused(run(tmp_path, "serve", "--model", str(broken)), 1, shard.name)
    (broken / "config.json").write_text("{")
    refused(run(tmp_path, "serve", "--model", str(broken)), 1, "config.json")
    (broken / "config.json").write_text(json.dumps({"model_type": "t5"}))
    refused(run(tmp_path, "serve", "--model", str(broken)), 1)


def test_a_busy_port(tiny: Path, tmp_path: Path) -> None:
    for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
        with socket.socket(socket.AF_INET, kind) as taken:
            taken.bind(("127.0.0.1", 0))
            if kind == socket.SOCK_STREAM:
                taken.listen()
            port = str(taken.getsockname()[1])
            done = run(tmp_path, "serve", "--model", str(tiny), "--port", port)
            refused(done, 1, port, "--port")


def test_an_unreachable_peer(tiny: Path, tmp_path: Path) -> None:
    address = f"127.0.0.1:{free_port()}"
    refused(run(tmp_path, "serve", "--model", str(tiny), "--peer", address), 1, address)
    refused(run(tmp_path, "peers", "--peer", address), 1, address)
    done = run(tmp_path, "generate", "x", "--model", str(tiny), "--peer", address)
    refused(done, 1, address)


def test_no_swarm_on_this_machine(tiny: Path, tmp_path: Path) -> None:
    refused(run(tmp_path, "peers"), 1, "swarmd serve")
    refused(run(tmp_path, "generate", "x", "--model", str(tiny)), 1, "swarmd serve")


def test_a_state_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    refused(run(tmp_path / "file" / "state", "peers"), 1, "--state-dir")


def test_help_and_version_are_light(tmp_path: Path) -> None:
    """`--help`, `version` and `peers` never import torch."""
    code = (
        "import sys; from swarmd.cli import main\n"
        "try: main(sys.argv[1:])\n"
        "except SystemExit: pass\n"
        "assert 'torch' not in sys.modules, 'torch was imported'"
    )
    import sys

    for arguments in (["--help"], ["version"], ["peers"], ["peers", "--help"], ["serve", "--help"]):
        done = subprocess.run(
            [sys.executable, "-c", code, *arguments],
            env={**os.environ, "SWARMD_STATE": str(tmp_path)},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
