"""Beginnings that several sessions share are computed once: the pages and outputs are reused."""

from __future__ import annotations

import torch

from swarmd.compute.kv_arena import KvArena
from swarmd.compute.kv_cache import SessionCache
from swarmd.compute.pages import PAGE_TOKENS
from swarmd.compute.prefixes import page_names
from swarmd.errors import Busy

__all__ = ["PrefixSharing"]


class PrefixSharing:
    """Finds and keeps pages by name in `arena`. The engine's thread owns it.

    `asked`: tokens of steps that could have been found, `found`: those that were.
    """

    def __init__(self, arena: KvArena) -> None:
        self._arena = arena
        self.asked = 0
        self.found = 0

    @property
    def hit_rate(self) -> float:
        """The part of the tokens in question that needed no computing; 0 before there were any."""
        return self.found / self.asked if self.asked else 0.0

    def names_of(self, cache: SessionCache, start: int, hidden: torch.Tensor) -> list[bytes]:
        """The names of the pages that a step at `start` fills; none if it does not begin with a
        page, or if what comes before has no name."""
        first = start // PAGE_TOKENS
        if start % PAGE_TOKENS or len(cache.names) < first or hidden.shape[1] < PAGE_TOKENS:
            return []
        raw = hidden[0].contiguous().view(torch.uint8).numpy().data.cast("B")
        token_bytes = hidden.shape[2] * hidden.element_size()
        return page_names(cache.blocks, cache.names[:first], raw, token_bytes)

    def adopt(self, cache: SessionCache, start: int, names: list[bytes]) -> torch.Tensor | None:
        """Cut the session back to `start` and let it hold all pages that are there by these names.

        Returns their outputs (1, tokens, hidden size), or None if there are none.
        """
        self.asked += len(names) * PAGE_TOKENS
        pages = []
        for name in names:
            page = self._arena.pool.find(name)
            if page is None:
                break
            pages.append(page)
        if not pages or start > cache.position:
            return None
        cache.cut_to_pages(start)
        adopted = []
        for page, name in zip(pages, names, strict=False):
            try:
                cache.adopt(page, name)
            except Busy:  # the client's share is full; the step itself will say so
                break
            adopted.append(self._arena.outputs[page])
        self.found += len(adopted) * PAGE_TOKENS
        return torch.cat(adopted).unsqueeze(0) if adopted else None

    def keep(
        self, cache: SessionCache, start: int, names: list[bytes], output: torch.Tensor
    ) -> None:
        """Remember what a step at `start` gave, (1, tokens, hidden size), by its pages' names."""
        first = start // PAGE_TOKENS
        for index, name in enumerate(names):
            if len(cache.names) > first + index:
                continue  # adopted
            page = cache.pages[first + index]
            if not self._arena.pool.name(page, name):
                pass  # another session computed the same just now; its page is found by that name
            else:
                part = output[0, index * PAGE_TOKENS : (index + 1) * PAGE_TOKENS]
                self._arena.outputs[page].copy_(part)
            cache.names.append(name)
