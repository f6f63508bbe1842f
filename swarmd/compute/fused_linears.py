"""Linear layers that take the same input, as one product: q, k and v; gate and up.

One large product keeps a processor busier than several small ones, and costs one call. The weights
are put one below the other in memory; each layer's own weight becomes a view of its rows, so
nothing is held twice, and values, names and shapes stay as they are.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import nn

__all__ = ["FusedLinear", "fuse_linears"]

SIBLINGS = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))
"""Names under which a module of `transformers` holds layers that take the same input."""


class _Product:
    """The product of some layers, computed when the first of them is asked."""

    def __init__(self, whole: nn.Linear, sizes: Sequence[int]) -> None:
        self.whole = whole
        self._sizes = list(sizes)
        self._input: torch.Tensor | None = None
        self._outputs: list[torch.Tensor | None] = []

    def output(self, index: int, rows: torch.Tensor) -> torch.Tensor:
        """What layer `index` gives for these rows; each is asked once for an input."""
        if self._input is not rows or self._outputs[index] is None:
            self._input = rows
            self._outputs = list(self.whole(rows).split(self._sizes, -1))
        found = self._outputs[index]
        assert found is not None
        self._outputs[index] = None
        if not any(output is not None for output in self._outputs):
            self._input = None
        return found

    def weight(self, index: int) -> torch.Tensor:
        """The rows of the whole weight that are layer `index`'s."""
        return self.whole.weight.detach().split(self._sizes)[index]


class FusedLinear(nn.Linear):
    """One of some layers whose product is computed together."""

    product: _Product
    index: int

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return self.product.output(self.index, input)

    def share_weight(self) -> None:
        """Make this layer's own weight a view of the whole one, wherever that lies now."""
        self.weight = nn.Parameter(self.product.weight(self.index), requires_grad=False)


def fuse_linears(model: nn.Module) -> int:
    """Fuse what can be fused; returns how many products fewer a run has.

    The whole layers are plain ones, submodules of where their parts are.
    """
    saved = 0
    with torch.inference_mode():
        for parent, names, layers in list(_groups(model)):
            whole = nn.Linear(layers[0].in_features, 1, bias=False, device="meta")
            whole.weight = nn.Parameter(
                torch.cat([layer.weight.detach() for layer in layers]), requires_grad=False
            )
            whole.out_features = whole.weight.shape[0]
            if layers[0].bias is not None:
                bias = torch.cat([layer.bias.detach() for layer in layers])
                whole.bias = nn.Parameter(bias, requires_grad=False)
            parent.add_module("_and_".join(names), whole)
            product = _Product(whole, [layer.out_features for layer in layers])
            for index, layer in enumerate(layers):
                layer.__class__ = FusedLinear
                layer.product, layer.index = product, index  # type: ignore[assignment]
                layer.share_weight()  # type: ignore[operator]
            saved += len(layers) - 1
    return saved


def _groups(model: nn.Module) -> Iterator[tuple[nn.Module, Sequence[str], list[nn.Linear]]]:
    for module in model.modules():
        for names in SIBLINGS:
            layers = [getattr(module, name, None) for name in names]
            plain = [layer for layer in layers if type(layer) is nn.Linear]
            alike = {(layer.in_features, layer.bias is None, layer.weight.dtype) for layer in plain}
            if len(plain) == len(names) and len(alike) == 1:
                yield module, names, plain
