"""Layouts of the supported architectures of transformers: names and shapes, one row each, no torch.

To support another architecture, add a row to ``LAYOUTS``:
``tests/unit/models/families/transformers/test_checkpoint.py`` builds the class of transformers and
compares it with the row, tensor by tensor.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

LM_HEAD = "lm_head"
"""Name of the linear layer after the decoder; absent if it is tied to the embedding."""
TIED_FLAG = "tie_word_embeddings"
"""Field of config.json: the head shares the embedding's weight."""
Attention = Literal["full", "sliding", "by layer"]
_TWO_NORMS = ("input_layernorm", "post_attention_layernorm")
_FOUR_NORMS = (*_TWO_NORMS, "post_self_attn_layernorm", "post_mlp_layernorm")


@dataclass(frozen=True, slots=True)
class Layout:
    """One architecture.

    The three bias fields are True or False, or the key of config.json that holds the value.
    """

    architecture: str
    """Class of transformers that loads a checkpoint."""
    text: tuple[str, ...] = ()
    """Path of the language model's fields in config.json."""
    root: str = "model"
    """Module that holds ``embed_tokens``, ``layers`` and ``norm``."""
    query_bias: bool | str = False
    """Bias of the query, key and value projections."""
    out_bias: bool | str = False
    """Bias of the attention's output projection."""
    ffn_bias: bool | str = False
    """Bias of the feed-forward projections."""
    fused_ffn: bool = False
    """True if one matrix, ``gate_up_proj``, holds the gate and then the up projection."""
    norms: tuple[str, ...] = _TWO_NORMS
    """Norms of a layer over the hidden width."""
    ffn_norm: str = "post_attention_layernorm"
    """The norm before the feed-forward network."""
    norm_offset: float = 0.0
    """Value added to the weight of a norm."""
    head_norms: tuple[str, ...] = ()
    """Norms of a layer over the width of a head."""
    head_width_is_free: bool = True
    """True if config.json may set ``head_dim``; otherwise a head is hidden width / heads wide, and
    both shrink together."""
    key_heads_may_be_null: bool = False
    """True if a null ``num_key_value_heads`` means as many as heads."""
    hidden_by_heads: bool = False
    """True if the class requires a hidden width divisible by the heads even with ``head_dim``."""
    rotary_in_pairs: bool = False
    """True if rotary embeddings rotate neighbouring values; otherwise value d and d + width / 2."""
    scaled_embedding: bool = False
    """True if the embedding is multiplied by √hidden: cutting the hidden width would change the
    remaining values."""
    activation: str = "hidden_act"
    """Field with the activation of the feed-forward network."""
    attention: Attention = "full"
    """Positions that layers attend to: all before the token; a sliding window in every layer; or
    by layer, as ``layer_types`` states."""
    attention_scale: str | None = None
    """Field whose power −½ scales the attention scores; None for the width of a head."""
    softcaps: tuple[str, ...] = ()
    """Fields that cap the attention scores or the logits."""
    bidirectional: str | None = None
    """Field that lets a token attend to later ones."""
    partial_rotary: bool = False
    """True if ``partial_rotary_factor`` states how much of a head is rotated."""
    rotary_by_type: bool = False
    """True if ``rope_parameters`` holds those of each layer type."""
    defaults: Mapping[str, Any] = field(default_factory=dict)
    """Transformers' defaults of the language model's fields; Llama's where a field is absent."""
    vision: str | None = None
    """Module of the vision tower; None for a model of text alone."""

    @property
    def layers_name(self) -> str:
        """Name of the module list of decoder layers."""
        return f"{self.root}.layers"


