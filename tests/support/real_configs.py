"""config.json of published models, as far as classes and special tokens go, in small sizes.

Widths and depths are cut. Token ids shrink in proportion to the vocabulary, so that they lie where
the published ones do: the padding token of the GLM-4 models beyond the rows that a text uses.
"""

from __future__ import annotations

from typing import Any

VOCABULARY = 512
_SIZES = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
}
_GLM_VISION = {
    "depth": 1,
    "hidden_size": 32,
    "num_heads": 2,
    "out_hidden_size": 128,
    "intermediate_size": 48,
    "image_size": 56,
}

PUBLISHED: dict[str, dict[str, Any]] = {
    "Llama-2-7b": {
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": -1,
        "rms_norm_eps": 1e-05,
        "rope_scaling": None,
        "tie_word_embeddings": False,
        "torch_dtype": "float16",
        "vocab_size": 32000,
    },
    "Llama-3.2-1B-Instruct": {
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        "bos_token_id": 128000,
        "eos_token_id": [128001, 128008, 128009],
        "pad_token_id": 128004,
        "head_dim": 16,
        "rms_norm_eps": 1e-05,
        "rope_theta": 500000.0,
        "rope_scaling": {
            "factor": 32.0,
            "high_freq_factor": 4.0,
            "low_freq_factor": 1.0,
            "original_max_position_embeddings": 128,
            "rope_type": "llama3",
        },
        "tie_word_embeddings": True,
        "torch_dtype": "bfloat16",
        "vocab_size": 128256,
    },
    "SmolLM2-135M-Instruct": {
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 2,
        "rope_interleaved": False,
        "rope_scaling": None,
        "rope_theta": 100000,
        "tie_word_embeddings": True,
        "torch_dtype": "bfloat16",
        "vocab_size": 49152,
    },
    "Mistral-7B-Instruct-v0.3": {
        "model_type": "mistral",
        "architectures": ["MistralForCausalLM"],
        "bos_token_id": 1,
        "eos_token_id": 2,
        "rope_theta": 1000000.0,
        "sliding_window": None,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
        "vocab_size": 32768,
    },
    "Qwen2.5-0.5B-Instruct": {
        "model_type": "qwen2",
        "architectures": ["Qwen2ForCausalLM"],
        "bos_token_id": 151643,
        "eos_token_id": 151645,
        "max_window_layers": 21,
        "sliding_window": 32768,
        "use_sliding_window": False,
        "rope_theta": 1000000.0,
        "tie_word_embeddings": True,
        "torch_dtype": "bfloat16",
        "vocab_size": 151936,
    },
    "Qwen3-0.6B": {
        "model_type": "qwen3",
        "architectures": ["Qwen3ForCausalLM"],
        "attention_bias": False,
        "bos_token_id": 151643,
        "eos_token_id": 151645,
        "head_dim": 16,
        "max_window_layers": 28,
        "rope_scaling": None,
        "sliding_window": None,
        "use_sliding_window": False,
        "rope_theta": 1000000,
        "tie_word_embeddings": True,
        "torch_dtype": "bfloat16",
        "vocab_size": 151936,
    },
    "gemma-3-270m": {
        "model_type": "gemma3_text",
        "architectures": ["Gemma3ForCausalLM"],
        "_sliding_window_pattern": 6,
        "attn_logit_softcapping": None,
        "final_logit_softcapping": None,
        "bos_token_id": 2,
        "eos_token_id": 1,
        "pad_token_id": 0,
        "head_dim": 16,
        "hidden_activation": "gelu_pytorch_tanh",
        "layer_types": ["sliding_attention", "full_attention"],
        "query_pre_attn_scalar": 16,
        "rope_local_base_freq": 10000.0,
        "rope_scaling": None,
        "rope_theta": 1000000.0,
        "sliding_window": 32,
        "use_bidirectional_attention": False,
        "torch_dtype": "bfloat16",
        "vocab_size": 262144,
    },
    "GLM-4-9B-0414": {
        "model_type": "glm4",
        "architectures": ["Glm4ForCausalLM"],
        "attention_bias": True,
        "eos_token_id": [151329, 151336, 151338],
        "pad_token_id": 151329,
        "head_dim": 16,
        "partial_rotary_factor": 0.5,
        "rope_theta": 10000.0,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
        "vocab_size": 151552,
    },
    "GLM-4.1V-9B-Thinking": {
        "model_type": "glm4v",
        "architectures": ["Glm4vForConditionalGeneration"],
        "image_start_token_id": 151339,
        "image_end_token_id": 151340,
        "image_token_id": 151343,
        "video_start_token_id": 151341,
        "video_end_token_id": 151342,
        "video_token_id": 151344,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
        "text_config": {
            "model_type": "glm4v_text",
            "attention_bias": True,
            "eos_token_id": [151329, 151336, 151338, 151348],
            "pad_token_id": 151329,
            "partial_rotary_factor": 0.5,
            "rope_theta": 10000.0,
            "rope_scaling": {"type": "default", "mrope_section": [2, 1, 1]},
            "vocab_size": 151552,
            "hidden_size": 128,
            "num_attention_heads": 8,
        },
        "vision_config": {"model_type": "glm4v", **_GLM_VISION},
    },
}
"""Name of a published model to its config.json; widths, depths and lengths are cut."""


def small_config(name: str) -> dict[str, Any]:
    """Return the config of a published model with a vocabulary of 512 tokens."""
    tree = dict(PUBLISHED[name])
    text = tree.get("text_config")
    vocabulary = (text or tree)["vocab_size"]
    if text is None:
        return _scaled({**_SIZES, **tree}, vocabulary)
    return {**_scaled(tree, vocabulary), "text_config": _scaled({**_SIZES, **text}, vocabulary)}


def _scaled(fields: dict[str, Any], vocabulary: int) -> dict[str, Any]:
    """Scale token ids from the end of the vocabulary, where they keep their distances."""

    def scale(token: int) -> int:
        return token if token < VOCABULARY else VOCABULARY - (vocabulary - token)

    scaled = {}
    for name, value in fields.items():
        if name.endswith("_token_id"):
            scaled[name] = [scale(t) for t in value] if isinstance(value, list) else scale(value)
        else:
            scaled[name] = VOCABULARY if name == "vocab_size" else value
    return scaled
