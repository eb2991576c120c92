"""Fields of config.json that decide how vLLM splits a model, by the names of transformers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

_TEXT = ("text_config", "llm_config", "language_config")


@dataclass(frozen=True, slots=True)
class Heads:
    """Attention heads of a decoder or of a vision tower."""

    count: int
    key_count: int


@dataclass(frozen=True, slots=True)
class ModelShape:
    """Sizes of a model that the rules depend on; None where config.json has no such part."""

    decoder: Heads | None
    tower: Heads | None
    is_float16: bool
    """True if activations are float16, False for bfloat16."""


def model_shape(tree: Mapping[str, Any]) -> ModelShape:
    """Return the fields of a config.json."""
    text = next((tree[key] for key in _TEXT if isinstance(tree.get(key), Mapping)), tree)
    vision = tree.get("vision_config")
    dtype = str(tree.get("dtype") or tree.get("torch_dtype") or text.get("dtype") or "bfloat16")
    return ModelShape(
        _heads(text),
        _heads(vision) if isinstance(vision, Mapping) else None,
        "float16" in dtype and "bfloat16" not in dtype,
    )


def _heads(fields: Mapping[str, Any]) -> Heads | None:
    for name in ("num_attention_heads", "num_heads", "n_head"):
        count = fields.get(name)
        if isinstance(count, int) and count > 0:
            keys = fields.get("num_key_value_heads")
            return Heads(count, keys if isinstance(keys, int) and keys > 0 else count)
    return None
