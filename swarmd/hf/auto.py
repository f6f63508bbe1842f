"""`from_pretrained`: from a model's name and a node's address to a model that answers."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForSequenceClassification, GenerationConfig

from swarmd.compute.cut_model import parse_config
from swarmd.compute.ends import ModelEnds
from swarmd.compute.model_folder import ModelFolder
from swarmd.compute.source import resolve_model
from swarmd.compute.weights import DTYPES
from swarmd.errors import ModelError, UsageError
from swarmd.hf.causal_lm import DistributedModelForCausalLM
from swarmd.hf.classifier import DistributedModelForSequenceClassification
from swarmd.hf.loop_thread import LoopThread
from swarmd.hf.swarm_link import LinkOptions, SwarmLink, swarm_link
from swarmd.invite import Invite
from swarmd.membership import membership, parse_node
from swarmd.peers import Address
from swarmd.routing.query import CHAIN_QUANTIZATIONS
from swarmd.wire.codecs import CODEC_CHOICES, CodecChoice

__all__ = ["AutoDistributedModelForCausalLM", "AutoDistributedModelForSequenceClassification"]

Connect = Callable[[ModelFolder, LinkOptions], AbstractAsyncContextManager[SwarmLink]]


class AutoDistributedModelForCausalLM:
    """Stands where a script has `AutoModelForCausalLM`."""

    def __init__(self) -> None:
        raise UsageError(f"{type(self).__name__} is made by from_pretrained(model, peers=[…])")

    @classmethod
    def from_pretrained(
        cls,
        model: str | os.PathLike[str] | None = None,
        *,
        peers: Sequence[str] = (),
        swarm_key: str | os.PathLike[str] | None = None,
        state_dir: str | os.PathLike[str] | None = None,
        dtype: str | torch.dtype | None = None,
        quantization: str = "auto",
        wait: float = 0.0,
        known: bool = False,
        lan: bool | None = None,
        replan: bool | None = None,
        codec: CodecChoice = "auto",
        standby: bool = False,
        connect: Connect = swarm_link,
    ) -> DistributedModelForCausalLM:
        """A model whose blocks are served by the swarm, connected to it.

        `model`: as `--model` of the commands (default: smollm2). `peers`: nodes as `host:port`, or
        invites; without any, nodes remembered on this machine and those of the local network are
        asked. `swarm_key`: the key file of a private swarm ($SWARMD_SWARM_KEY). `dtype`: what the
        peers must compute in (default: what the cheapest chain does; "auto" says the same).
        `quantization`, `known`, `state_dir` and `wait` (seconds) are those of `swarmd generate`;
        `lan=False` is its `--no-lan` ($SWARMD_NO_LAN), `replan` its `--replan` and `--no-replan`,
        `codec` and `standby` its `--codec` and `--standby`.
        `connect` is for tests.

        Blocks for as long as a download takes. Raises UsageError, ModelError, UnsupportedModel,
        BootstrapFailed if no node answers, NoRoute if blocks are served by nobody.
        """
        options = _options(
            peers,
            swarm_key,
            state_dir,
            dtype,
            quantization,
            wait,
            known,
            lan,
            replan,
            codec,
            standby,
        )
        folder = resolve_model(None if model is None else os.fspath(model), client=True)
        loop = LoopThread(lambda: connect(folder, options), name="swarmd-hf")
        try:
            ends = ModelEnds(folder, dtype=loop.value.arithmetic.dtype)
            return DistributedModelForCausalLM(
                _config(folder), ends, loop,
                max_positions=folder.max_positions, generation_config=_generation_config(folder),
            )  # fmt: skip
        except BaseException:
            loop.close()
            raise


class AutoDistributedModelForSequenceClassification:
    """Stands where a script has `AutoModelForSequenceClassification`. The checkpoint has the
    classifier's own output layer; peers serve the same checkpoint."""

    def __init__(self) -> None:
        raise UsageError(f"{type(self).__name__} is made by from_pretrained(model, peers=[…])")

    @classmethod
    def from_pretrained(
        cls,
        model: str | os.PathLike[str],
        *,
        peers: Sequence[str] = (),
        swarm_key: str | os.PathLike[str] | None = None,
        state_dir: str | os.PathLike[str] | None = None,
        dtype: str | torch.dtype | None = None,
        quantization: str = "auto",
        wait: float = 0.0,
        known: bool = False,
        lan: bool | None = None,
        replan: bool | None = None,
        codec: CodecChoice = "auto",
        standby: bool = False,
        connect: Connect = swarm_link,
    ) -> DistributedModelForSequenceClassification:
        """As :meth:`AutoDistributedModelForCausalLM.from_pretrained`. Raises ModelError as well if
        the checkpoint has no output layer of a classifier."""
        options = _options(
            peers,
            swarm_key,
            state_dir,
            dtype,
            quantization,
            wait,
            known,
            lan,
            replan,
            codec,
            standby,
        )
        folder = resolve_model(os.fspath(model), client=True)
        loop = LoopThread(lambda: connect(folder, options), name="swarmd-hf")
        try:
            ends = ModelEnds(
                folder,
                dtype=loop.value.arithmetic.dtype,
                task=AutoModelForSequenceClassification,
            )
            return DistributedModelForSequenceClassification(
                _config(folder), ends, loop, max_positions=folder.max_positions
            )
        except BaseException:
            loop.close()
            raise


