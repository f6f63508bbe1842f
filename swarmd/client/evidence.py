"""What is kept when peers were caught: who said what, where, and what it differed by.

`evidence.json` in the state folder. It holds ids, numbers and hashes: no token, no text and no
activation of the user's. A hash of one output can at most confirm a guess of the whole prompt.
Those that were convicted lately are left out of later chains (`liars`); to pardon them, delete
the file.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import threading
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from swarmd.atomic_file import write_file
from swarmd.blocks import Span
from swarmd.errors import StateError
from swarmd.identity import PEER_ID_BYTES, PeerId
from swarmd.routing.verification import Verdict

__all__ = ["Evidence", "EvidenceFile"]

MAX_RECORDS = 200
"""Records kept, the newest; about 600 bytes each."""
MAX_FILE_BYTES = 1 << 20
"""A larger file is not ours."""
REMEMBERED_SECONDS = 7 * 86400.0
"""How long a conviction counts: hardware is repaired, and a majority may have been wrong."""


@dataclass(frozen=True, slots=True)
class Evidence:
    """One dispute. `opinions` are the peers that were asked, the hop first, and the SHA-256 of
    what each gave for `position`; `difference` is that of the first two, and the positions
    `[position, end)` were under check. `liar` is None where nothing was settled."""

    verdict: Verdict
    liar: PeerId | None
    span: Span
    position: int
    end: int
    dtype: str
    difference: float
    tolerance: float
    opinions: tuple[tuple[PeerId, str], ...]
    model_id: str
    wall: float

    def to_json(self) -> dict[str, Any]:
        return {
            "time": round(self.wall, 3),
            "verdict": self.verdict.value,
            "liar": None if self.liar is None else str(self.liar),
            "model": self.model_id,
            "blocks": str(self.span),
            "position": self.position,
            "end": self.end,
            "dtype": self.dtype,
            "difference": min(self.difference, 1e300),  # JSON has no infinity
            "tolerance": self.tolerance,
            "opinions": [{"peer": str(peer), "sha256": sha} for peer, sha in self.opinions],
        }


class EvidenceFile:
    """`{"records": [...]}`, newest last, written as a new file that replaces the old one. A file
    that is missing or garbage counts as empty."""

    _writing = threading.Lock()

    def __init__(self, path: Path) -> None:
        self.path = path

    def load(self) -> list[dict[str, Any]]:
        """The records on disk. Never raises."""
        try:
            with self.path.open("rb") as file:
                records = json.loads(file.read(MAX_FILE_BYTES))["records"]
            return [record for record in records if isinstance(record, dict)][-MAX_RECORDS:]
        except (OSError, ValueError, TypeError, KeyError, RecursionError):
            return []

    def liars(self, wall: float) -> frozenset[PeerId]:
        """Who was convicted within the last seven days before `wall` (seconds since the epoch)."""
        return frozenset(_liars(self.load(), wall))

    def record(self, evidence: Evidence) -> None:
        """Add a record, mode 0600. Raises StateError when the file cannot be written."""
        try:
            with self._writing:
                records = [*self.load(), evidence.to_json()][-MAX_RECORDS:]
                self.path.parent.mkdir(parents=True, exist_ok=True)
                write_file(self.path, json.dumps({"records": records}, indent=1))
        except OSError as error:
            raise StateError(
                f"cannot write the evidence file {self.path}: {error.strerror or error}; check "
                "the folder's owner and free space, or choose another by --state-dir"
            ) from error

    async def async_record(self, evidence: Evidence) -> None:
        """`record`, off the event loop."""
        await asyncio.to_thread(self.record, evidence)


def _liars(records: Iterable[dict[str, Any]], wall: float) -> Iterable[PeerId]:
    for record in records:
        liar, when = record.get("liar"), record.get("time")
        if not isinstance(liar, str) or not isinstance(when, int | float):
            continue
        if not wall - REMEMBERED_SECONDS <= when <= wall + REMEMBERED_SECONDS:
            continue
        with contextlib.suppress(ValueError):
            raw = bytes.fromhex(liar)
            if len(raw) == PEER_ID_BYTES:
                yield PeerId(raw)
