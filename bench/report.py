"""Tables for people, JSON for the record: hardware and settings stand beside every figure."""

from __future__ import annotations

import json
import os
import platform
import subprocess
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

__all__ = ["save", "show"]

RESULTS = Path(__file__).parent / "results"


def show(title: str, headings: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Print a table to the terminal."""
    table = Table(title=title)
    for number, heading in enumerate(headings):
        table.add_column(heading, justify="left" if number == 0 else "right")
    for row in rows:
        table.add_row(*map(str, row))
    Console(highlight=False).print(table)


def save(name: str, settings: dict[str, Any], figures: dict[str, Any]) -> Path:
    """Write `bench/results/NAME.json` and return its path."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    record = {
        "bench": name,
        "when": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": _commit(),
        "machine": _machine(),
        "settings": settings,
        "figures": figures,
    }
    path.write_text(json.dumps(record, indent=1) + "\n")
    print(f"raw figures: {path.relative_to(RESULTS.parent.parent)}")
    return path


def _machine() -> dict[str, Any]:
    names = ("torch", "transformers", "uvloop", "kademlia", "msgpack", "zstandard")
    return {
        "cores": os.cpu_count(),
        "processor": _processor(),
        "python": platform.python_version(),
        **{name: version(name) for name in names},
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    found = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(found, platform.processor())


def _commit() -> str:
    done = subprocess.run(
        ["git", "describe", "--always", "--dirty"], capture_output=True, text=True, check=False
    )
    return done.stdout.strip()
