"""The blocks that a node holds, ready to run: hidden states in, hidden states out.

Sessions run together in a *ragged batch* (`ragged_batch`), every token a row, wherever in the span
they enter and leave: between two places where a session enters or leaves, the rows of all sessions
that are inside make one run. Models that do not attend through the library's interface, or for
which a trial at the start gives anything but what the stock modules give, run session by session.
"""

from __future__ import annotations

import contextlib
import inspect
import itertools
import logging
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any
from weakref import WeakKeyDictionary

import torch
from transformers import PreTrainedModel
from transformers.cache_utils import DynamicCache

from swarmd.blocks import Span
from swarmd.compute.compiled_parts import compile_parts
from swarmd.compute.cut_model import forked, keep_blocks, layer_stack
from swarmd.compute.decode_graphs import DecodeGraphs
from swarmd.compute.fused_linears import fuse_linears
from swarmd.compute.kv_arena import KvArena, KvShape
from swarmd.compute.packed_weights import pack_weights, packable_bytes
from swarmd.compute.paged_attention import PAGED, PagedCache, running
from swarmd.compute.quantized_loading import load_quantized
from swarmd.compute.ragged_batch import Piece, RaggedBatch
from swarmd.compute.row_linear import FEW_PACKED, FEW_ROWS, one_thread, use_faster_rows
from swarmd.compute.stock_cache import StockCache
from swarmd.compute.weights import BlockProgress, WeightFolder, load_part, torch_dtype
from swarmd.errors import BlocksNotHeld, UnsupportedModel

__all__ = ["BlockSpan"]

log = logging.getLogger(__name__)

MAX_VIEWS = 32
"""Sub-spans kept ready. A view shares all weights; it costs only its Python objects."""

GRAPH_TOKENS = 8
"""Pieces up to this length run as CUDA graphs, row by row."""

TRIAL_TOLERANCE = {torch.float32: 1e-4, torch.float16: 2e-2, torch.bfloat16: 1e-1}
"""By how much of the largest value a trial's batch may differ from the stock modules."""


