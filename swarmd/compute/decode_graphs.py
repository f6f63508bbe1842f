"""Decode steps on a GPU as CUDA graphs: one launch for a whole run instead of thousands.

A decode step of a large model on a fast GPU is bound by the time that it takes to launch kernels,
not by their work. A graph replays all launches at once, but always on the same buffers and shapes.
So there is one for each *bucket*: a number of rows and a number of pages that a row may see, both
rounded up. A row's pages are looked up inside the graph, in a table that is one of its inputs, so
sessions may lie anywhere in the cache. Rows that pad a bucket write to a page that nobody holds.

Graphs are captured when a bucket is first used, which costs some eager runs. What a model does that
cannot be captured (experts that are chosen on the host, for one) shows in the first capture; such
a model runs eagerly.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention

from swarmd.blocks import Span
from swarmd.compute.kv_arena import KvArena
from swarmd.compute.paged_attention import PagedCache, running
from swarmd.compute.pages import PAGE_TOKENS, pages_for
from swarmd.compute.ragged_batch import Piece, attend_with_weights

__all__ = ["MAX_ROWS", "DecodeGraphs"]

log = logging.getLogger(__name__)

MAX_ROWS = 64
"""Tokens of one replay."""
SMALLEST_TABLE = 8
"""Pages of the smallest bucket: 256 positions."""
MAX_GRAPHS = 48
"""Those not used for longest are given up; each holds its launches and buffers."""
WARM_UPS = 2

Forward = Callable[[Span, torch.Tensor, torch.Tensor, Any], torch.Tensor]
"""Blocks, hidden states (rows, 1, hidden size), positions (rows, 1), cache: the output."""


@dataclass(frozen=True, slots=True)
class _Bucket:
    blocks: Span
    rows: int
    pages: int


class _StaticBatch:
    """The attention of all rows of a bucket, by shapes that never change."""

    def __init__(
        self, arena: KvArena, bucket: _Bucket, first_block: int, chunks: Sequence[int | None]
    ) -> None:
        device = arena.keys[0].device
        self._arena = arena
        self._first = first_block
        self._chunks = chunks
        self._bucket = bucket
        rows, pages = bucket.rows, bucket.pages
        self.index = torch.zeros(rows * (2 + pages), dtype=torch.long, device=device)
        self.positions = self.index[:rows].view(rows, 1)
        self._places = self.index[rows : 2 * rows]
        self._table = self.index[2 * rows :].view(rows, pages)
        self._all = torch.arange(pages * PAGE_TOKENS, device=device)

    def begin(self) -> None:
        """What all layers share; part of what is captured."""
        self._masks: dict[tuple[int, int], torch.Tensor] = {}

    def write(self, layer: int, keys: torch.Tensor, values: torch.Tensor) -> None:
        for buffers, new in ((self._arena.keys, keys), (self._arena.values, values)):
            buffer = buffers[self._first + layer]
            buffer.index_copy_(1, self._places, new.squeeze(2).transpose(0, 1).to(buffer.dtype))

    def attend(
        self,
        module: Any,
        query: torch.Tensor,
        scaling: float,
        window: int | None,
        softcap: float | None,
        sinks: torch.Tensor | None,
    ) -> torch.Tensor:
        layer: int = module.layer_idx
        keys = self._read(self._arena.keys[self._first + layer])
        values = self._read(self._arena.values[self._first + layer])
        if (expand := getattr(module, "expand_kv", None)) is not None:
            keys, values = expand(keys, values)
        rows, heads, _, width = query.shape
        group = heads // keys.shape[1]
        folded = query.view(rows, keys.shape[1], group, width)
        mask = self._mask(window or 0, self._chunks[layer] or 0)
        if softcap is None and sinks is None:
            out = scaled_dot_product_attention(
                folded, keys, values, attn_mask=mask.expand(-1, -1, group, -1), scale=scaling
            )
        else:
            grouped = None
            if sinks is not None:
                grouped = sinks.view(1, -1, group).expand(rows, -1, -1)
            out = attend_with_weights(folded, keys, values, mask, scaling, softcap, grouped)
        return out.reshape(rows, 1, heads, values.shape[-1])

    def _read(self, buffer: torch.Tensor) -> torch.Tensor:
        """(rows, heads, positions, width) of every row's pages."""
        heads, places, width = buffer.shape
        by_page = buffer.view(heads, places // PAGE_TOKENS, PAGE_TOKENS * width)
        found = by_page[:, self._table]  # heads, rows, pages, a page's positions and width
        return found.view(heads, self._bucket.rows, -1, width).transpose(0, 1)

    def _mask(self, window: int, chunk: int) -> torch.Tensor:
        """(rows, 1, 1, positions)"""
        if (window, chunk) not in self._masks:
            mask = self._all <= self.positions
            if window:
                mask = mask & (self._all > self.positions - window)
            if chunk:
                mask = mask & (self._all // chunk == self.positions // chunk)
            self._masks[window, chunk] = mask[:, None, None, :]
        return self._masks[window, chunk]


class _Graph:
    """One captured bucket: its inputs on the device, and where the host puts them together."""

    def __init__(
        self,
        forward: Forward,
        arena: KvArena,
        bucket: _Bucket,
        first_block: int,
        chunks: Sequence[int | None],
        pool: Any,
    ) -> None:
        device = arena.keys[0].device
        self._bucket = bucket
        self._scratch = arena.scratch_slot
        self._batch = _StaticBatch(arena, bucket, first_block, chunks)
        self._host_index = torch.zeros(self._batch.index.shape, dtype=torch.long).pin_memory()
        self._host_index[bucket.rows : 2 * bucket.rows] = self._scratch
        self._batch.index.copy_(self._host_index)
        hidden_size, dtype = arena.outputs.shape[2], arena.outputs.dtype
        self._hidden = torch.zeros(bucket.rows, 1, hidden_size, dtype=dtype, device=device)

        def run() -> torch.Tensor:
            self._batch.begin()
            with running(self._batch):
                cache = PagedCache(self._batch)
                return forward(bucket.blocks, self._hidden, self._batch.positions, cache)

        side = torch.cuda.Stream(device)
        side.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(side):
            for _ in range(WARM_UPS):
                run()
        torch.cuda.current_stream(device).wait_stream(side)
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph, pool=pool):
            self._output = run()

    def replay(self, pieces: Sequence[Piece], hidden: torch.Tensor) -> torch.Tensor:
        """`hidden` (rows, 1, hidden size) of the pieces, as many rows or fewer than the bucket."""
        rows, pages = self._bucket.rows, self._bucket.pages
        index = self._host_index.numpy()
        table = index[2 * rows :].reshape(rows, pages)
        row = 0
        for piece in pieces:
            held = piece.cache.pages[:pages]
            for offset in range(piece.tokens):
                position = piece.start + offset
                index[row] = position
                page = piece.cache.pages[position // PAGE_TOKENS]
                index[rows + row] = page * PAGE_TOKENS + position % PAGE_TOKENS
                table[row, : len(held)] = held
                row += 1
        index[row:rows] = 0
        index[rows + row : 2 * rows] = self._scratch
        self._batch.index.copy_(self._host_index, non_blocking=True)
        self._hidden[:row].copy_(hidden, non_blocking=True)
        self._graph.replay()
        return self._output[:row].clone()


class DecodeGraphs:
    """The graphs of one arena. The engine's thread owns them."""

    def __init__(
        self, forward: Forward, chunk_sizes: Callable[[Span], list[int | None]], arena: KvArena
    ) -> None:
        self._forward = forward
        self._chunk_sizes = chunk_sizes
        self._arena = arena
        self._graphs: OrderedDict[_Bucket, _Graph] = OrderedDict()
        self._pool = torch.cuda.graph_pool_handle()
        self.works = True

    def takes(self, pieces: Sequence[Piece]) -> bool:
        """Whether these pieces are for a graph: few rows, and all of them together."""
        return self.works and sum(piece.tokens for piece in pieces) <= MAX_ROWS

    def run(
        self, blocks: Span, pieces: Sequence[Piece], hidden: torch.Tensor
    ) -> torch.Tensor | None:
        """`hidden` (rows, 1, hidden size) through `blocks`. None if this model cannot be captured;
        then nothing was stored."""
        pages = max(pages_for(piece.start + piece.tokens) for piece in pieces)
        bucket = _Bucket(blocks, _rounded(hidden.shape[0], 1), _rounded(pages, SMALLEST_TABLE))
        graph = self._graphs.pop(bucket, None)
        if graph is None:
            try:
                graph = _Graph(
                    self._forward,
                    self._arena,
                    bucket,
                    blocks.start - self._arena.blocks.start,
                    self._chunk_sizes(blocks),
                    self._pool,
                )
            except Exception as error:  # whatever the library does that cannot be captured
                torch.cuda.synchronize()
                log.info("no CUDA graphs for this model: %s: %s", type(error).__name__, error)
                self.works = False
                self._graphs.clear()
                return None
        self._graphs[bucket] = graph
        while len(self._graphs) > MAX_GRAPHS:
            self._graphs.popitem(last=False)
        return graph.replay(pieces, hidden)


def _rounded(value: int, least: int) -> int:
    """The smallest power of two from `least` on that is not less."""
    return max(least, 1 << (value - 1).bit_length())
