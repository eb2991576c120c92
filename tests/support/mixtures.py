"""Tiny mixtures of experts of transformers, with random weights."""

from __future__ import annotations

from typing import Any, cast

import torch
import transformers
from transformers import PreTrainedModel

_SIZES = {
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 64,
    "moe_intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "num_experts": 4,
    "num_local_experts": 4,
    "num_experts_per_tok": 2,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_LATENT = {
    "n_routed_experts": 4,
    "n_shared_experts": 1,
    "n_group": 1,
    "topk_group": 1,
    "first_k_dense_replace": 1,
}
_LATENT_ATTENTION = {
    **_LATENT,
    "num_key_value_heads": 4,
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 8,
    "v_head_dim": 8,
}
MIXTURES: dict[str, dict[str, Any]] = {
    "MixtralForCausalLM": {},
    "Qwen2MoeForCausalLM": {"shared_expert_intermediate_size": 48},
    "Qwen3MoeForCausalLM": {"head_dim": 8},
    "Qwen3NextForCausalLM": {
        "head_dim": 8,
        "shared_expert_intermediate_size": 48,
        "linear_num_value_heads": 2,
        "linear_num_key_heads": 2,
        "linear_key_head_dim": 8,
        "linear_value_head_dim": 8,
        "layer_types": ["linear_attention", "full_attention"],
    },
    "GraniteMoeForCausalLM": {},
    "PhimoeForCausalLM": {},
    "OlmoeForCausalLM": {},
    "GptOssForCausalLM": {"head_dim": 8, "intermediate_size": 32},
    "DeepseekV3ForCausalLM": _LATENT_ATTENTION,
    "Glm4MoeForCausalLM": {**_LATENT, "head_dim": 8},
    "Dots1ForCausalLM": {**_LATENT, "head_dim": 8},
    "Ernie4_5_MoeForCausalLM": {"moe_num_experts": 4, "moe_k": 2, "moe_num_shared_experts": 1},
    "HunYuanMoEV1ForCausalLM": {"head_dim": 8, "moe_topk": 2},
    "Llama4ForCausalLM": {"head_dim": 8, "intermediate_size_mlp": 48, "num_experts_per_tok": 1},
    "JambaForCausalLM": {"attn_layer_period": 2, "attn_layer_offset": 1},
    "Lfm2MoeForCausalLM": {"layer_types": ["conv", "full_attention"], "num_dense_layers": 0},
    "NemotronHForCausalLM": {
        "n_routed_experts": 4,
        "layers_block_type": ["attention", "moe"],
        "head_dim": 8,
    },
}
"""Class to fields of its config beyond the common sizes."""


def mixture(name: str, **fields: Any) -> PreTrainedModel:
    """Return a mixture in eval mode, with random weights of usable sizes.

    Args:
        name: a class in ``MIXTURES``.
        fields: further fields of the config.
    """
    model_class = getattr(transformers, name)
    config = model_class.config_class(**{**_SIZES, **MIXTURES[name], **fields})
    torch.manual_seed(0)
    model: PreTrainedModel = model_class(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(std=parameter.shape[-1] ** -0.5)
    return model.eval()


_ROPE = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [1, 1, 2]}
_TOWER = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "out_hidden_size": 32,
    "depth": 1,
    "num_heads": 2,
    "num_position_embeddings": 16,
    "deepstack_visual_indexes": [0],
}
VISION_MIXTURES: dict[str, dict[str, Any]] = {
    "Glm4vMoeForConditionalGeneration": {"n_routed_experts": 4, "first_k_dense_replace": 1},
    "Qwen3VLMoeForConditionalGeneration": {"head_dim": 8},
    "Qwen3_5MoeForConditionalGeneration": {
        **MIXTURES["Qwen3NextForCausalLM"],
        "rope_parameters": {**_ROPE, "partial_rotary_factor": 1.0},
    },
    "Ernie4_5_VLMoeForConditionalGeneration": {
        "moe_intermediate_size": [32, 32],
        "moe_num_experts": 4,
        "moe_k": 2,
        "mlp_layer_types": ["dense", "sparse"],
    },
}
"""Vision-language class to fields of its text config beyond the common sizes."""


def vision_mixture(name: str) -> PreTrainedModel:
    """Return a vision-language model with experts, with random weights."""
    model_class = getattr(transformers, name)
    text = {**_SIZES, "rope_parameters": _ROPE, **VISION_MIXTURES[name]}
    config = model_class.config_class(
        text_config=text, vision_config=_TOWER, tie_word_embeddings=False
    )
    torch.manual_seed(0)
    return cast("PreTrainedModel", model_class(config).eval())
