"""Small random models of every architecture, for trying out pipelines and for tests."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from compressor.models.families.transformers.config import CheckpointConfig

_SIZES: Mapping[str, Any] = {
    "vocab_size": 512,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-6,
}
_VISION: Mapping[str, Any] = {
    "depth": 2,
    "hidden_size": 32,
    "num_heads": 2,
    "out_hidden_size": 128,
    "intermediate_size": 48,
    "image_size": 56,
    "patch_size": 14,
    "spatial_merge_size": 2,
    "temporal_patch_size": 2,
    "in_channels": 3,
}
_SPECIAL_TOKENS = (
    "image_token_id",
    "video_token_id",
    "image_start_token_id",
    "image_end_token_id",
    "video_start_token_id",
    "video_end_token_id",
)


def _preset(model_type: str, architecture: str, **fields: Any) -> CheckpointConfig:
    return CheckpointConfig.model_validate(
        {"model_type": model_type, "architectures": (architecture,), **fields}
    )


# Special tokens lie where the published models of each family have them, in proportion to the
# vocabulary: at its start (Mistral, Gemma), or at its end, where few texts use them (the others).
PRESETS: Mapping[str, CheckpointConfig] = {
    "tiny-llama": _preset(
        "llama",
        "LlamaForCausalLM",
        **_SIZES,
        tie_word_embeddings=True,
        bos_token_id=500,
        eos_token_id=[501, 508, 509],
        pad_token_id=504,
    ),
    "tiny-mistral": _preset(
        "mistral",
        "MistralForCausalLM",
        **_SIZES,
        sliding_window=None,
        bos_token_id=1,
        eos_token_id=2,
    ),
    "tiny-qwen2": _preset(
        "qwen2",
        "Qwen2ForCausalLM",
        **_SIZES,
        tie_word_embeddings=True,
        bos_token_id=509,
        eos_token_id=511,
        pad_token_id=509,
    ),
    "tiny-qwen3": _preset(
        "qwen3",
        "Qwen3ForCausalLM",
        **_SIZES,
        head_dim=16,
        layer_types=["full_attention"] * 3,
        bos_token_id=509,
        eos_token_id=511,
        pad_token_id=509,
    ),
    "tiny-gemma3": _preset(
        "gemma3_text",
        "Gemma3ForCausalLM",
        **_SIZES,
        head_dim=16,
        query_pre_attn_scalar=16,
        sliding_window=32,
        layer_types=["sliding_attention", "sliding_attention", "full_attention"],
        tie_word_embeddings=True,
        pad_token_id=0,
        bos_token_id=2,
        eos_token_id=[1, 106],
    ),
    "tiny-glm4": _preset(
        "glm4",
        "Glm4ForCausalLM",
        **_SIZES,
        head_dim=16,
        pad_token_id=507,
        eos_token_id=[507, 509, 511],
    ),
    "tiny-glm4v": _preset(
        "glm4v",
        "Glm4vForConditionalGeneration",
        text_config={
            **_SIZES,
            "model_type": "glm4v_text",
            "hidden_size": 128,
            "num_attention_heads": 8,
            "pad_token_id": 507,
            "eos_token_id": [507, 509, 511],
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 10000.0,
                "partial_rotary_factor": 0.5,
                "mrope_section": [2, 1, 1],
            },
        },
        vision_config={**_VISION, "model_type": "glm4v_vision"},
        **{name: 500 + number for number, name in enumerate(_SPECIAL_TOKENS)},
    ),
}
