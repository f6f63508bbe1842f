"""A causal language model over the swarm, with the library's own `generate`."""

from __future__ import annotations

import contextlib
import threading
from dataclasses import dataclass
from typing import Any

import torch
from transformers import GenerationConfig, GenerationMixin, PretrainedConfig
from transformers.modeling_outputs import CausalLMOutputWithPast

from swarmd.compute.ends import ModelEnds
from swarmd.errors import UsageError
from swarmd.hf.cache import SwarmCache
from swarmd.hf.distributed import DistributedModel, Passed
from swarmd.hf.loop_thread import LoopThread
from swarmd.hf.swarm_link import SwarmLink

__all__ = ["DistributedCausalLMOutput", "DistributedModelForCausalLM"]

HEAD_POSITIONS = 512
"""Positions that the head computes at a time; their masks and logits are what takes memory."""


@dataclass
class DistributedCausalLMOutput(CausalLMOutputWithPast):
    """As the library's. `hidden_states` are those at the boundaries of hops: the input of the first
    block, of each further hop, and the last hop's output after the final norm. The stock model's
    `hidden_states[hop_boundaries[i]]` is here `hidden_states[i]`."""

    hop_boundaries: tuple[int, ...] | None = None


class DistributedModelForCausalLM(DistributedModel, GenerationMixin):
    """Made by `AutoDistributedModelForCausalLM.from_pretrained`."""

    def __init__(
        self,
        config: PretrainedConfig,
        ends: ModelEnds,
        loop: LoopThread[SwarmLink],
        *,
        max_positions: int,
        generation_config: GenerationConfig | None = None,
    ) -> None:
        super().__init__(config, ends, loop, max_positions=max_positions)
        if generation_config is not None:
            self.generation_config = generation_config
        self._made = threading.local()

    def get_output_embeddings(self) -> Any:
        return self.ends.head.get_output_embeddings()

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        past_key_values: SwarmCache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        use_cache: bool | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        logits_to_keep: int | torch.Tensor = 0,
    ) -> Any:
        """As a stock model's forward; of padding columns the outputs are those of the row's last
        token before them.

        Without a cache, outside a session and without `use_cache=True` nothing is left at the peers
        afterwards. Raises UsageError for what cannot be, NoRoute for blocks that nobody serves,
        and what else a session raises.
        """
        if output_attentions:
            raise UsageError("attentions are computed at the peers, which do not send them")
        cache, temporary = self._cache_for(past_key_values, use_cache)
        whole = bool(output_hidden_states) or isinstance(logits_to_keep, torch.Tensor)
        try:
            passed = self.through(
                cache,
                input_ids=input_ids,
                inputs_embeds=inputs_embeds,
                attention_mask=attention_mask,
                position_ids=position_ids,
                keep=None if whole or logits_to_keep == 0 else int(logits_to_keep),
                boundaries=bool(output_hidden_states),
            )
        finally:
            if temporary:
                cache.close()
        kept: Any = logits_to_keep
        if isinstance(logits_to_keep, int):
            kept = slice(-logits_to_keep if logits_to_keep else None, None)
        logits = self._logits(passed.hidden[:, kept])
        output = DistributedCausalLMOutput(
            loss=self._loss(logits, labels),
            logits=logits,
            past_key_values=None if temporary else cache,
            hidden_states=self._hidden_states(passed) if output_hidden_states else None,
            hop_boundaries=(
                (*passed.boundaries, int(self.config.num_hidden_layers))
                if output_hidden_states
                else None
            ),
        )
        return output.to_tuple() if return_dict is False else output

    def generate(self, *args: Any, **kwargs: Any) -> Any:
        """The library's `generate`, with all of its modes. In a session, or with a cache, what the
        text begins with is not run again (or, as in the library, what follows is given, with a mask
        of all). Padding may stand on either side. Raises UsageError for `position_ids`, which
        follow from the attention mask, and what `forward` raises."""
        if kwargs.get("position_ids") is not None:
            raise UsageError("generate counts positions by attention_mask: leave position_ids out")
        cache, use_cache = kwargs.get("past_key_values"), kwargs.get("use_cache")
        config = kwargs.get("generation_config") or self.generation_config
        if (config.use_cache if use_cache is None else use_cache) is not False:
            cache = kwargs["past_key_values"] = self.active_session if cache is None else cache
        elif cache is not None:
            raise UsageError("past_key_values with use_cache=False: leave one of them out")
        inputs = args[0] if args else kwargs.get("inputs", kwargs.get("input_ids"))
        mask = kwargs.get("attention_mask")
        with contextlib.ExitStack() as stack:
            if cache is not None:
                stack.enter_context(self._checked(cache).alone())
                if inputs is None or mask is None or mask.shape[-1] == inputs.shape[-1]:
                    # the whole text: what the sessions hold of it is found by its tokens
                    cache.reset()
            before, self._made.caches = getattr(self._made, "caches", None), []
            try:
                return super().generate(*args, **kwargs)
            finally:
                for made in self._made.caches:
                    made.close()
                self._made.caches = before

    def init_continuous_batching(self, *_args: Any, **_kwargs: Any) -> Any:
        """Raises UsageError: the library's manager wants the caches here."""
        raise UsageError("the peers batch what runs at the same time: give generate several rows")

    def prepare_inputs_for_generation(
        self, input_ids: torch.Tensor, inputs_embeds: torch.Tensor | None = None, **kwargs: Any
    ) -> dict[str, Any]:
        """The library's hook. The positions that it counts are wrong for padding on the right."""
        inputs: dict[str, Any] = super().prepare_inputs_for_generation(
            input_ids, inputs_embeds=inputs_embeds, **kwargs
        )
        inputs.pop("position_ids", None)
        return inputs

    def _prepare_cache_for_generation(
        self,
        generation_config: GenerationConfig,
        model_kwargs: dict[str, Any],
        generation_mode: Any,
        batch_size: int,
        max_cache_length: int,
    ) -> None:
        """The library's hook: what `past_key_values` a generation has."""
        if generation_config.cache_implementation not in (None, "dynamic"):
            raise UsageError(
                f"cache_implementation={generation_config.cache_implementation!r}: the caches are "
                "at the peers; leave it out"
            )
        cache = model_kwargs.get("past_key_values")
        if generation_config.use_cache is False:
            model_kwargs.pop("past_key_values", None)
            return
        if cache is None:
            cache = self.new_cache()
            self._made.caches.append(cache)
        else:
            self._checked(cache)
            cache._is_user_defined = True
        cache.reserve(max_cache_length)
        model_kwargs["past_key_values"] = cache

    def _cache_for(self, given: Any, use_cache: bool | None) -> tuple[SwarmCache, bool]:
        """The cache of a call, and whether it ends with it."""
        if given is not None:
            return self._checked(given), False
        if use_cache is not False and self.active_session is not None:
            return self.active_session, False
        cache = self.new_cache()
        if not use_cache:
            cache.reserve(1)  # and as many more as the call has
        return cache, not use_cache

    def _checked(self, cache: Any) -> SwarmCache:
        if not isinstance(cache, SwarmCache) or cache.loop is not self._loop:
            raise UsageError(
                f"past_key_values is a {type(cache).__name__} that is not of this model: leave it "
                "out, or take that of an earlier output (use_cache=True) or model.session(…)"
            )
        return cache

    def _logits(self, hidden: torch.Tensor) -> torch.Tensor:
        flat = hidden.reshape(1, -1, self.ends.hidden_size)
        parts = [self.ends.logits(part) for part in flat.split(HEAD_POSITIONS, dim=1)]
        # cat makes a tensor of its own, which may be changed in place: logits processors do
        return torch.cat(parts).to(self.ends.torch_dtype).reshape(*hidden.shape[:2], -1)

    def _loss(self, logits: torch.Tensor, labels: torch.Tensor | None) -> torch.Tensor | None:
        if labels is None:
            return None
        loss: torch.Tensor = self.loss_function(
            logits=logits, labels=labels, vocab_size=int(self.config.vocab_size)
        )
        return loss

    def _hidden_states(self, passed: Passed) -> tuple[torch.Tensor, ...]:
        return (*passed.states, self.ends.normed(passed.hidden).clone())
