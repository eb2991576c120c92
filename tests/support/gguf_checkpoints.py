"""Tiny checkpoints of the architectures that GGUF files hold, with tokenizers."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import transformers

from compressor.engine.contract import PassContext, PassOutput, PlanContext
from compressor.models.facts import facts_of
from passes.export_gguf.architectures import IMAGE_ENDS
from passes.export_gguf.config import ExportGgufConfig
from passes.export_gguf.step import ExportGguf
from tests.support.awq import pass_context
from tests.support.decoders import save_decoder
from tests.support.processors import write_image_processor
from tests.support.tokenizer_kinds import byte_fallback, byte_level

LLAMA_3_ROTARY = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
YARN_ROTARY = {
    "rope_type": "yarn",
    "rope_theta": 10000.0,
    "factor": 4.0,
    "original_max_position_embeddings": 128,
}
LINEAR_ROTARY = {"rope_type": "linear", "rope_theta": 10000.0, "factor": 2.0}
_SIZES = {
    "vocab_size": 512,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "tie_word_embeddings": False,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 1,
}
_LONG = {"short_factor": [1.0] * 8, "long_factor": [2.0] * 8, "rope_type": "longrope"}
CHECKPOINTS: Mapping[str, tuple[str, dict[str, Any]]] = {
    "llama": ("tiny-llama", {}),
    "llama, untied with biases": (
        "tiny-llama",
        {"tie_word_embeddings": False, "attention_bias": True, "mlp_bias": True},
    ),
    "llama with llama3 rotary": ("tiny-llama", {"rope_parameters": LLAMA_3_ROTARY}),
    "llama with yarn": ("tiny-llama", {"rope_parameters": YARN_ROTARY}),
    "llama with linear rotary": ("tiny-llama", {"rope_parameters": LINEAR_ROTARY}),
    "mistral": ("tiny-mistral", {}),
    "qwen2": ("tiny-qwen2", {}),
    "qwen3": ("tiny-qwen3", {}),
    "gemma3": (
        "tiny-gemma3",
        {
            "num_hidden_layers": 6,
            "layer_types": ["sliding_attention"] * 5 + ["full_attention"],
        },
    ),
    "glm4": ("tiny-glm4", {}),
    "glm4v": ("tiny-glm4v", {}),
    "phi3": ("Phi3", {**_SIZES, "original_max_position_embeddings": 512}),
    "phi3 with longrope": (
        "Phi3",
        {
            **_SIZES,
            "original_max_position_embeddings": 256,
            "rope_parameters": {**_LONG, "rope_theta": 10000.0},
        },
    ),
    "olmo2": ("Olmo2", _SIZES),
    "granite": (
        "Granite",
        {
            **_SIZES,
            "attention_multiplier": 0.2,
            "embedding_multiplier": 3.0,
            "residual_multiplier": 0.5,
            "logits_scaling": 2.0,
        },
    ),
}
"""Preset of the family with changes, or a class of transformers with the fields of its config."""


def save_gguf_parent(folder: Path, name: str = "llama", **changes: Any) -> SimpleNamespace:
    """Save a checkpoint whose norms, biases and logits matter, with a tokenizer; its artifact."""
    source, fields = CHECKPOINTS[name]
    fields = {**fields, **changes}
    if source.startswith("tiny-"):
        parent = save_decoder(folder, source, fields)
    else:
        parent = _save_class(folder, source, fields)
    tokenizer = byte_fallback() if name in {"mistral", "gemma3"} else byte_level()
    if name == "glm4v":
        tokenizer.add_special_tokens({"additional_special_tokens": [*IMAGE_ENDS]})
        write_image_processor(folder)
    tokenizer.chat_template = "{% for m in messages %}{{ m.content }}{% endfor %}"
    tokenizer.save_pretrained(folder)
    return parent


def _save_class(folder: Path, name: str, fields: dict[str, Any]) -> SimpleNamespace:
    torch.manual_seed(1)
    config = getattr(transformers, f"{name}Config")(**fields)
    module = getattr(transformers, f"{name}ForCausalLM")(config)
    for weight in module.parameters():
        noise = torch.randn_like(weight)
        weight.data = weight.data + 0.2 * noise if weight.ndim == 1 else 3 * weight.data
    module.save_pretrained(folder)
    return SimpleNamespace(model=folder, manifest=SimpleNamespace(id="ab12", format="torch"))


def export_gguf(parent: Any, out: Path, **fields: Any) -> tuple[Path, PassOutput]:
    """Export a checkpoint with all checks of the pass; the file and the output."""
    out.mkdir(parents=True)
    context: PassContext = pass_context(out.with_name(f"{out.name}-context"))
    config, step = ExportGgufConfig.model_validate(fields), ExportGguf()
    step.requires(config, parent, context)
    output = step.run(config, parent, out, context)
    step.ensures(config, parent, out, context)
    return out / "model.gguf", output


def edit_tokenizer(folder: Path, **parts: Any) -> None:
    """Replace parts of a checkpoint's tokenizer.json."""
    file = folder / "tokenizer.json"
    file.write_text(json.dumps(json.loads(file.read_bytes()) | parts))


def plan_gguf(folder: Path, **fields: Any) -> None:
    """Check what a plan knows of an export."""
    ExportGguf().estimate(ExportGgufConfig(**fields), facts_of(folder), PlanContext({}))
