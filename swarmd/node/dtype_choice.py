"""Which dtype `--dtype auto` takes: the swarm's, since a chain has one, else the faster one."""

from __future__ import annotations

import copy
import itertools
import statistics
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from swarmd.blocks import Span
from swarmd.compute.cut_model import cut_class, parse_config
from swarmd.compute.model_folder import ModelFolder
from swarmd.compute.row_linear import use_faster_rows
from swarmd.compute.weights import DTYPES, torch_dtype
from swarmd.identity import PeerId
from swarmd.peers import PeerInfo, PeerState

__all__ = ["DtypeChoice", "choose_dtype", "faster", "followed", "linear_seconds", "measured_dtype"]

CANDIDATES = ("float32", "bfloat16")
PROMPT_TOKENS, NEW_TOKENS = 256, 128
"""The request by which they are compared: chunks of `CHUNK` tokens, then single ones."""
CHUNK = 64
GAIN = 1.5
"""bfloat16 has to be this many times as fast in the linear layers: the rest of a block gains less
(where they gained 1.2, whole answers were slower: `bench.quantize`), and it is less exact."""
TRIALS = 5
SAMPLE_BYTES = 64 << 20
"""Weights of a shape that a trial reads: more than processors cache, as decoding does."""
MOST_COPIES = 64
"""Of small layers, whose weights are cached between steps as well."""
_BUDGET = 10.0
"""Seconds for all trials; after that each shape gets one."""


@dataclass(frozen=True, slots=True)
class DtypeChoice:
    """A dtype, and why: the end of a sentence for people."""

    dtype: str
    reason: str


async def choose_dtype(
    fetch: Callable[[], Awaitable[Sequence[PeerInfo]]],
    measure: Callable[[], Awaitable[DtypeChoice]],
    own: PeerId | None,
) -> DtypeChoice:
    """The swarm's dtype, else the measured one. The swarm is asked again after the measurement:
    somebody may have decided meanwhile."""
    found = followed(await fetch(), own)
    if found is not None:
        return found
    measured = await measure()
    return followed(await fetch(), own) or measured


def followed(peers: Iterable[PeerInfo], own: PeerId | None) -> DtypeChoice | None:
    """What the most blocks are served in by others that serve or are about to. None: nobody does.

    Of a tie the dtype that sorts first, so that two nodes which see the same decide alike.
    """
    blocks: Counter[str] = Counter()
    for peer in peers:
        serves = peer.state in (PeerState.ONLINE, PeerState.JOINING)
        if peer.peer_id != own and serves and peer.dtype in DTYPES:
            blocks[peer.dtype] += len(peer.span)
    if not blocks:
        return None
    dtype = min(blocks, key=lambda name: (-blocks[name], name))
    return DtypeChoice(dtype, "the peers of this model compute in it, and a chain has one dtype")


def faster(seconds: dict[str, tuple[float, float]]) -> DtypeChoice:
    """Decide by the seconds of a block's linear layers: for one token, and for `CHUNK` of them."""
    cost = {
        dtype: NEW_TOKENS * row + PROMPT_TOKENS / CHUNK * chunk
        for dtype, (row, chunk) in seconds.items()
    }
    gain = cost["float32"] / cost["bfloat16"]
    shown = ", ".join(
        f"{dtype} {1e3 * row:.2f} ms a token and {1e3 * chunk:.1f} ms for {CHUNK}"
        for dtype, (row, chunk) in seconds.items()
    )
    return DtypeChoice(
        "bfloat16" if gain >= GAIN else "float32",
        f"bfloat16 is {gain:.2f} times as fast for {PROMPT_TOKENS} prompt and {NEW_TOKENS} new "
        f"tokens here (a block's linear layers: {shown}), and {GAIN:g} are asked of it",
    )


def measured_dtype(folder: ModelFolder, quantization: str, device: str) -> DtypeChoice:
    """Measure on random weights of the model's shapes; some seconds. Nothing is read.

    Quantized layers compute in bfloat16 anyway, so there is nothing to gain by it.
    """
    if quantization != "none":
        return DtypeChoice("float32", "quantized layers compute in bfloat16 whatever the dtype")
    config = parse_config(folder.config)
    with torch.device("meta"):
        block = cut_class(config, Span(0, 1))(copy.deepcopy(config))
    layers = (m for m in block.modules() if isinstance(m, nn.Linear))
    return faster(linear_seconds(Counter((m.out_features, m.in_features) for m in layers), device))


@torch.inference_mode()
def linear_seconds(shapes: Counter[tuple[int, int]], device: str) -> dict[str, tuple[float, float]]:
    """Seconds of one row, and of `CHUNK` rows, through layers of these shapes `(outputs, inputs)`;
    by dtype, tried in turn, medians. Layers are laid out for one row, as those that serve are."""
    sums = {dtype: [0.0, 0.0] for dtype in CANDIDATES}
    give_up = time.perf_counter() + _BUDGET
    for (outputs, inputs), count in shapes.items():
        copies = max(1, min(MOST_COPIES, SAMPLE_BYTES // (4 * outputs * inputs)))
        layers = {dtype: _layers(outputs, inputs, copies, dtype, device) for dtype in CANDIDATES}
        for which, tokens in enumerate((1, CHUNK)):
            rows = {
                dtype: torch.ones(1, tokens, inputs, dtype=torch_dtype(dtype), device=device)
                for dtype in CANDIDATES
            }
            times: dict[str, list[float]] = {dtype: [] for dtype in CANDIDATES}
            for trial, dtype in itertools.product(range(TRIALS), CANDIDATES):
                if trial and time.perf_counter() > give_up:
                    break
                times[dtype].append(_seconds(layers[dtype], rows[dtype], copies))
            for dtype in CANDIDATES:
                sums[dtype][which] += count * statistics.median(times[dtype])
    return {dtype: (row, chunk) for dtype, (row, chunk) in sums.items()}


def _layers(outputs: int, inputs: int, copies: int, dtype: str, device: str) -> nn.ModuleList:
    kind = torch_dtype(dtype)
    layers = nn.ModuleList(
        nn.Linear(inputs, outputs, bias=False, dtype=kind, device=device) for _ in range(copies)
    )
    if device == "cpu":
        use_faster_rows(layers)
    return layers


def _seconds(layers: nn.ModuleList, rows: torch.Tensor, copies: int) -> float:
    began = time.perf_counter()
    for layer in layers:
        layer(rows)
    if rows.is_cuda:
        torch.cuda.synchronize(rows.device)
    return (time.perf_counter() - began) / copies
