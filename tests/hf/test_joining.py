"""From a program of a few lines to real daemons: by address, by key file, by invite."""

from __future__ import annotations

import asyncio
import contextlib
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

import swarmd
from swarmd.blocks import BlockRequest, Span
from swarmd.config import DaemonConfig
from swarmd.errors import BootstrapFailed, UsageError
from swarmd.identity import Identity
from swarmd.invite import Contact, Invite
from swarmd.key_file import write_key_file
from swarmd.node.daemon import Daemon
from swarmd.peers import Address
from swarmd.swarm_key import PUBLIC_KEYS, KeyRing, SwarmKey
from tests.families import N_BLOCKS, save_tiny

ROOT = Path(__file__).resolve().parent.parent.parent
PRIVATE = KeyRing(SwarmKey(b"h" * 32))
ONE = torch.tensor([[3, 14, 15, 9, 26, 5, 35, 8]])
FAR: dict[str, Any] = {"eos_token_id": 96, "max_new_tokens": 6}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with a tokenizer of a few words."""
    folder = save_tiny("llama", tmp_path_factory.mktemp("joining") / "llama")
    words = [
        "<pad>",
        "<s>",
        "</s>",
        *["Once", "upon", "a", "time", ",", "by", "the", "sea", "there", "lived"],
    ]
    words += [f"word{number}" for number in range(97 - len(words))]
    model = WordLevel({word: number for number, word in enumerate(words)}, unk_token="<pad>")
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>").save_pretrained(folder)
    return folder


@contextlib.contextmanager
def daemon(folder: Path, state: Path, keys: KeyRing) -> Iterator[Daemon]:
    """A node with all blocks, on a thread of its own."""
    node = Daemon(
        DaemonConfig(
            model=str(folder),
            blocks=BlockRequest(span=Span(0, N_BLOCKS)),
            host="127.0.0.1",
            port=0,
            state_dir=state,
            keys=keys,
            entry_delay=0.0,
        )
    )
    loop, ready = asyncio.new_event_loop(), threading.Event()

    async def main() -> None:
        running = asyncio.ensure_future(node.run())
        waiting = asyncio.ensure_future(node.ready.wait())
        await asyncio.wait([running, waiting], return_when=asyncio.FIRST_COMPLETED)
        waiting.cancel()
        ready.set()
        await running

    thread = threading.Thread(target=loop.run_until_complete, args=(main(),))
    thread.start()
    try:
        assert ready.wait(60)
        assert node.address is not None
        yield node
    finally:
        loop.call_soon_threadsafe(node.stop)
        thread.join(60)
        loop.close()


def test_the_readmes_lines_run_as_they_are(tiny: Path, tmp_path: Path, capsys: Any) -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    found = re.search(r"## From Python\n.*?```python\n(.*?)```", readme, re.DOTALL)
    assert found is not None
    with daemon(tiny, tmp_path / "node", PUBLIC_KEYS) as node:
        lines = re.sub(r'name = ".*"', f'name = "{tiny}"', found[1])
        lines = re.sub(r'peers=\[".*?"\]', f'peers=["{node.address}"], state_dir=state', lines)
        lines = lines.replace("max_new_tokens=100", "max_new_tokens=8")
        names: dict[str, Any] = {"state": tmp_path / "client"}
        exec(lines, names)
        names["model"].close()
    whole = AutoModelForCausalLM.from_pretrained(str(tiny))
    tokenizer = AutoTokenizer.from_pretrained(names["model"].name_or_path)
    expected = whole.generate(**names["inputs"], max_new_tokens=8)
    assert capsys.readouterr().out.strip().endswith(tokenizer.decode(expected[0]))


def test_a_private_swarm_by_key_file_and_by_invite(tiny: Path, tmp_path: Path) -> None:
    expected = AutoModelForCausalLM.from_pretrained(str(tiny)).generate(ONE, **FAR).tolist()
    key_file = tmp_path / "home.key"
    write_key_file(key_file, PRIVATE)
    load = swarmd.AutoDistributedModelForCausalLM.from_pretrained
    with daemon(tiny, tmp_path / "node", PRIVATE) as node:
        assert node.address is not None
        peers, state = [str(node.address)], tmp_path / "client"
        with load(tiny, peers=peers, swarm_key=key_file, state_dir=state) as model:
            assert model.generate(ONE, **FAR).tolist() == expected
        contact = Contact(node.peer_id, node.address)
        invite = Invite((contact,), PRIVATE.current)
        with load(tiny, peers=[invite.text], state_dir=state, dtype="auto") as model:
            assert model.generate(ONE, **FAR).tolist() == expected
        stranger = Invite((Contact(Identity.generate().peer_id, node.address),), PRIVATE.current)
        with pytest.raises(BootstrapFailed):
            load(tiny, peers=[stranger.text], state_dir=state)
        with pytest.raises(UsageError, match="another swarm"):
            other = Invite((contact,), SwarmKey(b"o" * 32))
            load(tiny, peers=[other.text], swarm_key=key_file, state_dir=state)


def test_nobody_there_is_one_clear_error(tiny: Path, tmp_path: Path) -> None:
    load = swarmd.AutoDistributedModelForCausalLM.from_pretrained
    with pytest.raises(BootstrapFailed):
        load(tiny, state_dir=tmp_path)
    with pytest.raises(UsageError):
        load(tiny, peers=["no port"], state_dir=tmp_path)
    with pytest.raises(UsageError, match="from_pretrained"):
        swarmd.AutoDistributedModelForCausalLM()
    assert Address("127.0.0.1", 1).is_loopback


def test_the_package_stays_light_until_a_model_is_asked_for() -> None:
    script = "import sys, swarmd; assert 'torch' not in sys.modules, 'torch was imported'"
    subprocess.run([sys.executable, "-c", script], check=True, cwd=ROOT, timeout=60)
    with pytest.raises(AttributeError, match="no attribute"):
        swarmd.AutoDistributedModelForPainting  # noqa: B018
