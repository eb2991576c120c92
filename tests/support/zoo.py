"""Small random models of many classes of transformers, built from configs."""

from __future__ import annotations

from typing import Any

import torch
import transformers

_SIZES: dict[str, Any] = {
    "vocab_size": 512,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_GPT = {"n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 128}
_EXPERTS = {"moe_intermediate_size": 64, "num_experts_per_tok": 2}
_LATENT = {
    "q_lora_rank": 32,
    "kv_lora_rank": 32,
    "qk_rope_head_dim": 16,
    "qk_nope_head_dim": 16,
    "v_head_dim": 16,
    "num_key_value_heads": 4,
}
_MIXED_LAYERS = {
    "head_dim": 16,
    "linear_key_head_dim": 16,
    "linear_value_head_dim": 16,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "layer_types": ["linear_attention", "full_attention"],
}
DECODERS: dict[str, dict[str, Any]] = {
    "llama": {},
    "gemma": {"head_dim": 16},
    "gemma2": {"head_dim": 16, "query_pre_attn_scalar": 16},
    "qwen3_5_text": _MIXED_LAYERS,
    "phi": {},
    "phi3": {},
    "glm": {"head_dim": 16},
    "olmo2": {},
    "falcon": {"ffn_hidden_size": 128},
    "gpt2": _GPT,
    "gpt_neox": {},
    "gptj": {**_GPT, "rotary_dim": 8},
    "opt": {"ffn_dim": 128, "word_embed_proj_dim": 64},
    "bloom": {"n_layer": 2, "n_head": 4},
    "mpt": {"d_model": 64, "n_heads": 4, "n_layers": 2, "max_seq_len": 128},
    "starcoder2": {},
    "minicpm3": _LATENT,
    "deepseek_v3": {
        **_LATENT,
        **_EXPERTS,
        "n_routed_experts": 4,
        "first_k_dense_replace": 1,
        "n_group": 1,
        "topk_group": 1,
    },
    "internlm3": {"head_dim": 16},
    "ernie4_5": {"head_dim": 16},
    "mamba": {"state_size": 8},
    "mamba2": {"state_size": 8, "num_heads": 8, "head_dim": 16, "n_groups": 1},
    "cohere": {},
    "seed_oss": {"head_dim": 16},
    "ministral3": {"head_dim": 16},
    "apertus": {},
    "bitnet": {},
    "granite": {},
    "phimoe": {"num_local_experts": 4},
    "lfm2": {"layer_types": ["conv", "full_attention"]},
}
"""``model_type`` of causal language models to the fields that differ from the common sizes."""
_OWN_NAMES = ("n_embd", "d_model", "n_heads")
"""Fields of configs that refuse the usual names of sizes."""


def decoder_config(model_type: str, **fields: Any) -> Any:
    """Return a small config of a causal language model."""
    fields = {**DECODERS[model_type], **fields}
    sizes = dict(_SIZES)
    if any(name in fields for name in _OWN_NAMES) or model_type == "bloom":
        sizes = {
            name: value
            for name, value in sizes.items()
            if name in {"vocab_size", "pad_token_id", "bos_token_id", "eos_token_id"}
            or (name == "hidden_size" and model_type == "bloom")
        }
    config_class = type(transformers.AutoConfig.for_model(model_type))
    return config_class(**{**sizes, **fields})


def decoder(model_type: str, **fields: Any) -> Any:
    """Return a small causal language model in float32, with norms and biases that matter."""
    torch.manual_seed(0)
    module = transformers.AutoModelForCausalLM.from_config(decoder_config(model_type, **fields))
    for parameter in module.parameters():
        if parameter.ndim == 1:
            parameter.data = parameter.data + 0.2 * torch.randn_like(parameter)
    module.config.use_cache = False
    return module.eval().float()