_LONG_CONTEXT: Mapping[str, Any] = {"max_position_embeddings": 131072}
_QWEN: Mapping[str, Any] = {
    "max_position_embeddings": 32768,
    "use_sliding_window": False,
    "sliding_window": 4096,
    "max_window_layers": 28,
}
LAYOUTS: Mapping[str, Layout] = {
    "llama": Layout(
        "LlamaForCausalLM",
        query_bias="attention_bias",
        out_bias="attention_bias",
        ffn_bias="mlp_bias",
        hidden_by_heads=True,
        key_heads_may_be_null=True,
    ),
    "mistral": Layout(
        "MistralForCausalLM",
        attention="sliding",
        defaults={**_LONG_CONTEXT, "num_key_value_heads": 8, "sliding_window": 4096},
    ),
    "qwen2": Layout(
        "Qwen2ForCausalLM",
        query_bias=True,
        attention="by layer",
        key_heads_may_be_null=True,
        defaults={**_QWEN, "num_key_value_heads": 32},
    ),
    "qwen3": Layout(
        "Qwen3ForCausalLM",
        query_bias="attention_bias",
        out_bias="attention_bias",
        head_norms=("q_norm", "k_norm"),
        attention="by layer",
        key_heads_may_be_null=True,
        defaults={**_QWEN, "num_key_value_heads": 32, "head_dim": 128},
    ),
    "gemma3_text": Layout(
        "Gemma3ForCausalLM",
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
        activation="hidden_activation",
        attention="by layer",
        attention_scale="query_pre_attn_scalar",
        softcaps=("final_logit_softcapping", "attn_logit_softcapping"),
        bidirectional="use_bidirectional_attention",
        rotary_by_type=True,
        defaults={
            **_LONG_CONTEXT,
            "num_key_value_heads": 4,
            "head_dim": 256,
            "tie_word_embeddings": True,
            "hidden_activation": "gelu_pytorch_tanh",
            "query_pre_attn_scalar": 256,
            "sliding_window": 4096,
            "sliding_window_pattern": 6,
        },
    ),
    "glm4": Layout(
        "Glm4ForCausalLM",
        query_bias="attention_bias",
        fused_ffn=True,
        norms=_FOUR_NORMS,
        rotary_in_pairs=True,
        partial_rotary=True,
        defaults={
            **_LONG_CONTEXT,
            "num_key_value_heads": 2,
            "head_dim": 128,
            "attention_bias": True,
            "rms_norm_eps": 1.5625e-07,
            "partial_rotary_factor": 0.5,
            "pad_token_id": 151329,
        },
    ),
    "glm4v": Layout(
        "Glm4vForConditionalGeneration",
        text=("text_config",),
        root="model.language_model",
        query_bias=True,
        fused_ffn=True,
        norms=_FOUR_NORMS,
        rotary_in_pairs=True,
        head_width_is_free=False,
        partial_rotary=True,
        defaults={
            "num_key_value_heads": 2,
            "rms_norm_eps": 1e-05,
            "max_position_embeddings": 32768,
            "mrope_section": [8, 12, 12],
        },
        vision="model.visual",
    ),
}
"""``model_type`` to layout."""


def is_tabulated(tree: Mapping[str, Any]) -> bool:
    """Return True if the class that config.json names has a row in ``LAYOUTS``."""
    layout = LAYOUTS.get(str(tree.get("model_type")))
    return layout is not None and tuple(tree.get("architectures") or ()) == (layout.architecture,)


SIZES = (
    "num_hidden_layers",
    "hidden_size",
    "intermediate_size",
    "num_attention_heads",
    "vocab_size",
)
"""Required fields of the language model in config.json."""


_VISION_DEFAULTS: Mapping[str, Any] = {
    "depth": 24,
    "hidden_size": 1536,
    "attention_bias": False,
    "in_channels": 3,
    "image_size": 336,
    "patch_size": 14,
    "spatial_merge_size": 2,
    "temporal_patch_size": 2,
    "num_heads": 12,
    "out_hidden_size": 4096,
    "intermediate_size": 13696,
}
"""Transformers' defaults of ``Glm4vVisionConfig``."""


@dataclass(frozen=True, slots=True)
class DecoderShape:
    """The dimensions of a checkpoint's language model."""

    layout: Layout
    layers: int
    hidden: int
    ffn: int
    heads: int
    key_heads: int
    head_width: int
    vocabulary: int
    tied: bool
    """True if the head shares the weight of the embedding."""
    query_bias: bool
    out_bias: bool
    ffn_bias: bool

    @property
    def heads_per_key(self) -> int:
        """Query heads that share a key head."""
        return self.heads // self.key_heads


def decoder_shape(tree: Mapping[str, Any]) -> DecoderShape:
    """Return the dimensions in a config.json, which must have all fields of ``SIZES``."""
    layout = LAYOUTS[tree["model_type"]]
    text = {**layout.defaults, **text_config(tree)}

    def has_bias(bias: bool | str) -> bool:
        return bool(text.get(bias, False)) if isinstance(bias, str) else bias

    heads = text["num_attention_heads"]
    head_width = text.get("head_dim") if layout.head_width_is_free else None
    return DecoderShape(
        layout=layout,
        layers=text["num_hidden_layers"],
        hidden=text["hidden_size"],
        ffn=text["intermediate_size"],
        heads=heads,
        key_heads=text.get("num_key_value_heads") or heads,
        head_width=head_width or text["hidden_size"] // heads,
        vocabulary=text["vocab_size"],
        tied=bool({**layout.defaults, **tree}.get(TIED_FLAG, False)),
        query_bias=has_bias(layout.query_bias),
        out_bias=has_bias(layout.out_bias),
        ffn_bias=has_bias(layout.ffn_bias),
    )


def vision_config(tree: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the vision tower's fields of config.json; absent ones as in transformers."""
    stored = tree.get("vision_config") or {}
    return {**_VISION_DEFAULTS, **{name: v for name, v in stored.items() if v is not None}}


def text_config(tree: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the language model's fields of config.json; all fields for a class without a row."""
    layout = LAYOUTS.get(str(tree.get("model_type")))
    for key in () if layout is None else layout.text:
        tree = tree.get(key) or {}
    return tree
