"""What an answer needs of a session over all blocks, whoever keeps it."""

from __future__ import annotations

from typing import Protocol

from swarmd.client.spot_checks import SpotChecks

__all__ = ["Session"]


class Session(Protocol):
    """A :class:`~swarmd.client.chain_session.ChainSession`, or a
    :class:`~swarmd.client.moving_session.MovingSession` that changes its chain."""

    max_length: int

    @property
    def checks(self) -> SpotChecks | None: ...

    @property
    def story(self) -> tuple[str, ...]: ...

    def stage_seconds(self, tokens: int) -> float: ...

    def ahead(self, start: int, data: bytes, tokens: int) -> bool: ...

    async def step(self, start: int, data: bytes, tokens: int) -> bytes: ...

    async def settle(self, end: int | None = None) -> None: ...
