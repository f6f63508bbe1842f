"""The two ends of a model, which a client keeps: tokens to hidden states, and those to logits."""

from __future__ import annotations

import inspect
import logging
from typing import Any

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from swarmd.compute.cut_model import forked, layer_stack, without_final_norm, without_prelude
from swarmd.compute.graphed_ends import GraphedCall
from swarmd.compute.row_linear import use_faster_rows
from swarmd.compute.weights import WeightFolder, load_part, torch_dtype

__all__ = ["ModelEnds"]

log = logging.getLogger(__name__)


class ModelEnds:
    """Embedding and head of a model over one set of weights (a tied embedding is held once)."""

    def __init__(
        self,
        folder: WeightFolder,
        *,
        dtype: str,
        device: str = "cpu",
        task: Any = AutoModelForCausalLM,
    ) -> None:
        """Read the tensors outside the blocks; `task` is the library's auto class of what the model
        is for. Raises ModelError, UnsupportedModel."""
        model = load_part(folder, None, dtype=dtype, device=device, task=task)
        use_faster_rows(model)
        self._set_up(model, dtype=dtype, device=device)

    @classmethod
    def of_model(cls, model: PreTrainedModel, *, dtype: str, device: str = "cpu") -> ModelEnds:
        """Of a model that has no blocks any more (see `cut_model`), wherever its weights come
        from."""
        ends = cls.__new__(cls)
        ends._set_up(model, dtype=dtype, device=device)
        return ends

    def _set_up(self, model: PreTrainedModel, *, dtype: str, device: str) -> None:
        prelude = layer_stack(forked(model))[0]
        without_final_norm(prelude)
        without_prelude(model)
        self.config = model.config
        self.hidden_size = int(model.config.hidden_size)
        self.vocab_size = int(model.config.vocab_size)
        self.dtype = dtype
        self.torch_dtype = torch_dtype(dtype)
        self.device = device
        self._head = model
        self._prelude: PreTrainedModel = prelude
        self._takes_positions = (
            "position_ids" in inspect.signature(type(self._prelude).forward).parameters
        )

        self._graphed_embed: GraphedCall | None = None
        self._graphed_logits: GraphedCall | None = None
        if device != "cpu":
            self._use_graphs()

    @property
    def prelude(self) -> PreTrainedModel:
        """The stock module that embeds; it has no block and no norm."""
        return self._prelude

    @property
    def head(self) -> PreTrainedModel:
        """The stock model without embedding and blocks; its weights are the prelude's if tied."""
        return self._head

    @torch.inference_mode()
    def _use_graphs(self) -> None:
        """For single tokens, as decode steps have them. A family that cannot be captured runs
        eagerly."""
        token = torch.zeros(2, 1, 1, dtype=torch.long, device=self.device)
        hidden = torch.zeros(1, 1, self.hidden_size, dtype=self.torch_dtype, device=self.device)
        try:
            self._graphed_embed = GraphedCall(lambda both: self._embedded(both[0], both[1]), token)
            self._graphed_logits = GraphedCall(self._head_logits, hidden)
        except Exception as error:  # whatever the library does that cannot be captured
            torch.cuda.synchronize()
            log.info("no CUDA graphs for the head: %s: %s", type(error).__name__, error)
            self._graphed_embed = self._graphed_logits = None

    @torch.inference_mode()
    def embed(self, token_ids: torch.Tensor, start: int) -> torch.Tensor:
        """Token ids `(1, tokens)` at positions from `start` on, to `(1, tokens, hidden size)`."""
        end = start + token_ids.shape[1]
        positions = torch.arange(start, end).unsqueeze(0)
        if self._graphed_embed is not None and token_ids.shape[1] == 1:
            return self._graphed_embed(torch.stack([token_ids, positions]))
        return self._embedded(token_ids.to(self.device), positions.to(self.device)).to("cpu")

    @torch.inference_mode()
    def embed_rows(self, inputs: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        """Several rows: token ids `(rows, tokens)`, or embeddings `(rows, tokens, hidden size)` in
        their place, at `positions` `(rows, tokens)`. Returns `(rows, tokens, hidden size)`."""
        return self._embedded(inputs.to(self.device), positions.to(self.device)).to("cpu")

    @torch.inference_mode()
    def normed(self, hidden: torch.Tensor) -> torch.Tensor:
        """Hidden states after the last block to what the output layer is given, in their shape
        `(rows, tokens, hidden size)`."""
        owner = layer_stack(self._head)[0]
        hidden = hidden.to(device=self.device, dtype=self.torch_dtype)
        output: torch.Tensor = owner(inputs_embeds=hidden, use_cache=False).last_hidden_state
        return output.to("cpu")

    @torch.inference_mode()
    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """Hidden states after the last block `(1, tokens, hidden size)` to float32 logits
        `(tokens, vocabulary)`."""
        hidden = hidden.to(self.torch_dtype)
        if self._graphed_logits is not None and hidden.shape[1] == 1:
            return self._graphed_logits(hidden)
        return self._head_logits(hidden.to(self.device)).to("cpu")

    def _embedded(self, inputs: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        arguments = {"position_ids": positions} if self._takes_positions else {}
        arguments["inputs_embeds" if inputs.is_floating_point() else "input_ids"] = inputs
        output = self._prelude(use_cache=False, **arguments)
        hidden: torch.Tensor = output.last_hidden_state
        return hidden

    def _head_logits(self, hidden: torch.Tensor) -> torch.Tensor:
        output: torch.Tensor = self._head(inputs_embeds=hidden, use_cache=False).logits
        return output[0].float()
