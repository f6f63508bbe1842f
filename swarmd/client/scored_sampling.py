"""A sampler with the penalties of OpenAI's API, which keeps log-probabilities where asked."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from swarmd.client.sampling import Sampler, SamplingConfig

__all__ = ["ScoredSampler", "TokenScore"]


@dataclass(frozen=True, slots=True)
class TokenScore:
    """A chosen token's log-probability (natural logarithm), and those of the likeliest ones."""

    token_id: int
    logprob: float
    top: tuple[tuple[int, float], ...]


class ScoredSampler(Sampler):
    """A `Sampler` that lowers the logits of tokens that the answer has already.

    A token that occurs c > 0 times among the new tokens loses `presence` + c · `frequency`
    (https://platform.openai.com/docs/api-reference/completions/create). `last` is the score of
    the token chosen last, under the model's own distribution: before penalties, temperature and
    cuts. It is None unless `top_logprobs` is given.
    """

    def __init__(
        self,
        config: SamplingConfig,
        *,
        prompt_tokens: int,
        presence: float = 0.0,
        frequency: float = 0.0,
        top_logprobs: int | None = None,
    ) -> None:
        super().__init__(config)
        self.last: TokenScore | None = None
        self._prompt_tokens = prompt_tokens
        self._presence = presence
        self._frequency = frequency
        self._top = top_logprobs

    def choose(self, token_ids: list[int], logits: torch.Tensor) -> int:
        """As :meth:`Sampler.choose`."""
        own = logits
        new = token_ids[self._prompt_tokens :]
        if new and (self._presence or self._frequency):
            found, counts = torch.tensor(new).unique(return_counts=True)
            logits = logits.clone()
            logits[found] -= self._presence + self._frequency * counts
        token = super().choose(token_ids, logits)
        if self._top is not None:
            self.last = self._score(token, own)
        return token

    def _score(self, token: int, logits: torch.Tensor) -> TokenScore:
        scores = torch.log_softmax(logits.float(), dim=-1)
        values, ids = scores.topk(min(self._top or 0, len(scores)))
        top = tuple(zip(ids.tolist(), values.tolist(), strict=True))
        return TokenScore(token, float(scores[token]), top)