class BlockSpan:
    """Blocks `[span.start, span.end)` of a model on one device.

    A session may enter and leave anywhere within the span; each sub-span in use is a view of the
    stock model with the other blocks left out. Not thread-safe: the engine's thread owns it.
    `batched`: whether sessions run together. `kv_shapes`: what each block stores for a position.
    """

    def __init__(
        self,
        folder: WeightFolder,
        span: Span,
        *,
        dtype: str,
        device: str = "cpu",
        progress: BlockProgress | None = None,
        faster_rows: bool = True,
        quantization: str = "none",
    ) -> None:
        """Read the blocks' weights. Raises ModelError, UnsupportedModel, and what `progress`
        raises. Without `faster_rows` they stay as they were loaded (benches compare)."""
        self.quantization = quantization
        if quantization == "none":
            model = load_part(folder, span, dtype=dtype, device=device, progress=progress)
        else:
            model = load_quantized(
                folder, span, dtype=dtype, quantization=quantization, device=device,
                progress=progress,
            )  # fmt: skip
        self._set_up(model, span, dtype=dtype, device=device, faster_rows=faster_rows)

    @classmethod
    def of_model(
        cls, model: PreTrainedModel, span: Span, *, dtype: str, device: str = "cpu"
    ) -> BlockSpan:
        """Of a model that was cut to `span` already (see `cut_model`), wherever its weights come
        from. Raises UnsupportedModel."""
        blocks = cls.__new__(cls)
        blocks.quantization = "none"
        blocks._set_up(model, span, dtype=dtype, device=device, faster_rows=False)
        return blocks

    def _set_up(
        self, model: PreTrainedModel, span: Span, *, dtype: str, device: str, faster_rows: bool
    ) -> None:
        self.span = span
        self.dtype = dtype
        self.device = device
        self.torch_dtype = torch_dtype(dtype)
        self._model = model
        self.packed_bytes = 0
        self._fast_rows = False
        if faster_rows:
            chosen = use_faster_rows(model)
            self._fast_rows = bool(chosen) and all(kernel.by_numpy for kernel in chosen.values())
        if device != "cpu":
            fuse_linears(model)
            compile_parts(model)
        self.hidden_size = int(model.config.hidden_size)
        self._views: OrderedDict[Span, Any] = OrderedDict()
        self._graphs: WeakKeyDictionary[KvArena, DecodeGraphs] = WeakKeyDictionary()
        owner = layer_stack(model)[0]
        accepted = inspect.signature(type(owner).forward).parameters
        self._takes_positions = "position_ids" in accepted
        self._stock_attention = model.config._attn_implementation
        self.batched = False
        with torch.inference_mode():
            self.kv_shapes = self._probe()
            self.batched = self._batches_rightly()

    @property
    def pieces_run_alone(self) -> bool:
        """Whether a long piece runs by itself beside decode steps (which are graphs then)."""
        return self.batched and self.device != "cpu"

    def use_room(self, room: int) -> int:
        """Spend up to `room` bytes on a second layout of the weights, for steps of several rows, if
        all of it fits and is faster. Returns what it took; before the first step."""
        if self._fast_rows and 0 < packable_bytes(self._model) <= room:
            self.packed_bytes = pack_weights(self._model)
        return self.packed_bytes

    def new_arena(self, tokens: int) -> KvArena:
        """Memory for the attention caches of all sessions: `tokens` positions in each block."""
        return KvArena(
            self.span,
            self.kv_shapes,
            tokens,
            device=self.device,
            hidden_size=self.hidden_size,
            hidden_dtype=self.torch_dtype,
        )

    def drop_graphs(self, arena: KvArena) -> None:
        """Give up what was captured for an arena that is used no more; it holds the arena."""
        self._graphs.pop(arena, None)

    def check(self, blocks: Span) -> None:
        """Raises BlocksNotHeld unless all of `blocks` are held here."""
        if not self.span.covers(blocks):
            raise BlocksNotHeld(f"blocks {blocks} were asked for; this peer holds {self.span}")

    @torch.inference_mode()
    def run(self, arena: KvArena, pieces: Sequence[Piece]) -> list[torch.Tensor]:
        """Run new positions of different sessions, each through the blocks of its cache.

        Returns (1, tokens, hidden size) for each piece, on the device. The caches were prepared;
        they advance when all pieces went through, and stay as they were if the library raises.
        """
        if self.pieces_run_alone:
            outputs = self._run_by_graphs(arena, pieces)
        elif self.batched:
            outputs = self._run_together(arena, pieces)
        else:
            outputs = [self._run_alone(arena, piece) for piece in pieces]
        for piece in pieces:
            piece.cache.advance(piece.tokens)
        return outputs

    def _run_by_graphs(self, arena: KvArena, pieces: Sequence[Piece]) -> list[torch.Tensor]:
        """Short pieces by a graph, so that a long one beside them does not make them run eagerly;
        that one by itself."""
        graphs = self._graphs.get(arena)
        if graphs is None:
            graphs = DecodeGraphs(self._forward, self._chunk_sizes, arena)
            self._graphs[arena] = graphs
        short = [n for n, piece in enumerate(pieces) if piece.tokens <= GRAPH_TOKENS]
        long = [n for n, piece in enumerate(pieces) if piece.tokens > GRAPH_TOKENS]
        outputs: dict[int, torch.Tensor] = {}
        for part in (short, long):
            if part:
                of_part = [pieces[n] for n in part]
                found = self._run_together(arena, of_part, graphs if part is short else None)
                outputs.update(zip(part, found, strict=True))
        return [outputs[n] for n in range(len(pieces))]

    def _run_together(
        self, arena: KvArena, pieces: Sequence[Piece], graphs: DecodeGraphs | None = None
    ) -> list[torch.Tensor]:
        states = self._brought(pieces)
        edges = sorted(
            {edge for p in pieces for edge in (p.cache.blocks.start, p.cache.blocks.end)}
        )
        for part in itertools.starmap(Span, itertools.pairwise(edges)):
            inside = [n for n, piece in enumerate(pieces) if piece.cache.blocks.covers(part)]
            if not inside:
                continue
            here = [pieces[n] for n in inside]
            rows = states[inside[0]] if len(inside) == 1 else torch.cat([states[n] for n in inside])
            replayed = None
            if graphs is not None and graphs.takes(here):
                replayed = graphs.run(part, here, rows)
            rows = self._run_rows(arena, part, here, rows) if replayed is None else replayed
            counts = [pieces[n].tokens for n in inside]
            for n, state in zip(inside, rows.split(counts), strict=True):
                states[n] = state
        return [state.transpose(0, 1) for state in states]

    def _brought(self, pieces: Sequence[Piece]) -> list[torch.Tensor]:
        """The inputs (tokens, 1, hidden size) on the device, brought there by one copy: each waits
        for its turn at the device, however little it brings."""
        states = [piece.hidden.to(dtype=self.torch_dtype).transpose(0, 1) for piece in pieces]
        if self.device == "cpu" or states[0].device.type != "cpu":
            return [state.to(self.device) for state in states]
        rows = states[0] if len(states) == 1 else torch.cat(states)
        return list(rows.to(self.device).split([piece.tokens for piece in pieces]))

    def _run_rows(
        self, arena: KvArena, part: Span, pieces: Sequence[Piece], rows: torch.Tensor
    ) -> torch.Tensor:
        offset = part.start - self.span.start
        batch = RaggedBatch(arena, pieces, offset, self._chunk_sizes(part))
        few = FEW_PACKED if self.packed_bytes else FEW_ROWS
        limited = one_thread(rows.shape[0], few) if self._fast_rows else contextlib.nullcontext()
        with limited, running(batch):
            return self._forward(part, rows, batch.positions(), PagedCache(batch))

    def _run_alone(self, arena: KvArena, piece: Piece) -> torch.Tensor:
        blocks = piece.cache.blocks
        cache = StockCache(arena, blocks.start - self.span.start, len(blocks), piece)
        positions = torch.arange(piece.start, piece.start + piece.tokens).unsqueeze(0)
        hidden = piece.hidden.to(self.device, self.torch_dtype)
        return self._forward(blocks, hidden, positions, cache)

    def _forward(
        self, blocks: Span, hidden: torch.Tensor, positions: torch.Tensor, cache: Any
    ) -> torch.Tensor:
        """(rows, tokens, hidden size) at `positions` (rows, tokens) through the stock modules."""
        arguments: dict[str, Any] = {}
        if self._takes_positions:
            arguments["position_ids"] = positions.to(self.device)
        output: torch.Tensor = self._view(blocks)(
            inputs_embeds=hidden, past_key_values=cache, use_cache=True, **arguments
        ).last_hidden_state
        return output

    def _view(self, blocks: Span) -> Any:
        view = self._views.pop(blocks, None)
        if view is None:
            model: PreTrainedModel = self._model
            if blocks != self.span:
                model = forked(model)
                keep_blocks(
                    model, Span(blocks.start - self.span.start, blocks.end - self.span.start)
                )
            view = layer_stack(model)[0]
        self._views[blocks] = view
        while len(self._views) > MAX_VIEWS:
            self._views.popitem(last=False)
        return view

    def _chunk_sizes(self, blocks: Span) -> list[int | None]:
        """By block: within which chunks of positions it attends (Llama 4), or None."""
        config = self._model.config
        types = getattr(config, "layer_types", None) or [""] * len(self.span)
        size = getattr(config, "attention_chunk_size", None)
        offset = blocks.start - self.span.start
        return [
            size if types[offset + index] == "chunked_attention" else None
            for index in range(len(blocks))
        ]

    # ---- at the start --------------------------------------------------------------------------

    def _probe(self) -> list[KvShape]:
        """Run two tokens through all blocks and look at what they store."""
        cache = DynamicCache()
        hidden = torch.zeros(1, 2, self.hidden_size, dtype=self.torch_dtype, device=self.device)
        self._forward(self.span, hidden, torch.arange(2).unsqueeze(0), cache)
        shapes = []
        for index in range(len(self.span)):
            layer: Any = cache.layers[index] if index < len(cache.layers) else None
            keys = getattr(layer, "keys", None)
            if keys is None or keys.dim() != 4 or keys.shape[0] != 1 or keys.shape[2] != 2:
                raise UnsupportedModel(
                    f"{self._model.config.model_type}: block {self.span.start + index} keeps no "
                    "keys and values of its own for each position; swarmd cannot cut it back"
                )
            values = layer.values
            shapes.append(KvShape(keys.shape[1], keys.shape[3], values.shape[3], keys.dtype))
        return shapes

    def _batches_rightly(self) -> bool:
        """Whether two sessions together give what each gives alone through the stock modules. On
        True the model attends over pages from now on."""
        generator = torch.Generator().manual_seed(0)
        lengths = ((5, 1), (3, 2))
        inputs = [
            [torch.randn(1, n, self.hidden_size, generator=generator) for n in pair]
            for pair in lengths
        ]
        alone = self._trial(inputs, together=False)
        try:
            self._attend_by(PAGED)
            together: list[torch.Tensor] = self._trial(inputs, together=True)
        except Exception as error:  # whatever the library's code does with an unknown attention
            log.debug("no batches: %s: %s", type(error).__name__, error)
        else:
            if all(itertools.starmap(self._close_enough, zip(together, alone, strict=True))):
                return True
        self._attend_by(self._stock_attention)
        log.info("%s runs session by session", self._model.config.model_type)
        return False

    def _trial(
        self, inputs: Sequence[Sequence[torch.Tensor]], *, together: bool
    ) -> list[torch.Tensor]:
        """The outputs of sessions that take their inputs step by step."""
        arena = self.new_arena(64 * len(inputs))
        caches = [arena.new_cache(self.span, 64) for _ in inputs]
        outputs = []
        for step in range(len(inputs[0])):
            pieces = []
            for cache, pair in zip(caches, inputs, strict=True):
                start = cache.position
                cache.prepare(start, pair[step].shape[1])
                pieces.append(Piece(cache, start, pair[step]))
            if not together:
                outputs += [self._run_alone(arena, piece) for piece in pieces]
            else:
                outputs += self._run_together(arena, pieces)
            for piece in pieces:
                piece.cache.advance(piece.tokens)
        return outputs

    def _close_enough(self, found: torch.Tensor, expected: torch.Tensor) -> bool:
        difference = (found.float() - expected.float()).abs().max()
        computed = self.torch_dtype if self.quantization == "none" else torch.bfloat16
        return bool(difference <= TRIAL_TOLERANCE[computed] * expected.float().abs().max())

    def _attend_by(self, name: str) -> None:
        """Let all modules attend by the function of this name."""
        configs = {id(m.config): m.config for m in self._model.modules() if hasattr(m, "config")}
        for config in configs.values():
            config._attn_implementation = name
        self._views.clear()
