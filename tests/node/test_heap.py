"""Free memory between memory in use goes back to the system."""

from __future__ import annotations

import asyncio
import ctypes
import subprocess
import sys

import pytest

from swarmd.node import memory_probe

COMB = """
import psutil
from swarmd.node.memory_probe import trim_heap
mine = psutil.Process()
pieces = [bytes(20_000) for _ in range(5_000)]
del pieces[::2]
kept = pieces[::10]
del pieces
before = mine.memory_info().rss
trim_heap()
print(len(kept), before - mine.memory_info().rss)
"""


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "malloc_trim"), reason="needs glibc")
def test_a_comb_of_free_pieces_is_given_back() -> None:
    done = subprocess.run(
        [sys.executable, "-c", COMB], capture_output=True, text=True, check=True, timeout=120
    )
    kept, freed = map(int, done.stdout.split())
    assert kept == 250
    assert freed > 40e6


def test_it_is_done_again_and_again(monkeypatch: pytest.MonkeyPatch) -> None:
    trims: list[int] = []
    monkeypatch.setattr(memory_probe, "trim_heap", lambda: trims.append(1))

    async def main() -> None:
        task = asyncio.create_task(memory_probe.keep_trimmed(0.001))
        while len(trims) < 3:
            await asyncio.sleep(0.001)
        task.cancel()
        await asyncio.wait([task])

    asyncio.run(main())
