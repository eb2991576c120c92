"""Small random models of transformers' text decoders, many of which have no row in our tables."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import PreTrainedModel

VOCABULARY = 320
_LLAMA = {
    "vocab_size": VOCABULARY,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_GPT2 = {
    "vocab_size": VOCABULARY,
    "n_embd": 64,
    "n_layer": 2,
    "n_head": 4,
    "n_positions": 128,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_BLOOM = {
    "vocab_size": VOCABULARY,
    "hidden_size": 64,
    "n_layer": 2,
    "n_head": 4,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_STATES = {
    "vocab_size": VOCABULARY,
    "hidden_size": 64,
    "state_size": 8,
    "num_hidden_layers": 2,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_HEADS = {**_LLAMA, "head_dim": 16}
_SLIDING = {**_HEADS, "num_hidden_layers": 4, "sliding_window": 8}
_EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 48}
_LOCAL_EXPERTS = {"num_local_experts": 4, "num_experts_per_tok": 2}
_SHARED_EXPERTS = {
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 48,
    "first_k_dense_replace": 1,
    "n_shared_experts": 1,
}
_LATENT_ATTENTION = {
    "num_key_value_heads": 4,
    "q_lora_rank": 32,
    "kv_lora_rank": 16,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 16,
}
_GROUPED_EXPERTS = {**_SHARED_EXPERTS, "n_group": 1, "topk_group": 1, "v_head_dim": 12}
_LINEAR_ATTENTION = {
    "num_hidden_layers": 4,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 16,
    "linear_value_head_dim": 16,
    "linear_conv_kernel_dim": 4,
}
_MULTIPLIERS = {
    "embedding_multiplier": 2.0,
    "logits_scaling": 2.0,
    "residual_multiplier": 0.5,
    "attention_multiplier": 0.2,
}
_GEMMA3 = {**_SLIDING, "num_hidden_layers": 6}
_SMALL_TABLE = {"vocab_size_per_layer_input": VOCABULARY, "hidden_size_per_layer_input": 16}

NOTED_DECODERS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", _LLAMA),
    "mistral": ("mistral", {**_LLAMA, "sliding_window": 8}),
    "mixtral": ("mixtral", {**_LLAMA, **_LOCAL_EXPERTS}),
    "qwen2": ("qwen2", _LLAMA),
    "qwen2_moe": ("qwen2_moe", {**_LLAMA, **_EXPERTS, "shared_expert_intermediate_size": 48}),
    "qwen3": ("qwen3", _HEADS),
    "qwen3_moe": ("qwen3_moe", {**_HEADS, **_EXPERTS}),
    "qwen3_next": (
        "qwen3_next",
        {**_HEADS, **_EXPERTS, **_LINEAR_ATTENTION, "shared_expert_intermediate_size": 48},
    ),
    "qwen3_5_text": ("qwen3_5_text", {**_HEADS, **_LINEAR_ATTENTION}),
    "gemma": ("gemma", _HEADS),
    "gemma2": ("gemma2", _SLIDING),
    "gemma3_text": ("gemma3_text", {**_GEMMA3, "query_pre_attn_scalar": 16}),
    "gemma3n_text": (
        "gemma3n_text",
        {
            **_SLIDING,
            **_SMALL_TABLE,
            "num_hidden_layers": 10,
            "num_kv_shared_layers": 4,
            "activation_sparsity_pattern": [0.0] * 10,
            "laurel_rank": 8,
        },
    ),
    "gemma4_text": (
        "gemma4_text",
        {**_GEMMA3, **_SMALL_TABLE, "global_head_dim": 32, "num_kv_shared_layers": 0},
    ),
    "phi": ("phi", _LLAMA),
    "phimoe": ("phimoe", {**_LLAMA, **_LOCAL_EXPERTS}),
    "glm": ("glm", _HEADS),
    "glm4": ("glm4", _HEADS),
    "glm4_moe": ("glm4_moe", {**_HEADS, **_SHARED_EXPERTS}),
    "gpt_oss": (
        "gpt_oss",
        {
            **_HEADS,
            **_LOCAL_EXPERTS,
            "sliding_window": 8,
            "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
        },
    ),
    "deepseek_v3": ("deepseek_v3", {**_LLAMA, **_LATENT_ATTENTION, **_GROUPED_EXPERTS}),
    "olmo2": ("olmo2", _LLAMA),
    "falcon": ("falcon", {**_LLAMA, "new_decoder_architecture": False, "multi_query": True}),
    "gpt2": ("gpt2", _GPT2),
    "gpt_neox": ("gpt_neox", _LLAMA),
    "gptj": ("gptj", {**_GPT2, "rotary_dim": 8}),
    "opt": ("opt", {**_LLAMA, "ffn_dim": 96, "word_embed_proj_dim": 64}),
    "bloom": ("bloom", _BLOOM),
    "mpt": (
        "mpt",
        {
            "vocab_size": VOCABULARY,
            "d_model": 64,
            "n_layers": 2,
            "n_heads": 4,
            "max_seq_len": 128,
            "expansion_ratio": 2,
        },
    ),
    "starcoder2": ("starcoder2", _LLAMA),
    "granitemoe": ("granitemoe", {**_LLAMA, **_LOCAL_EXPERTS, **_MULTIPLIERS}),
    "minicpm3": ("minicpm3", {**_LLAMA, **_LATENT_ATTENTION, "v_head_dim": 16}),
    "internlm3": ("llama", _HEADS),
    "ernie4_5": ("ernie4_5", _HEADS),
    "mamba": ("mamba", _STATES),
    "mamba2": (
        "mamba2",
        {**_STATES, "num_heads": 8, "head_dim": 16, "n_groups": 1, "chunk_size": 16},
    ),
    "cohere": ("cohere", _LLAMA),
    "seed_oss": ("seed_oss", _HEADS),
    "llama4_text": (
        "llama4_text",
        {
            **_HEADS,
            **_LOCAL_EXPERTS,
            "num_experts_per_tok": 1,
            "intermediate_size_mlp": 96,
            "num_hidden_layers": 4,
            "attention_chunk_size": 8,
        },
    ),
    "ministral3": ("ministral3", _HEADS),
    "apertus": ("apertus", _LLAMA),
    "bitnet": ("bitnet", _LLAMA),
}
"""Decoders of the notes on intake: name to ``model_type`` and fields of the config."""

OTHER_DECODERS: dict[str, tuple[str, dict[str, Any]]] = {
    "granite": ("granite", {**_LLAMA, **_MULTIPLIERS}),
    "phi3": ("phi3", _LLAMA),
    "smollm3": ("smollm3", _LLAMA),
    "olmo3": ("olmo3", {**_LLAMA, "sliding_window": 8, "num_hidden_layers": 4}),
    "nemotron": ("nemotron", _LLAMA),
    "stablelm": ("stablelm", _LLAMA),
    "exaone4": ("exaone4", {**_LLAMA, "sliding_window": 8, "num_hidden_layers": 4}),
    "cohere2": ("cohere2", _SLIDING),
    "helium": ("helium", _HEADS),
    "arcee": ("arcee", _LLAMA),
    "persimmon": ("persimmon", _LLAMA),
    "olmoe": ("olmoe", {**_LLAMA, "num_experts": 4, "num_experts_per_tok": 2}),
    "deepseek_v2": ("deepseek_v2", {**_LLAMA, **_LATENT_ATTENTION, **_GROUPED_EXPERTS}),
    "gpt_bigcode": ("gpt_bigcode", _GPT2),
    "gpt_neo": (
        "gpt_neo",
        {
            "vocab_size": VOCABULARY,
            "hidden_size": 64,
            "num_layers": 2,
            "attention_types": [[["global", "local"], 1]],
            "num_heads": 4,
            "max_position_embeddings": 128,
            "window_size": 8,
        },
    ),
    "codegen": ("codegen", {**_GPT2, "rotary_dim": 8}),
    "xglm": (
        "xglm",
        {
            "vocab_size": VOCABULARY,
            "d_model": 64,
            "ffn_dim": 96,
            "num_layers": 2,
            "attention_heads": 4,
            "max_position_embeddings": 128,
        },
    ),
    "lfm2": (
        "lfm2",
        {
            **_LLAMA,
            "num_hidden_layers": 4,
            "layer_types": ["conv", "full_attention", "conv", "full_attention"],
        },
    ),
    "falcon_h1": (
        "falcon_h1",
        {
            **_HEADS,
            "mamba_d_ssm": 64,
            "mamba_n_heads": 4,
            "mamba_d_head": 16,
            "mamba_d_state": 8,
            "mamba_n_groups": 1,
            "mamba_chunk_size": 16,
        },
    ),
    "hunyuan_v1_dense": ("hunyuan_v1_dense", _HEADS),
    "diffllama": ("diffllama", _LLAMA),
    "vaultgemma": ("vaultgemma", _SLIDING),
    "biogpt": ("biogpt", _LLAMA),
    "bamba": (
        "bamba",
        {
            **_LLAMA,
            "attn_layer_indices": [1],
            "mamba_n_heads": 8,
            "mamba_d_head": 16,
            "mamba_d_state": 8,
            "mamba_n_groups": 1,
            "mamba_chunk_size": 16,
        },
    ),
}
"""Decoders beyond the notes."""
DECODERS = NOTED_DECODERS | OTHER_DECODERS


def build_decoder(name: str, seed: int = 0) -> PreTrainedModel:
    """Return the model in eval mode; its weights are large enough for distinct logits."""
    model_type, fields = DECODERS[name]
    config: Any = transformers.AutoConfig.for_model(model_type, **fields)
    torch.manual_seed(seed)
    model: PreTrainedModel = transformers.AutoModelForCausalLM.from_config(config).eval().float()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.2 * torch.randn_like(parameter))
            else:
                parameter.mul_(3)
    return model


def write_decoder(folder: Path, name: str, seed: int = 0) -> Path:
    """Save the model as a checkpoint without a tokenizer, and return the folder."""
    build_decoder(name, seed).save_pretrained(folder)
    return folder
