"""Linear layers with weights of eight or four bits, by torch's own packed kernels.

* `int8`: each output row has one scale, the greatest magnitude of the row divided by 127.
* `int4`: each group of 32 neighbouring inputs of a row has a scale and a zero point, which map the
  group's least and greatest weight to 0 and 15.

Scales and zero points are bfloat16, and weights are rounded to what these give. The products are
computed in bfloat16 whatever the dtype of the model, because the kernels are fast in it alone
(figures in docs/adr/0009-quantization.md): a layer rounds its input and its output, and sums in
float32. On the CPU a row's product does not depend on how many rows are multiplied with it, so a
replayed prefill equals the decode that it stands for, as far as these layers go.

Only plain `nn.Linear` layers of blocks are replaced. Routers of experts, experts that the library
stacks in one three-dimensional parameter, norms, embeddings and the head stay in the dtype, and
so do shapes that the kernels do not take.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from swarmd.errors import UnsupportedModel, UsageError
from swarmd.peers import QUANTIZATIONS

__all__ = [
    "Int4Linear",
    "Int8Linear",
    "check_quantization",
    "part_bytes",
    "quantizable",
    "quantize_layers",
]

GROUP = 32
"""Weights that share a scale in int4; the smallest that the kernels take, and the most exact."""
OUTPUTS_MULTIPLE = 16
"""The int4 kernel refuses other counts of outputs; int8 ends the process for some odd shapes."""
ROUTERS = frozenset({"gate", "router"})
"""Modules that choose experts: small, and a rounded score sends a token elsewhere."""

_BF16 = torch.bfloat16
_CUDA_INT4 = (8, 0)  # the compute capability that torch's int4 kernel needs


class Int8Linear(nn.Module):
    """A linear layer with int8 weights `(outputs, inputs)` and a bfloat16 scale an output."""

    weight: torch.Tensor
    scales: torch.Tensor

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features = layer.in_features, layer.out_features
        weight = layer.weight.detach().float()
        scales = (weight.abs().amax(dim=1) / 127).clamp(min=torch.finfo(_BF16).tiny).to(_BF16)
        codes = (weight / scales.float().unsqueeze(1)).round().clamp(-127, 127)
        self.register_buffer("weight", codes.to(torch.int8))
        self.register_buffer("scales", scales)
        self.bias = _own(layer.bias)

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        rows = input.reshape(-1, self.in_features).to(_BF16).contiguous()
        if rows.is_cuda:  # torch's int8 kernel has one thread an output there: slower than this
            output = F.linear(rows, self.weight.to(_BF16)) * self.scales
        else:
            output = torch._weight_int8pack_mm(rows, self.weight, self.scales)
        return _finished(self, output, input)

    def dequantized(self) -> torch.Tensor:
        """The weights that the layer stands for: float32, `(outputs, inputs)`."""
        return self.weight.float() * self.scales.float().unsqueeze(1)


class Int4Linear(nn.Module):
    """A linear layer with int4 weights in groups; `weight` is packed as this device's kernel wants
    it, `scales_and_zeros` is `(groups, outputs, 2)` in bfloat16. Not to be moved elsewhere."""

    weight: torch.Tensor
    scales_and_zeros: torch.Tensor

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features = layer.in_features, layer.out_features
        codes, scales, zeros = int4_codes(layer.weight.detach())
        self.register_buffer("weight", _packed(codes))
        both = torch.stack([scales, zeros], dim=-1).transpose(0, 1).contiguous()
        self.register_buffer("scales_and_zeros", both)
        self.bias = _own(layer.bias)

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        rows = input.reshape(-1, self.in_features).to(_BF16).contiguous()
        multiply = torch._weight_int4pack_mm if rows.is_cuda else torch._weight_int4pack_mm_for_cpu
        return _finished(self, multiply(rows, self.weight, GROUP, self.scales_and_zeros), input)


def int4_codes(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Codes 0..15 as int32 `(outputs, inputs)`; scales and zeros, bfloat16 `(outputs, groups)`.

    A weight is `(code - 8) * scale + zero` of its group.
    """
    outputs, inputs = weight.shape
    groups = weight.float().view(outputs, inputs // GROUP, GROUP)
    low, high = groups.amin(dim=-1), groups.amax(dim=-1)
    scales = ((high - low) / 15).clamp(min=torch.finfo(_BF16).tiny).to(_BF16)
    zeros = (low + 8 * scales.float()).to(_BF16)
    codes = (groups - zeros.float().unsqueeze(-1)) / scales.float().unsqueeze(-1) + 8
    whole = codes.round().clamp(0, 15).to(torch.int32).view(outputs, inputs)
    return whole, scales, zeros


def _packed(codes: torch.Tensor) -> torch.Tensor:
    if not codes.is_cuda:
        return torch._convert_weight_to_int4pack_for_cpu(codes.contiguous(), 1)
    inputs = codes.shape[1]
    tiles = next(n for n in (8, 4, 2) if inputs % (16 * n) == 0)
    pairs = (codes[:, ::2] << 4 | codes[:, 1::2]).to(torch.uint8).contiguous()
    return torch._convert_weight_to_int4pack(pairs, tiles)


def _own(bias: nn.Parameter | None) -> nn.Parameter | None:
    return None if bias is None else nn.Parameter(bias.detach().clone(), requires_grad=False)


def _finished(layer: Any, output: torch.Tensor, input: torch.Tensor) -> torch.Tensor:
    output = output.to(input.dtype).view(*input.shape[:-1], layer.out_features)
    return output if layer.bias is None else output + layer.bias


_LAYERS: dict[str, type[Int8Linear] | type[Int4Linear]] = {"int8": Int8Linear, "int4": Int4Linear}


def check_quantization(quantization: str, device: str) -> None:
    """Raises UsageError for a quantization that is not known, or not on this device."""
    if quantization not in QUANTIZATIONS:
        raise UsageError(f"--quantize {quantization}: use one of {', '.join(QUANTIZATIONS)}")
    if quantization == "int4" and device != "cpu":
        found = torch.cuda.get_device_capability(device)
        if found < _CUDA_INT4:
            raise UsageError(
                f"--quantize int4 needs a GPU of compute capability 8.0 or more; {device} has "
                f"{found[0]}.{found[1]}: use --quantize int8"
            )


def quantizable(model: nn.Module) -> list[tuple[nn.Module, str, nn.Linear]]:
    """The layers that are replaced: owner, attribute, layer. For modules on any device, also meta,
    and the same for every device, since a swarm's peers are to round alike."""
    found = []
    for path, owner in model.named_modules():
        for name, layer in owner.named_children():
            if (
                type(layer) is nn.Linear
                and name not in ROUTERS
                and ROUTERS.isdisjoint(path.split("."))
                and layer.in_features % GROUP == 0
                and layer.out_features % OUTPUTS_MULTIPLE == 0
            ):
                found.append((owner, name, layer))
    return found


@torch.inference_mode()
def quantize_layers(model: nn.Module, quantization: str) -> int:
    """Replace the quantizable layers, one after the other; say how many. Their weights are freed,
    and all other parameters copied: each would keep all of a mapped file in memory.

    Raises UnsupportedModel where there is none, so that nobody announces what is not there.
    """
    kind = _LAYERS[quantization]
    layers = quantizable(model)
    if not layers:
        raise UnsupportedModel(
            f"{type(model).__name__}: none of its layers can be quantized; leave --quantize out"
        )
    for owner, name, layer in layers:
        setattr(owner, name, kind(layer))
        layer.weight = None  # type: ignore[assignment]  # `layers` still holds the module
    for parameter in model.parameters():
        parameter.data = parameter.data.clone(memory_format=torch.preserve_format)
    return len(layers)


def part_bytes(model: nn.Module, quantization: str, item_bytes: int) -> int:
    """Bytes of the parameters of a model (it may be on the meta device) once it is quantized;
    `item_bytes` is the size of a number that is not."""
    total = item_bytes * sum(parameter.numel() for parameter in model.parameters())
    if quantization != "none":
        for _, _, layer in quantizable(model):
            n_weights, outputs = layer.weight.numel(), layer.out_features
            total -= item_bytes * n_weights
            if quantization == "int8":
                total += n_weights + _BF16.itemsize * outputs
            else:
                total += n_weights // 2 + 2 * _BF16.itemsize * n_weights // GROUP
    return total
