"""Steps of drafted tokens that are put in behind the one under way, before that is answered.

They hold as long as all that was drafted before them was right: then the next step finds itself on
its way already. Else it cuts them back, as it does with every wrong draft.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence

from swarmd.client.drafting import Draft, Drafting
from swarmd.client.forward import Run, embed
from swarmd.client.session import Session
from swarmd.compute.ends import ModelEnds

__all__ = ["StepsAhead"]


class StepsAhead:
    """Of one answer; without `drafting` there are none."""

    def __init__(
        self, ends: ModelEnds, session: Session, drafting: Drafting | None, run: Run
    ) -> None:
        self._ends = ends
        self._session = session
        self._drafting = drafting
        self._run = run
        self._waiting: deque[Draft] = deque()
        if drafting is not None:
            drafting.stage = session.stage_seconds

    @property
    def following(self) -> Draft | None:
        """All tokens of the step behind the one under way."""
        return self._waiting[0] if self._waiting else None

    @property
    def first(self) -> int | None:
        """What the step under way has to end with, for that one to hold."""
        return self._waiting[0].tokens[0] if self._waiting else None

    def take(self) -> Draft | None:
        """What is drafted of the next step, if that was put in and holds: its first token was
        chosen meanwhile."""
        if not self._waiting:
            return None
        step = self._waiting.popleft()
        return Draft(step.tokens[1:], (), step.kind)

    def clear(self) -> None:
        """None of them hold. The next step cuts them back."""
        self._waiting.clear()

    async def step(
        self, start: int, data: bytes, tokens: int, text: Sequence[int], room: int
    ) -> bytes:
        """`Session.step`. While it is under way, steps are put in behind it and those that wait
        already: `text` are all tokens up to its end, and `room` how many more may follow.

        Raises what the session's step raises.
        """
        if self._drafting is None or not self._drafting.ahead:
            return await self._session.step(start, data, tokens)
        if self._waiting and not self._drafting.takes_time:  # at once: its answer may be here
            await self._fill(text, room)
            return await self._session.step(start, data, tokens)
        filling = asyncio.ensure_future(self._fill(text, room))
        try:
            return await self._session.step(start, data, tokens)
        finally:
            filling.cancel()
            await asyncio.wait([filling])
            if not filling.cancelled():
                filling.result()  # raises what went wrong with it

    async def _fill(self, text: Sequence[int], room: int) -> None:
        assert self._drafting is not None
        text = [*text, *(token for step in self._waiting for token in step.tokens)]
        room -= sum(len(step.tokens) for step in self._waiting)
        while len(self._waiting) < self._drafting.ahead:
            draft = await self._drafting.next(text, room)
            if not draft.tokens:
                return
            data = await embed(self._ends, draft.tokens, len(text), self._run)
            if not self._session.ahead(len(text), data, len(draft.tokens)):
                return
            self._drafting.put_in(len(draft.tokens))
            self._waiting.append(draft)
            text += draft.tokens
            room -= len(draft.tokens)
