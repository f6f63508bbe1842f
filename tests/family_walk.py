"""One family's way through swarmd, held against the stock model: for tests and for docs."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from swarmd.blocks import Span
from swarmd.compute.block_span import BlockSpan
from swarmd.compute.ends import ModelEnds
from swarmd.compute.kv_arena import KvArena
from swarmd.compute.kv_cache import SessionCache
from swarmd.compute.model_folder import ModelFolder, open_folder
from swarmd.compute.ragged_batch import Piece
from swarmd.node.memory_probe import kv_bytes_per_token
from tests.families import save_tiny

__all__ = ["TOLERANCE", "Walk", "is_exact", "walk"]

CHAINS = ([Span(0, 6)], [Span(0, 1), Span(1, 4), Span(4, 6)])
TOLERANCE = 1e-5
"""By how much logits may differ, relative to the largest; windows and chunks are 8 tokens."""
LIMIT = 64
PROMPT = [5, 17, 3, 88, 41, 9, 60, 22, 71, 13, 36, 7, 52, 29, 94, 11, 66, 31, 80, 45, 19]
OTHER = [90, 4, 33, 58, 12]
DECODED = 6
DRAFT = [8, 77, 15, 62, 40, 21, 50, 93, 6, 35]
"""Tokens that are taken back."""
CUT = 14
"""Where the second cut goes: positions before it have left the window by then."""
AGAIN = [48, 20, 85, 64]


@dataclass(frozen=True, slots=True)
class Walk:
    """How a family did. `error`: the largest relative difference of logits; `tokens`: whether
    greedy decoding gave the stock model's. `together`: the same with sessions in one batch, or
    None if it runs session by session."""

    family: str
    error: float
    tokens: bool
    together: float | None
    kv_bytes: tuple[int, int]
    """Of one token in one block: reckoned from the config, and stored."""


def is_exact(one: Walk) -> bool:
    """Whether everything about it is right."""
    largest = max(one.error, one.together or 0.0)
    return largest < TOLERANCE and one.tokens and one.kv_bytes[0] == one.kv_bytes[1]


class _Chain:
    """Sessions through all blocks of a model, held by one span or several."""

    def __init__(self, folder: ModelFolder, ends: ModelEnds, spans: Sequence[Span]) -> None:
        self._ends = ends
        self.parts = [BlockSpan(folder, s, dtype="float32", faster_rows=False) for s in spans]
        self._arenas: list[KvArena] = [part.new_arena(4 * LIMIT) for part in self.parts]

    def new_session(self) -> list[SessionCache]:
        return [
            arena.new_cache(part.span, LIMIT)
            for part, arena in zip(self.parts, self._arenas, strict=True)
        ]

    def step(
        self, sessions: Sequence[list[SessionCache]], tokens: Sequence[list[int]], *starts: int
    ) -> list[torch.Tensor]:
        """Logits (tokens, vocabulary) of each session's new tokens, all run in one turn."""
        states = [
            self._ends.embed(torch.tensor([new]), start)
            for new, start in zip(tokens, starts, strict=True)
        ]
        for index, (part, arena) in enumerate(zip(self.parts, self._arenas, strict=True)):
            pieces = []
            for session, start, state in zip(sessions, starts, states, strict=True):
                cache = session[index]
                arena.copy_pages(cache.prepare(start, state.shape[1]), cache.blocks)
                pieces.append(Piece(cache, start, state))
            states = part.run(arena, pieces)
        return [self._ends.logits(state) for state in states]


class _Stock:
    """The whole model of the library."""

    def __init__(self, folder: Path) -> None:
        self.model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()

    @torch.inference_mode()
    def logits(self, tokens: list[int]) -> torch.Tensor:
        """(tokens, vocabulary), in one run without a cache."""
        return self.model(torch.tensor([tokens]), use_cache=False).logits[0].float()

    @torch.inference_mode()
    def greedy(self, prompt: list[int], count: int) -> list[int]:
        """Tokens, each found with the library's own cache."""
        found: list[int] = []
        pending, cache = torch.tensor([prompt]), None
        for _ in range(count):
            output = self.model(pending, past_key_values=cache, use_cache=True)
            cache = output.past_key_values
            found.append(int(output.logits[0, -1].argmax()))
            pending = torch.tensor([found[-1:]])
        return found


