"""What a gateway knows of its swarm, for the web page."""

from __future__ import annotations

from collections.abc import Sequence

from swarmd.api.errors import ApiError
from swarmd.api.gateway import AnyGateway
from swarmd.api.swarm_feed import SwarmSource
from swarmd.api.swarm_view import Doubts, ModelSeen

__all__ = ["gateway_source"]


def gateway_source(gateway: AnyGateway) -> SwarmSource:
    """The model of `gateway` and its answers; no model while a node is starting."""

    doubts = Doubts()

    async def refresh(age: float) -> None:
        try:
            router = gateway.router
        except ApiError:
            return
        await router.refresh(newer_than=router.clock.monotonic() - age)

    def models() -> Sequence[ModelSeen]:
        try:
            router = gateway.router
        except ApiError:
            return ()
        banned = router.health.banned(router.clock.monotonic())
        doubtful = doubts.update(router.view, banned)
        return (ModelSeen(router.view, doubtful, router.rtts.get),)

    return SwarmSource(
        refresh=refresh,
        models=models,
        answers=lambda: [answers.seen() for answers in gateway.running],
        tokens=lambda: gateway.counts.completion_tokens,
    )
