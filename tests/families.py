"""Tiny models with random weights, one of each family, made in the test."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

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

FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {},
    "mistral": {"sliding_window": 8},
    "mixtral": {"num_local_experts": 4, "num_experts_per_tok": 2},
    "qwen2": {},
    "qwen3": {"head_dim": 8},
    "gemma2": {"head_dim": 8, "query_pre_attn_scalar": 8, **_MIXED_WINDOWS},
    "gemma3_text": {"head_dim": 8, "query_pre_attn_scalar": 8, **_MIXED_WINDOWS},
    "phi3": {},
    "bloom": {"n_layer": N_BLOCKS, "n_head": 4},
    "falcon": {"new_decoder_architecture": False, "multi_query": True},
    "gpt_neox": {},
    "olmo2": {},
    "deepseek_v3": {
        "num_key_value_heads": 4,
        "moe_intermediate_size": 16,
        "n_routed_experts": 4,
        "num_experts_per_tok": 2,
        "n_group": 1,
        "topk_group": 1,
        "first_k_dense_replace": 2,
        "q_lora_rank": 16,
        "kv_lora_rank": 16,
        "qk_rope_head_dim": 8,
        "qk_nope_head_dim": 8,
        "v_head_dim": 8,
        "n_shared_experts": 1,
    },
    "gpt_oss": {
        "head_dim": 8,
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
        **_MIXED_WINDOWS,
    },
    "glm4": {"head_dim": 8},
    "cohere": {},
    "gpt2": {"n_layer": N_BLOCKS, "n_head": 4, "n_embd": 32, "n_positions": 256},
    "opt": {"word_embed_proj_dim": 32, "ffn_dim": 48},
    "granite": {"embedding_multiplier": 3.0, "logits_scaling": 2.0, "residual_multiplier": 0.5},
}


def save_tiny(family: str, folder: Path, *, seed: int = 0) -> Path:
    """Write a tiny random model of `family` in Hugging Face layout, in several shards."""
    torch.manual_seed(seed)
    config = AutoConfig.for_model(family, **{**_COMMON, **FAMILIES[family]})
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    with torch.no_grad():  # the default initialisation is so flat that argmax says little
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(0.0, 0.15)
    model.save_pretrained(folder, max_shard_size="60KB")
    return folder
