"""What every command needs around its work: the event loop, logging, progress, quiet libraries."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import sys
from collections.abc import Coroutine
from typing import Any, TypeVar

from rich.console import Console
from rich.filesize import decimal
from rich.progress import (
    BarColumn,
    Progress,
    ProgressColumn,
    Task,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)
from rich.text import Text

__all__ = ["ProgressBars", "prepare_libraries", "run", "set_up_logging", "stderr", "stdout"]

T = TypeVar("T")
stderr = Console(stderr=True, highlight=False)
stdout = Console(highlight=False, markup=False, emoji=False)


def run(work: Coroutine[Any, Any, T]) -> T:
    """Run to the end on uvloop, or on plain asyncio where uvloop does not exist."""
    if sys.platform != "win32":
        import uvloop

        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            return runner.run(work)
    return asyncio.run(work)


def prepare_libraries(threads: int | None = None) -> None:
    """Set before torch and the tokenizers are imported: they read these once."""
    # Idle OpenMP threads would spin for milliseconds, and keep the next hop (or the client) on
    # the same machine from its core.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    if threads is not None:
        os.environ.setdefault("OMP_NUM_THREADS", str(threads))


class _JsonFormatter(logging.Formatter):
    """One JSON object a line: time, level, logger, message, and the trace of an exception."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "time": round(record.created, 3),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False)


class _TextFormatter(logging.Formatter):
    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)-7s %(message)s", "%H:%M:%S")


def set_up_logging(log_format: str, *, verbose: bool, quiet: bool = False) -> None:
    """swarmd's own log lines go to stderr; other libraries speak from WARNING on."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_JsonFormatter() if log_format == "json" else _TextFormatter())
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
    level = logging.DEBUG if verbose else logging.WARNING if quiet else logging.INFO
    logging.getLogger("swarmd").setLevel(level)


COUNTED = frozenset({"dequantize", "loading blocks", "read", "wait"})
"""Stages of which a unit is not a byte, but a tensor, a block or a file."""


class _Amount(ProgressColumn):
    """How much is done and how fast: `1.2/3.4 GB, 56.7 MB/s`, or `3/30`."""

    def render(self, task: Task) -> Text:
        total = task.total or 0
        if task.description in COUNTED:
            return Text(f"{task.completed:.0f}/{total:.0f}")
        done = f"{decimal(int(task.completed))} of {decimal(int(total))}"
        return Text(done + (f", {decimal(int(task.speed))}/s" if task.speed else ""))


class ProgressBars:
    """Bars for long preparations, on a terminal only; elsewhere one line a stage. Of bytes they
    say how many, how many a second, and the time left; in colour unless `NO_COLOR` is set.

    `update` is thread-safe and has the signature that model loading calls.
    """

    def __init__(self) -> None:
        self._progress: Progress | None = None
        self._tasks: dict[str, TaskID] = {}
        self._announced: set[str] = set()

    def __enter__(self) -> ProgressBars:
        return self

    def __exit__(self, *_exc: object) -> None:
        if self._progress is None:
            return
        if _exc[0] is None:  # a stage that ended between two reports is done all the same
            for task in self._progress.tasks:
                self._progress.update(task.id, completed=task.total)
        self._progress.stop()

    def update(self, stage: str, done: int, total: int) -> None:
        if not stderr.is_terminal:
            if stage not in self._announced:
                self._announced.add(stage)
                stderr.print(f"{stage} …", markup=False)
            return
        if self._progress is None:
            self._progress = Progress(
                TextColumn("{task.description}", markup=False),
                BarColumn(),
                TextColumn("{task.percentage:>3.0f}%"),
                _Amount(),
                TimeRemainingColumn(),
                console=stderr,
            )
            self._progress.start()
        if stage not in self._tasks:
            self._tasks[stage] = self._progress.add_task(stage, total=total or None)
        self._progress.update(self._tasks[stage], completed=done, total=total or None)
