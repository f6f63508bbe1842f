"""The second layout of weights: the same products, and only where there is room and use for it."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

from swarmd.blocks import Span
from swarmd.compute import packed_weights, row_linear
from swarmd.compute.block_span import BlockSpan
from swarmd.compute.memory import MemoryPlan
from swarmd.compute.model_folder import ModelFolder, open_folder
from swarmd.compute.packed_weights import pack_weights, packable_bytes
from swarmd.compute.row_linear import Kernel, RowLinear, use_faster_rows
from swarmd.compute.sole_session import SoleSession
from tests.families import save_tiny


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> ModelFolder:
    return open_folder(save_tiny("llama", tmp_path_factory.mktemp("packed") / "llama"))


@pytest.fixture
def worth(monkeypatch: pytest.MonkeyPatch) -> Callable[[bool], None]:
    """Says whether the layout is faster, instead of a clock; numpy is for one row."""
    kernel = Kernel(by_columns=True, by_numpy=True)
    monkeypatch.setattr(row_linear, "_fastest", lambda shapes: dict.fromkeys(shapes, kernel))

    def say(is_faster: bool) -> None:
        monkeypatch.setattr(packed_weights, "_is_worth_it", lambda layers: is_faster)

    return say


def model(*, bias: bool = True) -> nn.Sequential:
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(24, 40, bias=bias), nn.Linear(40, 8, bias=bias))


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("rows", [1, 2, 7, 65])
def test_products_stay(bias: bool, rows: int, worth: Callable[[bool], None]) -> None:
    worth(True)
    plain, fast = model(bias=bias), model(bias=bias)
    use_faster_rows(fast)
    assert pack_weights(fast) == packable_bytes(fast) == 4 * (24 * 40 + 40 * 8)
    assert plain.state_dict().keys() == fast.state_dict().keys()
    hidden = torch.randn(1, rows, 24)
    with torch.inference_mode():
        torch.testing.assert_close(fast(hidden), plain(hidden), rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(  # rows one behind the other, as a batch of sessions has them
            fast(hidden.transpose(0, 1)), plain(hidden.transpose(0, 1)), rtol=1e-5, atol=1e-6
        )


def test_it_is_measured_and_leaves_no_trace(worth: Callable[[bool], None]) -> None:
    layers = model()
    use_faster_rows(layers)
    found = pack_weights(layers)
    packed = [
        layer for layer in layers if isinstance(layer, RowLinear) and layer.packed is not None
    ]
    assert found == sum(4 * layer.weight.numel() for layer in packed)


def test_what_is_not_faster_takes_nothing(worth: Callable[[bool], None]) -> None:
    worth(False)
    layers = model()
    use_faster_rows(layers)
    assert pack_weights(layers) == 0


def test_without_onednn_all_goes_on(
    worth: Callable[[bool], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(weight: torch.Tensor) -> torch.Tensor:
        raise NotImplementedError("no such operator")

    monkeypatch.setattr(packed_weights, "_packed", missing)
    layers = model()
    use_faster_rows(layers)
    assert pack_weights(layers) == 0
    with torch.inference_mode():
        assert layers(torch.randn(3, 24)).shape == (3, 8)


def test_blocks_take_it_only_where_all_of_it_fits(
    folder: ModelFolder, worth: Callable[[bool], None]
) -> None:
    worth(True)
    blocks = BlockSpan(folder, Span(0, 2), dtype="float32")
    session = SoleSession(blocks, 32)
    hidden = torch.randn(1, 9, blocks.hidden_size)
    before = session.step(hidden, 0)
    assert blocks.use_room(1) == 0
    taken = blocks.use_room(1 << 30)
    assert taken > 0
    torch.testing.assert_close(session.step(hidden, 0), before, rtol=1e-4, atol=1e-5)


def test_part_of_the_blocks_has_it_as_well(
    folder: ModelFolder, worth: Callable[[bool], None]
) -> None:
    worth(True)
    whole = BlockSpan(folder, Span(0, 3), dtype="float32")
    assert whole.use_room(1 << 30) > 0
    hidden = torch.randn(1, 9, whole.hidden_size)
    for part in (Span(0, 2), Span(1, 2), Span(1, 3)):
        plain = BlockSpan(folder, part, dtype="float32", faster_rows=False)
        torch.testing.assert_close(
            SoleSession(whole, 32, part).step(hidden, 0),
            SoleSession(plain, 32).step(hidden, 0),
            rtol=1e-4, atol=1e-5,
        )  # fmt: skip


def test_half_precision_has_none(folder: ModelFolder) -> None:
    assert BlockSpan(folder, Span(0, 1), dtype="bfloat16").use_room(1 << 30) == 0


def test_room_is_what_the_sum_leaves() -> None:
    plan = MemoryPlan(
        limit=1000, block_bytes=100, kv_token_bytes=1, kv_tokens=50, n_blocks=9, workspace=200,
        output_bytes=50,
    )  # fmt: skip
    assert plan.room_beside(plan.blocks) == 1000 - 250 - plan.blocks * 150
    assert plan.room_beside(1) == 600
    assert plan.room_beside(9) == 0
