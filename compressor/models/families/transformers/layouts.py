"""How each supported architecture of transformers names and shapes its parts: one row each, read without torch.

Whoever adds an architecture adds a row; ``tests/unit/models/test_transformers_checkpoint.py`` builds the real class and holds
the row to it, tensor by tensor.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

HEAD = "lm_head"
"""The linear layer after the decoder, by its name in the checkpoint; none where embeddings are tied to it."""
_TWO_NORMS = ("input_layernorm", "post_attention_layernorm")
_FOUR_NORMS = (*_TWO_NORMS, "post_self_attn_layernorm", "post_mlp_layernorm")


@dataclass(frozen=True, slots=True)
class Layout:
    """One architecture. A bias is there, is not, or is told by the config's key of that name."""

    text: tuple[str, ...] = ()
    """Where config.json keeps the language model's fields."""
    root: str = "model"
    """The module that holds ``embed_tokens``, ``layers`` and ``norm``."""
    query_bias: bool | str = False
    """Of query, key and value."""
    out_bias: bool | str = False
    """Of the attention's output."""
    ffn_bias: bool | str = False
    fused_ffn: bool = False
    """One matrix, ``gate_up_proj``, holds the gate and then the up projection."""
    norms: tuple[str, ...] = _TWO_NORMS
    """The norms of a layer over the hidden width."""
    ffn_norm: str = "post_attention_layernorm"
    """The one of them whose result the feed-forward part reads."""
    norm_offset: float = 0.0
    """What a norm adds to its weight."""
    head_norms: tuple[str, ...] = ()
    """The norms of a layer over the width of a head."""
    head_width_is_free: bool = True
    """Whether config.json can say ``head_dim``; else it is hidden width / heads, and the two shrink together."""
    hidden_by_heads: bool = False
    """Whether the class wants a hidden width that its heads divide, though ``head_dim`` is told."""
    rotary_in_pairs: bool = False
    """Whether neighbours are turned together, instead of the halves of a head."""
    scaled_embedding: bool = False
    """Whether the embedding is multiplied by √hidden: cutting the hidden width would change what is left of it."""
    defaults: Mapping[str, Any] = field(default_factory=dict)
    """What transformers takes the language model's fields for where config.json does not say; without one, as Llama's are."""
    vision: str | None = None
    """The module of a vision tower."""


LAYOUTS: Mapping[str, Layout] = {
    "llama": Layout(
        query_bias="attention_bias",
        out_bias="attention_bias",
        ffn_bias="mlp_bias",
        hidden_by_heads=True,
    ),
    "mistral": Layout(defaults={"num_key_value_heads": 8}),
    "qwen2": Layout(query_bias=True, defaults={"num_key_value_heads": 32}),
    "qwen3": Layout(
        query_bias="attention_bias",
        out_bias="attention_bias",
        head_norms=("q_norm", "k_norm"),
        defaults={"num_key_value_heads": 32, "head_dim": 128},
    ),
    "gemma3_text": Layout(
        query_bias="attention_bias",
        out_bias="attention_bias",
        norms=(
            "input_layernorm",
            "post_attention_layernorm",
            "pre_feedforward_layernorm",
            "post_feedforward_layernorm",
        ),
        ffn_norm="pre_feedforward_layernorm",
        norm_offset=1.0,
        head_norms=("q_norm", "k_norm"),
        scaled_embedding=True,
        defaults={"num_key_value_heads": 4, "head_dim": 256, "tie_word_embeddings": True},
    ),
    "glm4": Layout(
        query_bias="attention_bias",
        fused_ffn=True,
        norms=_FOUR_NORMS,
        rotary_in_pairs=True,
        defaults={"num_key_value_heads": 2, "head_dim": 128, "attention_bias": True},
    ),
    "glm4v": Layout(
        text=("text_config",),
        root="model.language_model",
        query_bias=True,
        fused_ffn=True,
        norms=_FOUR_NORMS,
        rotary_in_pairs=True,
        head_width_is_free=False,
        defaults={"num_key_value_heads": 2},
        vision="model.visual",
    ),
}
"""``model_type`` to its layout."""

SIZES = (
    "num_hidden_layers",
    "hidden_size",
    "intermediate_size",
    "num_attention_heads",
    "vocab_size",
)
"""What config.json has to say of the language model."""


@dataclass(frozen=True, slots=True)
class Decoder:
    """The language model of a checkpoint in the words of this package."""

    layout: Layout
    layers: int
    hidden: int
    ffn: int
    heads: int
    key_heads: int
    head_width: int
    vocabulary: int
    tied: bool
    query_bias: bool
    out_bias: bool
    ffn_bias: bool

    @property
    def heads_per_key(self) -> int:
        """Query heads that share a key head."""
        return self.heads // self.key_heads


def decoder_of(tree: Mapping[str, Any]) -> Decoder:
    """Read config.json, of a ``model_type`` that ``LAYOUTS`` has, with all of ``SIZES``."""
    layout = LAYOUTS[tree["model_type"]]
    text = {**layout.defaults, **text_of(tree)}

    def told(value: bool | str) -> bool:
        return bool(text.get(value, False)) if isinstance(value, str) else value

    heads = text["num_attention_heads"]
    head_width = (text.get("head_dim") if layout.head_width_is_free else None) or text[
        "hidden_size"
    ] // heads
    return Decoder(
        layout=layout,
        layers=text["num_hidden_layers"],
        hidden=text["hidden_size"],
        ffn=text["intermediate_size"],
        heads=heads,
        key_heads=text.get("num_key_value_heads") or heads,
        head_width=head_width,
        vocabulary=text["vocab_size"],
        tied=bool({**layout.defaults, **tree}.get("tie_word_embeddings", False)),
        query_bias=told(layout.query_bias),
        out_bias=told(layout.out_bias),
        ffn_bias=told(layout.ffn_bias),
    )


def text_of(tree: Mapping[str, Any]) -> Mapping[str, Any]:
    """The language model's fields of config.json."""
    for key in LAYOUTS[tree["model_type"]].text:
        tree = tree.get(key) or {}
    return tree