def walk(family: str, **fields: Any) -> Walk:
    """`fields` change its config. Raises what the loading of the family raises."""
    with tempfile.TemporaryDirectory() as place:
        path = save_tiny(family, Path(place) / family, **fields)
        folder = open_folder(path)
        stock = _Stock(path)
        ends = ModelEnds(folder, dtype="float32")
        chains = [_Chain(folder, ends, spans) for spans in CHAINS]
    expected = stock.greedy(PROMPT, DECODED)
    errors, right = [], True
    for chain in chains:
        error, tokens = _alone(chain, stock, expected)
        errors.append(error)
        right = right and tokens == expected
    parts = [part for chain in chains for part in chain.parts]
    together = None
    if all(part.batched for part in parts):
        together = _together(chains[-1], stock)
    stored = max(shape.token_bytes for part in parts for shape in part.kv_shapes)
    reckoned = kv_bytes_per_token(folder.config, "float32")
    return Walk(family, max(errors), right, together, (reckoned, stored))


def _alone(chain: _Chain, stock: _Stock, expected: list[int]) -> tuple[float, list[int]]:
    """A prompt in two chunks, decoding, a draft that is taken back, and a cut far back."""
    session = [chain.new_session()]
    first, second = PROMPT[:13], PROMPT[13:]
    rows = [
        chain.step(session, [first], 0)[0],
        chain.step(session, [second], len(first))[0],
    ]
    found = [int(rows[-1][-1].argmax())]
    position = len(PROMPT)
    for number in range(DECODED - 1):
        if number == 2:
            chain.step(session, [DRAFT], position)
        rows += chain.step(session, [found[-1:]], position)
        found.append(int(rows[-1][-1].argmax()))
        position += 1
    error = _difference(torch.cat(rows), stock.logits(PROMPT + expected[:-1]))
    again = [*chain.step(session, [AGAIN[:3]], CUT), *chain.step(session, [AGAIN[3:]], CUT + 3)]
    error_again = _difference(torch.cat(again), stock.logits(PROMPT[:CUT] + AGAIN)[CUT:])
    return max(error, error_again), found


def _together(chain: _Chain, stock: _Stock) -> float:
    """Two sessions in the same turns: a decode beside a prefill, then both decode, one cut back."""
    one, two = chain.new_session(), chain.new_session()
    chain.step([one], [PROMPT], 0)
    rows_one = chain.step([one], [AGAIN[:1]], len(PROMPT))
    mixed = chain.step([one, two], [AGAIN[1:2], OTHER], len(PROMPT) + 1, 0)
    rows_one.append(mixed[0])
    rows_two = [mixed[1]]
    for number in range(0, len(DRAFT), 2):
        pair = DRAFT[number : number + 2]
        mixed = chain.step([one, two], [pair, pair], len(PROMPT) + 2 + number, len(OTHER) + number)
        rows_one.append(mixed[0])
        rows_two.append(mixed[1])
    cut = chain.step([one, two], [AGAIN, AGAIN], CUT, len(OTHER) + len(DRAFT))
    rows_two.append(cut[1])
    return max(
        _difference(torch.cat(rows_one), stock.logits(PROMPT + AGAIN[:2] + DRAFT)[len(PROMPT) :]),
        _difference(torch.cat(rows_two), stock.logits(OTHER + DRAFT + AGAIN)),
        _difference(cut[0], stock.logits(PROMPT[:CUT] + AGAIN)[CUT:]),
    )


def _difference(found: torch.Tensor, expected: torch.Tensor) -> float:
    if found.shape != expected.shape or not torch.isfinite(found).all():
        return float("inf")
    return float((found - expected).abs().max() / expected.abs().max().clamp(min=1.0))
