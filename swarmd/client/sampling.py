"""How the next token is chosen from logits: the library's processors, and one seeded draw."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from transformers import (
    LogitsProcessorList,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from swarmd.errors import UsageError

__all__ = ["Sampler", "SamplingConfig"]

GREEDY_BELOW = 1e-5
"""Below this temperature logits divided by it overflow fp32, and the draw is certain anyway."""


@dataclass(frozen=True, slots=True)
class SamplingConfig:
    """Temperature 0 is greedy. `top_k` 0 and `top_p` 1 are off; `seed` None draws a new one."""

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    repetition_penalty: float = 1.0
    seed: int | None = None

    def __post_init__(self) -> None:
        for wrong, text in (
            (not 0 <= self.temperature <= 100, "--temperature must lie in 0..100"),
            (self.top_k < 0, "--top-k must be 0 (off) or more"),
            (not 0 < self.top_p <= 1, "--top-p must lie in (0, 1]"),
            (not 0 < self.repetition_penalty <= 100, "--repetition-penalty must lie in (0, 100]"),
            (self.seed is not None and not 0 <= self.seed < 1 << 63, "--seed must lie in 0..2^63"),
        ):
            if wrong:
                raise UsageError(text)


class Sampler:
    """Chooses tokens of one answer. The same seed and logits give the same tokens."""

    def __init__(self, config: SamplingConfig) -> None:
        self.config = config
        self._generator = torch.Generator()
        if config.seed is None:
            self._generator.seed()
        else:
            self._generator.manual_seed(config.seed)
        self._processors = LogitsProcessorList()
        if config.repetition_penalty != 1.0:
            self._processors.append(RepetitionPenaltyLogitsProcessor(config.repetition_penalty))
        self._greedy = config.temperature < GREEDY_BELOW
        if not self._greedy:
            self._processors.append(TemperatureLogitsWarper(config.temperature))
            if config.top_k:
                self._processors.append(TopKLogitsWarper(config.top_k))
            if config.top_p < 1:
                self._processors.append(TopPLogitsWarper(config.top_p))

    def state(self) -> torch.Tensor | None:
        """Where the draws are (about 5 KB), for `restore`; None where nothing is drawn."""
        return None if self._greedy else self._generator.get_state()

    def restore(self, state: torch.Tensor | None) -> None:
        """Draw again as after that `state`."""
        if state is not None:
            self._generator.set_state(state)

    def choose(self, token_ids: list[int], logits: torch.Tensor) -> int:
        """The next token after `token_ids`, from the logits `(vocabulary,)` of the last one."""
        scores = logits.unsqueeze(0)
        if self._processors:
            scores = self._processors(torch.tensor([token_ids]), scores)
        if self._greedy:
            return int(scores[0].argmax())
        probabilities = torch.softmax(scores[0], dim=-1)
        return int(torch.multinomial(probabilities, 1, generator=self._generator))
