"""What a caller gives for a batch, checked and turned into keys: tokens, masks, positions."""

from __future__ import annotations

import numpy as np
import torch

from swarmd.errors import UsageError
from swarmd.hf.rows import PAD, Keys

__all__ = ["Embeddings", "new_columns"]


class Embeddings:
    """Inputs that are no tokens, by keys below PAD, which are never used twice: a session may hold
    one that is forgotten here."""

    def __init__(self) -> None:
        self._next = PAD - 1
        self._rows: dict[int, torch.Tensor] = {}

    def put(self, row: torch.Tensor) -> int:
        """Keep an input `(hidden size,)`; returns its key."""
        key = self._next
        self._next -= 1
        self._rows[key] = row
        return key

    def __getitem__(self, key: int) -> torch.Tensor:
        return self._rows[key]

    def __len__(self) -> int:
        return len(self._rows)

    def keep(self, columns: Keys) -> None:
        """Forget those of which no column is left."""
        if self._rows:
            alive = set(columns.ravel().tolist())
            self._rows = {key: row for key, row in self._rows.items() if key in alive}

    def __copy__(self) -> Embeddings:
        copied = Embeddings()
        copied._next, copied._rows = self._next, dict(self._rows)
        return copied


def new_columns(
    past: Keys,
    input_ids: torch.Tensor | None,
    inputs_embeds: torch.Tensor | None,
    attention_mask: torch.Tensor | None,
    position_ids: torch.Tensor | None,
    *,
    vocab_size: int,
    hidden_size: int,
    embeddings: Embeddings,
) -> Keys:
    """The keys of new columns `(rows, columns)`, which follow the columns `past`.

    Of `input_ids` `(rows, columns)` and `inputs_embeds` `(rows, columns, hidden size)` one is
    given; embeddings are put into `embeddings` under keys of their own. `attention_mask`: of the
    new columns, or of all. A row's positions are counted over what its mask leaves, so padding may
    stand on either side; `position_ids` may only say the same. Raises UsageError.
    """
    if (input_ids is None) == (inputs_embeds is None):
        raise UsageError("give either input_ids or inputs_embeds")
    given = input_ids if input_ids is not None else inputs_embeds
    assert given is not None
    shape = given.shape[:2] if input_ids is not None else (*given.shape[:2], hidden_size)
    if tuple(given.shape) != tuple(shape) or len(shape) < 2 or not given.numel():
        raise UsageError(
            f"inputs of shape {tuple(given.shape)}: input_ids are (rows, tokens), inputs_embeds "
            f"(rows, tokens, {hidden_size}), and neither is empty"
        )
    if given.is_floating_point() is (input_ids is not None):
        raise UsageError(f"inputs of dtype {given.dtype}: tokens are integers, embeddings are not")
    rows, columns = int(given.shape[0]), int(given.shape[1])
    if past.shape[1] and past.shape[0] != rows:
        raise UsageError(
            f"{rows} rows for a cache of {past.shape[0]}: go on with the same rows, or start anew"
        )
    real = _real(attention_mask, past, rows, columns)
    if input_ids is not None:
        keys = np.where(real, input_ids.detach().cpu().numpy().astype(np.int64), PAD)
        if keys.max(initial=PAD) >= vocab_size or (keys[real] < 0).any():
            raise UsageError(f"token ids must be in 0..{vocab_size - 1}")
    else:
        assert inputs_embeds is not None
        if inputs_embeds.requires_grad and torch.is_grad_enabled():
            raise UsageError("no gradients flow through the swarm: call this under torch.no_grad()")
        keys = np.full((rows, columns), PAD, dtype=np.int64)
        rest = inputs_embeds.detach().cpu().clone()
        for row, column in zip(*np.nonzero(real), strict=True):
            keys[row, column] = embeddings.put(rest[row, column])
    if position_ids is not None:
        _check_positions(position_ids, past, real)
    return keys


def _real(mask: torch.Tensor | None, past: Keys, rows: int, columns: int) -> np.ndarray:
    """Which of the new columns are positions of their rows: bools `(rows, columns)`."""
    if mask is None:
        return np.ones((rows, columns), dtype=bool)
    whole = past.shape[1] + columns
    if mask.dim() != 2 or mask.shape[0] != rows or mask.shape[1] not in (columns, whole):
        raise UsageError(
            f"attention_mask of shape {tuple(mask.shape)}: it is ({rows}, {whole}), a 1 for each "
            "token and a 0 for padding"
        )
    real: np.ndarray = mask.detach().cpu().numpy() != 0
    if (
        past.shape[1]
        and mask.shape[1] == whole
        and (real[:, : past.shape[1]] != (past != PAD)).any()
    ):
        raise UsageError(
            "attention_mask differs from before about earlier tokens, which the peers have in "
            "their caches: start anew"
        )
    return real[:, -columns:]


def _check_positions(position_ids: torch.Tensor, past: Keys, real: np.ndarray) -> None:
    before = np.count_nonzero(past != PAD, axis=1) if past.shape[1] else np.zeros(1, dtype=int)
    expected = before[:, None] + np.cumsum(real, axis=1) - 1
    given = position_ids.detach().cpu().numpy()
    if given.ndim != 2 or given.shape[1] != real.shape[1] or given.shape[0] not in (1, len(real)):
        raise UsageError(f"position_ids of shape {tuple(given.shape)}: they are {real.shape}")
    if ((given != expected) & real).any():
        raise UsageError(
            "position_ids must count each row's tokens from 0 without its padding, as generate "
            "does: leave them out"
        )
