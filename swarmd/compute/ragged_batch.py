"""One run of some blocks for tokens of many sessions, every token a row of its own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention

from swarmd.compute.kv_arena import KvArena
from swarmd.compute.kv_cache import SessionCache

__all__ = ["Piece", "RaggedBatch", "attend_with_weights"]


@dataclass(slots=True, eq=False)
class Piece:
    """New positions of one session: `hidden` is (1, tokens, hidden size), `start` their first."""

    cache: SessionCache
    start: int
    hidden: torch.Tensor

    @property
    def tokens(self) -> int:
        return self.hidden.shape[1]


class RaggedBatch:
    """Rows of `pieces`, in order, through blocks that begin at `first_block` of the arena.

    `chunks`: by layer of the run, the size of the chunks within which it attends, or None.
    """

    def __init__(
        self,
        arena: KvArena,
        pieces: Sequence[Piece],
        first_block: int,
        chunks: Sequence[int | None],
    ) -> None:
        self._arena = arena
        self._pieces = pieces
        self._first = first_block
        self._chunks = chunks
        written = [
            run for piece in pieces for run in piece.cache.slots(piece.start, _end_of(piece))
        ]
        self._only_run = written[0] if len(written) == 1 else None
        device = arena.keys[0].device
        self._places = torch.cat(
            [torch.arange(run.start, run.start + run.count) for run in written]
        ).to(device)
        self._masks: dict[tuple[int, int, int], torch.Tensor] = {}

    def positions(self) -> torch.Tensor:
        """(rows, 1), on the CPU."""
        spans = [torch.arange(piece.start, _end_of(piece)) for piece in self._pieces]
        return torch.cat(spans).unsqueeze(1)

    def write(self, layer: int, keys: torch.Tensor, values: torch.Tensor) -> None:
        """Store (rows, heads, 1, width) in the rows' places."""
        all_keys = self._arena.keys[self._first + layer]
        all_values = self._arena.values[self._first + layer]
        new_keys, new_values = keys.squeeze(2).transpose(0, 1), values.squeeze(2).transpose(0, 1)
        if self._only_run is not None:
            start, count = self._only_run.start, self._only_run.count
            all_keys.narrow(1, start, count).copy_(new_keys)
            all_values.narrow(1, start, count).copy_(new_values)
        else:
            all_keys.index_copy_(1, self._places, new_keys.to(all_keys.dtype))
            all_values.index_copy_(1, self._places, new_values.to(all_values.dtype))

    def attend(
        self,
        module: Any,
        query: torch.Tensor,
        scaling: float,
        window: int | None,
        softcap: float | None,
        sinks: torch.Tensor | None,
    ) -> torch.Tensor:
        """Attend with (rows, heads, 1, width); returns (rows, 1, heads, value width)."""
        chunk = self._chunks[module.layer_idx]
        outputs, row = [], 0
        for piece in self._pieces:
            rows = query[row : row + piece.tokens, :, 0]
            row += piece.tokens
            outputs.append(
                self._attend(module, piece, rows, scaling, window, chunk, softcap, sinks)
            )
        return (outputs[0] if len(outputs) == 1 else torch.cat(outputs)).unsqueeze(1)

    def _attend(
        self,
        module: Any,
        piece: Piece,
        query: torch.Tensor,
        scaling: float,
        window: int | None,
        chunk: int | None,
        softcap: float | None,
        sinks: torch.Tensor | None,
    ) -> torch.Tensor:
        """Queries (tokens, heads, width) of one session; returns (tokens, heads, value width).

        Heads that share keys and values are folded into the queries' dimension, so nothing is
        repeated in memory.
        """
        tokens, heads, width = query.shape
        end = _end_of(piece)
        first = _first_visible(piece.start, window, chunk)
        keys, values = self._arena.read(
            self._first + module.layer_idx, piece.cache.slots(first, end)
        )
        if (expand := getattr(module, "expand_kv", None)) is not None:
            expanded = expand(keys.unsqueeze(0), values.unsqueeze(0))
            keys, values = expanded[0].squeeze(0), expanded[1].squeeze(0)
        group = heads // keys.shape[0]
        folded = query.transpose(0, 1).reshape(keys.shape[0], group * tokens, width)
        mask = None
        if tokens > 1:
            mask = self._mask(piece, first, window, chunk)
            mask = mask.repeat(group, 1)
        if softcap is None and sinks is None:
            out = scaled_dot_product_attention(
                folded.unsqueeze(0),
                keys.unsqueeze(0),
                values.unsqueeze(0),
                attn_mask=mask,
                scale=scaling,
            ).squeeze(0)
        else:
            grouped = None if sinks is None else sinks.view(-1, group, 1).expand(-1, group, tokens)
            out = attend_with_weights(folded, keys, values, mask, scaling, softcap, grouped)
        return out.reshape(heads, tokens, values.shape[-1]).transpose(0, 1)

    def _mask(
        self, piece: Piece, first: int, window: int | None, chunk: int | None
    ) -> torch.Tensor:
        """(tokens, visible positions): which of `[first, end)` each new position sees."""
        key = (id(piece), window or 0, chunk or 0)
        if key not in self._masks:
            device = self._places.device
            asking = torch.arange(piece.start, _end_of(piece), device=device).unsqueeze(1)
            asked = torch.arange(first, _end_of(piece), device=device).unsqueeze(0)
            mask = asked <= asking
            if window:
                mask &= asked > asking - window
            if chunk:
                mask &= asked // chunk == asking // chunk
            self._masks[key] = mask
        return self._masks[key]


def attend_with_weights(
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    mask: torch.Tensor | None,
    scaling: float,
    softcap: float | None,
    sinks: torch.Tensor | None,
) -> torch.Tensor:
    """Attention whose scores are bounded softly (Gemma 2) or share their weight with a sink of
    each head (GPT-OSS), which no fused kernel of torch does.

    Leading dimensions are batch and key heads; `sinks` has those and the queries, `mask` is
    True where a query sees a key.
    """
    scores = query @ keys.transpose(-1, -2) * scaling
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    if mask is not None:
        scores = scores.masked_fill(~mask, torch.finfo(scores.dtype).min)
    if sinks is None:
        weights = scores.softmax(dim=-1, dtype=torch.float32)
    else:
        column = sinks.reshape(*scores.shape[:-1], 1).to(scores.dtype)
        weights = torch.cat([scores, column], dim=-1).softmax(dim=-1, dtype=torch.float32)
        weights = weights[..., :-1]
    return weights.to(values.dtype) @ values


def _end_of(piece: Piece) -> int:
    return piece.start + piece.hidden.shape[1]


def _first_visible(position: int, window: int | None, chunk: int | None) -> int:
    """The first position that the one at `position` sees, and so any later one at most."""
    first = max(0, position - window + 1) if window else 0
    return max(first, position // chunk * chunk) if chunk else first
