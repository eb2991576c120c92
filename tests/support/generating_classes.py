"""Tiny random language models of transformers' classes without a built graph."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import transformers

_SMALL = {
    "vocab_size": 320,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
}
CLASSES: dict[str, dict[str, Any]] = {
    # Biases for distances.
    "bloom": {
        "vocab_size": 320,
        "hidden_size": 32,
        "n_layer": 1,
        "n_head": 4,
        "bos_token_id": 1,
        "eos_token_id": 2,
    },
    # Biases for distances, computed in bfloat16.
    "falcon": {**_SMALL, "num_hidden_layers": 1, "alibi": True, "multi_query": False},
    # A recurrent layer and one with attention.
    "lfm2": {**_SMALL, "num_hidden_layers": 2, "layer_types": ["conv", "full_attention"]},
    # Only recurrent layers, which loop over the tokens.
    "mamba": {"vocab_size": 320, "hidden_size": 32, "state_size": 4, "num_hidden_layers": 1},
}


def save_class(folder: Path, model_type: str, **changes: Any) -> SimpleNamespace:
    """Save a model whose logits differ clearly between tokens; its artifact."""
    torch.manual_seed(0)
    config = transformers.AutoConfig.for_model(model_type, **CLASSES[model_type] | changes)
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(3.0) if weight.ndim > 1 else weight.add_(0.2 * torch.randn_like(weight))
    model.save_pretrained(folder)
    return SimpleNamespace(model=folder, manifest=SimpleNamespace(id="ab12", format="torch"))