def _options(
    peers: Sequence[str],
    swarm_key: str | os.PathLike[str] | None,
    state_dir: str | os.PathLike[str] | None,
    dtype: str | torch.dtype | None,
    quantization: str,
    wait: float,
    known: bool,
    lan: bool | None,
    replan: bool | None,
    codec: CodecChoice,
    standby: bool,
) -> LinkOptions:
    """Raises UsageError."""
    if isinstance(peers, str):
        raise UsageError(f'peers is a list: peers=["{peers}"]')
    if quantization not in CHAIN_QUANTIZATIONS:
        raise UsageError(
            f"quantization {quantization!r}: use one of {', '.join(CHAIN_QUANTIZATIONS)}"
        )
    if codec not in CODEC_CHOICES:
        raise UsageError(f"codec {codec!r}: use one of {', '.join(CODEC_CHOICES)}")
    if not 0 <= wait <= 86400:
        raise UsageError(f"wait {wait}: give seconds from 0 to 86400")
    named = {value: name for name, value in DTYPES.items()}
    wanted = named.get(dtype, str(dtype)) if isinstance(dtype, torch.dtype) else dtype
    if wanted not in (None, "auto", *DTYPES):
        raise UsageError(f"dtype {wanted}: use one of {', '.join(DTYPES)}, or auto")
    nodes = [parse_node(peer) for peer in peers]
    key_file = os.environ.get("SWARMD_SWARM_KEY") or None if swarm_key is None else swarm_key
    if lan is None:
        lan = os.environ.get("SWARMD_NO_LAN", "").lower() in ("", "0", "false", "no", "off")
    return LinkOptions(
        membership(
            [node for node in nodes if isinstance(node, Address)],
            [node for node in nodes if isinstance(node, Invite)],
            None if key_file is None else Path(key_file),
        ),
        state_dir=None if state_dir is None else Path(state_dir),
        lan=lan,
        known=known,
        quantization=quantization,
        dtype=None if wanted == "auto" else wanted,
        wait=wait,
        replan=replan,
        codec=codec,
        standby=standby,
    )


def _config(folder: ModelFolder) -> Any:
    """The whole model's config, which knows where its folder is: tokenizers are loaded from it."""
    config = parse_config(folder.config)
    config._name_or_path = str(folder.path)
    return config


def _generation_config(folder: ModelFolder) -> GenerationConfig | None:
    """That of generation_config.json, if there is one. Raises ModelError for a broken one."""
    if not (folder.path / "generation_config.json").exists():
        return None
    try:
        return GenerationConfig.from_pretrained(str(folder.path), local_files_only=True)
    except (OSError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise ModelError(f"{folder.path}/generation_config.json: {reason}") from error
