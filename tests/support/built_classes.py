"""Small configs of classes of transformers without a row in the tables, with random weights."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import transformers

_SIZES: Mapping[str, Any] = {
    **dict.fromkeys(("hidden_size", "n_embd", "word_embed_proj_dim"), 64),
    **dict.fromkeys(("num_hidden_layers", "n_layer"), 3),
    **dict.fromkeys(("num_attention_heads", "n_head"), 4),
    "num_key_value_heads": 2,
    **dict.fromkeys(("intermediate_size", "n_inner", "ffn_dim", "ffn_hidden_size"), 96),
    "vocab_size": 512,
    **dict.fromkeys(("max_position_embeddings", "n_positions"), 512),
    "head_dim": 16,
    "query_pre_attn_scalar": 16,
    "sliding_window": 16,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
"""Fields of which a class gets those that it has."""
_BY_LAYER: Mapping[str, Any] = {
    "layer_types": ["sliding_attention", "full_attention", "sliding_attention"]
}
_CAPS: Mapping[str, Any] = {"attn_logit_softcapping": 0.7, "final_logit_softcapping": 2.0}
_EXPERTS: Mapping[str, Any] = {
    **dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts"), 6),
    **dict.fromkeys(("num_experts_per_tok", "moe_k"), 2),
    "moe_intermediate_size": 32,
    "first_k_dense_replace": 1,
    "routed_scaling_factor": 2.5,
}
"""Fields of classes with experts, of which a class gets those that it has."""
DECODER_CLASSES: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "apertus": ("apertus", {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4}}),
    "arcee": ("arcee", {"rope_parameters": {"rope_type": "linear", "factor": 2.0}}),
    "bitnet": ("bitnet", {}),
    "cohere": ("cohere", {}),
    "cohere with head norms": ("cohere", {"use_qk_norm": True}),
    "cohere2": ("cohere2", _BY_LAYER),
    "cwm": (
        "cwm",
        {**_BY_LAYER, "rope_parameters": {"rope_type": "default", "rope_theta": 1e4}},
    ),
    "dots1": ("dots1", {**_BY_LAYER, "n_group": 3, "topk_group": 2, "n_shared_experts": 2}),
    "ernie4_5": ("ernie4_5", {"use_bias": True}),
    "ernie4_5_moe": ("ernie4_5_moe", {"moe_num_experts": 6, "moe_layer_start_index": 1}),
    "exaone4": ("exaone4", _BY_LAYER),
    "falcon": ("falcon", {"multi_query": True}),
    "falcon, new": ("falcon", {"new_decoder_architecture": True, "num_kv_heads": 2}),
    "falcon, in sequence": (
        "falcon",
        {"multi_query": False, "parallel_attn": False, "bias": True},
    ),
    "flex_olmo": ("flex_olmo", {}),
    "gemma": ("gemma", {}),
    "gemma2": ("gemma2", {**_BY_LAYER, **_CAPS}),
    "glm": ("glm", {}),
    "glm4_moe": ("glm4_moe", {"use_qk_norm": True, "norm_topk_prob": False}),
    "gpt2": ("gpt2", {}),
    "gpt_bigcode": ("gpt_bigcode", {}),
    "gpt_bigcode with all heads": ("gpt_bigcode", {"multi_query": False}),
    "gpt_neox": ("gpt_neox", {}),
    "gpt_neox, in sequence": ("gpt_neox", {"use_parallel_residual": False}),
    "gpt_oss": ("gpt_oss", {**_BY_LAYER, "intermediate_size": 32}),
    "gptj": ("gptj", {"rotary_dim": 8}),
    "granite": (
        "granite",
        {
            "embedding_multiplier": 3.0,
            "residual_multiplier": 0.5,
            "logits_scaling": 2.0,
            "attention_multiplier": 0.2,
            "attention_bias": True,
            "mlp_bias": True,
        },
    ),
    "granitemoe": ("granitemoe", {"residual_multiplier": 0.5, "attention_multiplier": 0.2}),
    "helium": ("helium", {}),
    "internlm3": ("internlm3", {"qkv_bias": True, "bias": True}),
    "jais2": ("jais2", {}),
    "ministral": ("ministral", _BY_LAYER),
    "ministral3": (
        "ministral3",
        {
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 1e4,
                "llama_4_scaling_beta": 0.5,
                "original_max_position_embeddings": 16,
            }
        },
    ),
    "mixtral": ("mixtral", {}),
    "nemotron": ("nemotron", {}),
    "olmo": ("olmo", {}),
    "olmo2": ("olmo2", {}),
    "olmo3": ("olmo3", _BY_LAYER),
    "olmoe": ("olmoe", {}),
    "opt": ("opt", {}),
    "persimmon": ("persimmon", {}),
    "phi": ("phi", {"num_key_value_heads": None}),
    "phi with head norms": ("phi", {"num_key_value_heads": None, "qk_layernorm": True}),
    "phi3": ("phi3", {"partial_rotary_factor": 0.5}),
    "phimoe": ("phimoe", {"lm_head_bias": True, "attention_bias": True}),
    "qwen2_moe": ("qwen2_moe", {"shared_expert_intermediate_size": 48}),
    "qwen3_moe": ("qwen3_moe", {"norm_topk_prob": True, "mlp_only_layers": [1]}),
    "seed_oss": ("seed_oss", {"attention_out_bias": True, "mlp_bias": True}),
    "smollm3": ("smollm3", {"no_rope_layers": [1, 0, 1]}),
    "stablelm": ("stablelm", {"use_qkv_bias": True}),
    "stablelm, parallel": ("stablelm", {"use_parallel_residual": True}),
    "starcoder2": ("starcoder2", {"sliding_window": 16}),
    "vaultgemma": ("vaultgemma", {**_BY_LAYER, **_CAPS}),
}
"""Name of a case to the model type and its fields."""


def save_class(folder: Path, model_type: str, fields: Mapping[str, Any]) -> SimpleNamespace:
    """Save a causal language model whose norms, biases and logits matter; its artifact.

    Args:
        folder: the folder to write to.
        model_type: of transformers.
        fields: fields of its config, beside sizes.
    """
    default = transformers.AutoConfig.for_model(model_type)
    known = {**default.to_dict(), **dict.fromkeys(fields)}
    sizes = {name: value for name, value in (_SIZES | _EXPERTS).items() if name in known}
    unset = {name: None for name in ("layer_types", "no_rope_layers") if name in known}
    torch.manual_seed(1)
    config = transformers.AutoConfig.for_model(model_type, **(sizes | unset | dict(fields)))
    build: Any = transformers.AutoModelForCausalLM.from_config
    module = build(config)
    for weight in module.parameters():
        if weight.ndim == 1:
            weight.data = weight.data + 0.2 * torch.randn_like(weight)
        else:
            weight.data = 3 * weight.data
    for name, buffer in module.named_buffers():
        if name.endswith("correction_bias"):
            buffer.copy_(0.2 * torch.randn_like(buffer))
    module.save_pretrained(folder)
    return SimpleNamespace(model=folder, manifest=SimpleNamespace(id="ab12", format="torch"))
