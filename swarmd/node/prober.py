"""Puts a probe token through a node's own blocks, so that `ready` means that they compute."""

from __future__ import annotations

import asyncio
import logging
import time

import torch

from swarmd.compute.engine import Engine
from swarmd.compute.weights import torch_dtype
from swarmd.errors import Busy, InternalError, SwarmdError
from swarmd.node.parts import NodeParts
from swarmd.node.readiness import Readiness, Verdict
from swarmd.tasks import TaskOwner

__all__ = ["Prober", "probe"]

log = logging.getLogger(__name__)
PROBE_TIMEOUT = 20.0
"""Seconds for the probe's turn: it may come after the longest piece of a prompt on a slow CPU."""
ANSWER_WITHIN = 1.0
"""Seconds that who asks waits for a probe; then the last one's outcome is the answer."""


async def probe(engine: Engine, hidden_size: int, timeout: float = PROBE_TIMEOUT) -> None:
    """Run one token through all blocks of `engine`, in a session of its own.

    Raises Busy where its cache has no room, DeadlineExceeded, and InternalError for an output of
    another shape or that is not finite, or none within `timeout` seconds.
    """
    blocks = engine.blocks
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn((1, 1, hidden_size), generator=generator).to(torch_dtype(blocks.dtype))
    session = engine.open(blocks.span, 1)
    try:
        async with asyncio.timeout(timeout):
            out = (await engine.step(session, 0, hidden)).hidden
    except TimeoutError as error:
        raise InternalError(f"no output within {timeout:g} s") from error
    finally:
        engine.close(session)
    if out.shape != hidden.shape:
        raise InternalError(f"an output of shape {list(out.shape)}, not {list(hidden.shape)}")
    if not bool(torch.isfinite(out).all()):
        raise InternalError("an output that is not finite")


class Prober:
    """Says whether a node is ready; probes belong to `owner`."""

    def __init__(
        self,
        parts: NodeParts,
        stopping: asyncio.Event,
        owner: TaskOwner,
        *,
        readiness: Readiness | None = None,
    ) -> None:
        self._parts = parts
        self._stopping = stopping
        self._owner = owner
        self._readiness = readiness or Readiness()
        self._probing: asyncio.Task[None] | None = None

    async def verdict(self) -> Verdict:
        """Whether the node is ready now; a probe that is due is begun, and waited for a while."""
        readiness, server = self._readiness, self._parts.server
        if self._stopping.is_set():
            readiness.leaving()
        elif server is not None:
            readiness.loaded()
            probing = self._probing is not None and not self._probing.done()
            if not probing and readiness.due(time.monotonic()):
                work = self._probe(server.engine, server.model.hidden_size)
                self._probing = self._owner.spawn(work, name="probe", errors="log")
        if self._probing is not None and not self._probing.done():
            await asyncio.wait([self._probing], timeout=ANSWER_WITHIN)
        return readiness.verdict

    async def _probe(self, engine: Engine, hidden_size: int) -> None:
        try:
            await probe(engine, hidden_size)
        except Busy as error:  # the engine answers; its cache is full
            self._readiness.postponed(str(error))
        except SwarmdError as error:
            log.warning("the node's own probe failed: %s", error)
            self._readiness.failed(str(error))
        else:
            self._readiness.passed()
