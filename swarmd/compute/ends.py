"""The two ends of a model, which a client keeps: tokens to hidden states, and those to logits."""

from __future__ import annotations

import inspect
from typing import Any

import torch

from swarmd.compute.cut_model import forked, layer_stack, without_head, without_prelude
from swarmd.compute.row_linear import use_faster_rows
from swarmd.compute.weights import WeightFolder, load_part, torch_dtype

__all__ = ["ModelEnds"]


class ModelEnds:
    """Embedding and head of a model over one set of weights (a tied embedding is held once)."""

    def __init__(self, folder: WeightFolder, *, dtype: str, device: str = "cpu") -> None:
        """Read the tensors outside the blocks. Raises ModelError, UnsupportedModel."""
        model = load_part(folder, None, dtype=dtype, device=device)
        use_faster_rows(model)
        prelude = forked(model)
        without_head(prelude)
        without_prelude(model)
        self.config = model.config
        self.hidden_size = int(model.config.hidden_size)
        self.vocab_size = int(model.config.vocab_size)
        self.dtype = dtype
        self.torch_dtype = torch_dtype(dtype)
        self.device = device
        self._head = model
        self._prelude = layer_stack(prelude)[0]
        self._takes_positions = (
            "position_ids" in inspect.signature(type(self._prelude).forward).parameters
        )

    @torch.inference_mode()
    def embed(self, token_ids: torch.Tensor, start: int) -> torch.Tensor:
        """Token ids `(1, tokens)` at positions from `start` on, to `(1, tokens, hidden size)`."""
        arguments: dict[str, Any] = {}
        if self._takes_positions:
            end = start + token_ids.shape[1]
            arguments["position_ids"] = torch.arange(start, end, device=self.device).unsqueeze(0)
        output = self._prelude(input_ids=token_ids.to(self.device), use_cache=False, **arguments)
        hidden: torch.Tensor = output.last_hidden_state
        return hidden.to("cpu")

    @torch.inference_mode()
    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """Hidden states after the last block `(1, tokens, hidden size)` to float32 logits
        `(tokens, vocabulary)`."""
        hidden = hidden.to(self.device, self.torch_dtype)
        output: torch.Tensor = self._head(inputs_embeds=hidden, use_cache=False).logits
        return output[0].float().to("cpu")
