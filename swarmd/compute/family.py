"""The few facts about model families that the library does not tell by itself.

Every decoder-only family of `transformers` runs through the stock module with its layers cut out
(see :mod:`swarmd.compute.cut_model`). What differs is only what happens between the token
embedding and the first block: some families add learned positions to the hidden states, one
multiplies them, one normalises them. The client does that (it keeps the embeddings); a server
that is handed hidden states must not do it again.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

__all__ = ["FAMILIES", "Family", "family_of"]


@dataclass(frozen=True, slots=True)
class Family:
    """What the prelude of a family does beyond the token embedding, by attribute name.

    `positions`: modules of the layer stack's owner that add learned positions (given zeros on a
    server). `norms`: modules applied to the embeddings (identity on a server). `scales`:
    float attributes that multiply the hidden states (one on a server). `switches`: fields of the
    config that turn such a step on (off on a server).
    `projections`: modules between embedding and blocks, or between blocks and head, that change
    the width; a model that uses them is refused. `refused`: why every model of the family is,
    where no trial can find it out.
    """

    positions: tuple[str, ...] = ()
    norms: tuple[str, ...] = ()
    scales: tuple[str, ...] = ()
    switches: tuple[str, ...] = ()
    projections: tuple[str, ...] = ()
    refused: str = ""


_MULTIPLIED = Family(scales=("embedding_multiplier",))

FAMILIES: Mapping[str, Family] = {
    "afmoe": Family(switches=("mup_enabled",)),
    "biogpt": Family(positions=("embed_positions",)),
    "bloom": Family(norms=("word_embeddings_layernorm",)),
    "gpt2": Family(positions=("wpe",)),
    "gpt_bigcode": Family(positions=("wpe",)),
    "gpt_neo": Family(positions=("wpe",)),
    "granite": _MULTIPLIED,
    "granite_swa": _MULTIPLIED,
    "granitemoe": _MULTIPLIED,
    "granitemoe_swa": _MULTIPLIED,
    "granitemoeshared": _MULTIPLIED,
    "hyperclovax": _MULTIPLIED,
    "moshi": Family(refused="its stock cache has a sliding window that its stock mask has not"),
    "opt": Family(positions=("embed_positions",), projections=("project_in", "project_out")),
    "xglm": Family(positions=("embed_positions",)),
}
"""`model_type` to facts; a family that is not here needs none."""


def family_of(config: Mapping[str, Any]) -> Family:
    """The facts of the family that `config["model_type"]` names; empty facts for any other."""
    return FAMILIES.get(str(config.get("model_type")), Family())
