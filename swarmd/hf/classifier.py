"""A sequence classifier over the swarm."""

from __future__ import annotations

from typing import Any

import torch
from transformers import PretrainedConfig
from transformers.modeling_outputs import SequenceClassifierOutputWithPast

from swarmd.compute.ends import ModelEnds
from swarmd.errors import UsageError
from swarmd.hf.distributed import DistributedModel
from swarmd.hf.loop_thread import LoopThread
from swarmd.hf.swarm_link import SwarmLink

__all__ = ["DistributedModelForSequenceClassification"]


class DistributedModelForSequenceClassification(DistributedModel):
    """Made by `AutoDistributedModelForSequenceClassification.from_pretrained`; its `ends` are those
    of a classifier."""

    def __init__(
        self,
        config: PretrainedConfig,
        ends: ModelEnds,
        loop: LoopThread[SwarmLink],
        *,
        max_positions: int,
    ) -> None:
        super().__init__(config, ends, loop, max_positions=max_positions)
        ends.head.config.pad_token_id = None  # it is given a row's last token only

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        return_dict: bool | None = None,
    ) -> Any:
        """Logits `(rows, labels)` from each row's last token that is not padding by
        `config.pad_token_id` (as in the library; of embeddings, by `attention_mask`), and with
        `labels` the loss. Raises UsageError for several rows of a model without a padding token,
        NoRoute for blocks that nobody serves, and what else a session raises."""
        cache = self.new_cache()
        cache.reserve(1)  # and as many more as this call has
        try:
            passed = self.through(
                cache,
                input_ids=input_ids,
                inputs_embeds=inputs_embeds,
                attention_mask=attention_mask,
                position_ids=position_ids,
            )
        finally:
            cache.close()
        found = []
        with torch.inference_mode():
            for row, last in enumerate(self._last_tokens(input_ids, passed.hidden)):
                label = None if labels is None else labels[row : row + 1].cpu()
                found.append(
                    self.ends.head(inputs_embeds=last[None], labels=label, use_cache=False)
                )
        output = SequenceClassifierOutputWithPast(
            # the library's losses are means; one of a label that is to be ignored is no number
            loss=None if labels is None else torch.stack([one.loss for one in found]).nanmean(),
            logits=torch.cat([one.logits for one in found]),
        )
        return output.to_tuple() if return_dict is False else output

    def _last_tokens(self, input_ids: torch.Tensor | None, hidden: torch.Tensor) -> torch.Tensor:
        """The hidden states that are classified: `(rows, 1, hidden size)`."""
        pad, rows = self.config.pad_token_id, hidden.shape[0]
        if pad is None and rows > 1:
            raise UsageError(
                "this model names no padding token: set model.config.pad_token_id, or give one "
                "row at a time"
            )
        at = torch.full((rows,), hidden.shape[1] - 1)
        if pad is not None and input_ids is not None:
            words = (input_ids.cpu() != pad).long()
            at = (torch.arange(hidden.shape[1]) * words).argmax(dim=-1)
        return hidden[torch.arange(rows), at][:, None]
