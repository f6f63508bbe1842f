"""Tiny models with random weights, one of each family, made in the test."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

N_BLOCKS = 6
_COMMON: dict[str, Any] = {
    "vocab_size": 97,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": N_BLOCKS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_MIXED_WINDOWS = {
    "sliding_window": 8,
    "layer_types": ["sliding_attention", "full_attention"] * (N_BLOCKS // 2),
}
_HEAD = {"head_dim": 8}
_EXPERTS = {"num_local_experts": 4, "num_experts_per_tok": 2}
_SMALL_EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
_ROUTED_EXPERTS = {
    "moe_intermediate_size": 16,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "n_group": 1,
    "topk_group": 1,
    "first_k_dense_replace": 2,
    "n_shared_experts": 1,
}
_LATENT = {
    "num_key_value_heads": 4,
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 8,
    "v_head_dim": 8,
}
_MULTIPLIERS = {"embedding_multiplier": 3.0, "logits_scaling": 2.0, "residual_multiplier": 0.5}
_GPT = {"n_layer": N_BLOCKS, "n_head": 4, "n_embd": 32, "n_positions": 256}

FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {},
    "mistral": {"sliding_window": 8},
    "mixtral": _EXPERTS,
    "qwen2": {},
    "qwen3": _HEAD,
    "gemma2": {**_HEAD, "query_pre_attn_scalar": 8, **_MIXED_WINDOWS},
    "gemma3_text": {**_HEAD, "query_pre_attn_scalar": 8, **_MIXED_WINDOWS},
    "phi3": {},
    "bloom": {"n_layer": N_BLOCKS, "n_head": 4},
    "falcon": {"new_decoder_architecture": False, "multi_query": True},
    "gpt_neox": {},
    "olmo2": {},
    "deepseek_v3": {**_ROUTED_EXPERTS, **_LATENT},
    "gpt_oss": {**_HEAD, **_EXPERTS, **_MIXED_WINDOWS},
    "glm4": _HEAD,
    "cohere": {},
    "gpt2": _GPT,
    "opt": {"word_embed_proj_dim": 32, "ffn_dim": 48},
    "granite": _MULTIPLIERS,
    "afmoe": {
        **_HEAD,
        **_SMALL_EXPERTS,
        **_MIXED_WINDOWS,
        "num_dense_layers": 2,
        "mup_enabled": True,
    },
    "apertus": {},
    "arcee": {},
    "aria_text": {"moe_num_experts": 4, "moe_topk": 2},
    "axk1": {**_ROUTED_EXPERTS, **_LATENT},
    "beam": {
        **_HEAD,
        **_MIXED_WINDOWS,
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 16,
        "n_group": 1,
        "topk_group": 1,
    },
    "biogpt": {},
    "bitnet": {},
    "codegen": {**_GPT, "rotary_dim": 4, "n_ctx": 256},
    "cohere2": _MIXED_WINDOWS,
    "cohere2_moe": {**_HEAD, **_MIXED_WINDOWS, **_SMALL_EXPERTS},
    "cwm": {**_HEAD, **_MIXED_WINDOWS},
    "dbrx": {
        "d_model": 32,
        "n_heads": 4,
        "n_layers": N_BLOCKS,
        "max_seq_len": 256,
        "attn_config": {"kv_n_heads": 2, "rope_theta": 10000.0, "clip_qkv": 8.0},
        "ffn_config": {
            "hidden_size": 32,
            "ffn_hidden_size": 48,
            "moe_num_experts": 4,
            "moe_top_k": 2,
        },
    },
    "deepseek_v2": {**_ROUTED_EXPERTS, **_LATENT, "topk_method": "greedy"},
    "diffllama": {},
    "doge": {},
    "dots1": {**_HEAD, **_ROUTED_EXPERTS, **_MIXED_WINDOWS},
    "ernie4_5": _HEAD,
    "ernie4_5_moe": {
        "moe_num_experts": 4,
        "moe_k": 2,
        "moe_intermediate_size": 16,
        "moe_num_shared_experts": 1,
    },
    "exaone4": _MIXED_WINDOWS,
    "exaone_moe": {
        **_MIXED_WINDOWS,
        **_SMALL_EXPERTS,
        "n_group": 1,
        "topk_group": 1,
        "first_k_dense_replace": 2,
    },
    "flex_olmo": {"num_experts": 4, "num_experts_per_tok": 2},
    "flint": {**_HEAD, **_MIXED_WINDOWS, **_SMALL_EXPERTS},
    "gemma": _HEAD,
    "glm": _HEAD,
    "glm4_moe": {**_HEAD, **_ROUTED_EXPERTS},
    "glm4_moe_lite": {**_ROUTED_EXPERTS, **_LATENT},
    "gpt_bigcode": _GPT,
    "gpt_neo": {
        "num_layers": N_BLOCKS,
        "attention_types": [[["global", "local"], N_BLOCKS // 2]],
        "window_size": 8,
        "num_heads": 4,
    },
    "gpt_neox_japanese": {},
    "gpt-sw3": _GPT,
    "gptj": {**_GPT, "rotary_dim": 4},
    "granite_swa": {**_MULTIPLIERS, **_MIXED_WINDOWS},
    "granitemoe": {**_EXPERTS, **_MULTIPLIERS},
    "granitemoe_swa": {**_EXPERTS, **_MULTIPLIERS, **_MIXED_WINDOWS},
    "granitemoeshared": {**_EXPERTS, **_MULTIPLIERS, "shared_intermediate_size": 16},
    "helium": _HEAD,
    "hunyuan_v1_dense": _HEAD,
    "hunyuan_v1_moe": {**_HEAD, "num_experts": 4, "moe_topk": 2},
    "hy_v3": {**_HEAD, **_SMALL_EXPERTS, "first_k_dense_replace": 2},
    "hyperclovax": {**_HEAD, **_MULTIPLIERS},
    "internlm3": _HEAD,
    "iquestcoder": _HEAD,
    "jais2": {},
    "jetmoe": {
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
        "kv_channels": 8,
        "num_key_value_heads": 2,
    },
    "kolibri1": {**_HEAD, **_MIXED_WINDOWS, **_SMALL_EXPERTS},
    "laguna": {**_HEAD, **_SMALL_EXPERTS, **_MIXED_WINDOWS},
    "llama4_text": {
        **_HEAD,
        **_EXPERTS,
        "intermediate_size_mlp": 48,
        "attention_chunk_size": 8,
        "num_experts_per_tok": 1,
        "no_rope_layers": [1, 1, 0, 1, 1, 0],
        "floor_scale": 4,
        "interleave_moe_layer_step": 2,
    },
    "mellum": {**_HEAD, **_SMALL_EXPERTS, **_MIXED_WINDOWS},
    "mimo_v2_flash": {
        **_HEAD,
        **_ROUTED_EXPERTS,
        **_MIXED_WINDOWS,
        "v_head_dim": 8,
        "swa_head_dim": 8,
        "swa_v_head_dim": 8,
    },
    "minicpm3": {**_LATENT, "scale_emb": 3, "scale_depth": 1.4, "dim_model_base": 16},
    "minimax_m2": {**_HEAD, **_EXPERTS},
    "minimax_m3_vl_text": {**_HEAD, **_EXPERTS},
    "ministral": {**_HEAD, **_MIXED_WINDOWS},
    "ministral3": {**_HEAD, "sliding_window": 8},
    "mpt": {
        "d_model": 32,
        "n_heads": 4,
        "n_layers": N_BLOCKS,
        "max_seq_len": 256,
        "expansion_ratio": 2,
    },
    "nemotron": _HEAD,
    "olmo": {"clip_qkv": 0.5},
    "olmo3": _MIXED_WINDOWS,
    "olmoe": {"num_experts": 4, "num_experts_per_tok": 2},
    "persimmon": {},
    "phi": {},
    "phimoe": {**_EXPERTS, "sliding_window": 8},
    "qwen2_moe": {**_SMALL_EXPERTS, "shared_expert_intermediate_size": 16},
    "qwen3_moe": {**_HEAD, **_SMALL_EXPERTS},
    "seed_oss": _HEAD,
    "smollm3": {"no_rope_layers": [1, 1, 1, 0, 1, 1]},
    "solar_open": {**_HEAD, **_ROUTED_EXPERTS},
    "stablelm": {"use_parallel_residual": False},
    "starcoder2": {"sliding_window": 8},
    "vaultgemma": {**_HEAD, "query_pre_attn_scalar": 8, **_MIXED_WINDOWS},
    "xglm": {"d_model": 32, "num_layers": N_BLOCKS, "attention_heads": 4, "ffn_dim": 48},
    "youtu": _LATENT,
}


CHARACTERISTIC = list(FAMILIES)[:19]
"""Llama to Granite: at least one of each kind."""

MULTIMODAL = {
    "emu3", "fuyu", "gemma3", "gemma3n", "gemma4", "gemma4_unified", "git", "got_ocr2", "llama4",
    "mllama", "moss_transcribe_diarize", "phi4_multimodal", "qwen3_5", "qwen3_5_moe", "qwen4_exp",
    "trocr",
}  # fmt: skip
"""Names of models that see or hear as well; of some, the language model is a family above."""

_RECOVERED: dict[str, dict[str, Any]] = {
    "cohere_compass_text": {"layer_types": ["full_attention"] * 40},
    "gemma4_assistant": {
        "text_config": {"hidden_size_per_layer_input": 0, "vocab_size_per_layer_input": 0}
    },
    "lfm2_moe": {"layer_types": ["conv", "full_attention"], "num_hidden_layers": 2},
    "reformer": {"is_decoder": True},
}
"""What the default config of a family lacks to be one that the library itself can build."""


def causal_families() -> set[str]:
    """All names under which the installed library has a causal language model."""
    return set(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)


def stock_config(family: str) -> dict[str, Any]:
    """The default config of a family, as its config.json would hold it."""
    config = AutoConfig.for_model(family, **_RECOVERED.get(family, {})).to_dict()
    return {**config, "model_type": family}


def tiny_config(family: str, **fields: Any) -> PretrainedConfig:
    """A config of some ten thousand parameters; `fields` change it."""
    stock = AutoConfig.for_model(family)
    common = {key: value for key, value in _COMMON.items() if hasattr(stock, key)}
    return AutoConfig.for_model(family, **{**common, **FAMILIES[family], **fields})


def save_tiny(family: str, folder: Path, *, seed: int = 0, **fields: Any) -> Path:
    """Write a tiny random model of `family` in Hugging Face layout, in several shards."""
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(
        tiny_config(family, **fields), dtype=torch.float32
    ).eval()
    with torch.no_grad():  # the default initialisation is so flat that argmax says little
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(0.0, 0.15)
    model.save_pretrained(folder, max_shard_size="60KB")
    return folder
