"""Architecture of a checkpoint's decoder, read from its config.json or from its class."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from compressor.errors import RequirementError
from compressor.graphs.decoder.activations import ACTIVATIONS, Activation
from compressor.graphs.decoder.architecture import (
    LOGIT_CAP,
    Attention,
    DecoderArchitecture,
    DecoderSizes,
    FeedForward,
    ImageTokens,
    Layer,
    Names,
    Norm,
    Scales,
    rotary_tables,
)
from compressor.graphs.decoder.class_architecture import class_architecture
from compressor.graphs.decoder.limits import graph_problems
from compressor.models.families.transformers.decoder_settings import SLIDING, decoder_settings
from compressor.models.families.transformers.layouts import (
    DecoderShape,
    decoder_shape,
    is_tabulated,
    text_config,
)
from compressor.models.families.transformers.modules import build_on_meta

_INPUT_NORM = ("input_layernorm",)


def read_architecture(tree: Mapping[str, Any], context: int | None) -> DecoderArchitecture:
    """Read the architecture of a checkpoint.

    Args:
        tree: config.json.
        context: positions that the graph attends to; None for the model's own.

    Raises:
        RequirementError: the decoder computes something that the graph cannot (the message names
            all of it), or ``context`` exceeds the model's own.
    """
    if problems := graph_problems(tree, context):
        raise RequirementError(
            "; ".join(problem.reason for problem in problems),
            remedy="; ".join(dict.fromkeys(problem.remedy for problem in problems)),
        )
    if not is_tabulated(tree):
        return class_architecture(tree, context)
    return _tabulated_architecture(tree, context)


def _tabulated_architecture(tree: Mapping[str, Any], context: int | None) -> DecoderArchitecture:
    shape, settings = decoder_shape(tree), decoder_settings(tree)
    layout, positions = shape.layout, context or settings.positions
    rotary_module: Any = build_on_meta(tree).get_submodule(f"{layout.root}.rotary_emb")
    caps = {name: float(text_config(tree)[name]) for name in settings.softcaps}
    images = None
    if layout.vision is not None:
        images = ImageTokens(settings.image_token_id, settings.sections)
    return DecoderArchitecture(
        decoder=DecoderSizes(
            shape.layers,
            shape.hidden,
            shape.heads,
            shape.key_heads,
            shape.head_width,
            shape.vocabulary,
            shape.tied,
        ),
        names=Names(layout.root),
        layers=(_tabulated_layer(shape, settings.epsilon, ACTIVATIONS[settings.activation]),)
        * shape.layers,
        final_norm=Norm("norm", settings.epsilon, offset=layout.norm_offset),
        scales=Scales(
            settings.attention_scale,
            shape.hidden**0.5 if layout.scaled_embedding else 1.0,
            # The class of Gemma 3 reads the cap of attention scores and does not use it.
            logit_cap=caps.get(LOGIT_CAP, 0.0),
        ),
        context=positions,
        rotary={
            layer_type: rotary_tables(
                rotary_module, layer_type, positions, layout.rotary_in_pairs, shape.head_width
            )
            for layer_type in settings.rotary
        },
        rotary_in_pairs=layout.rotary_in_pairs,
        layer_types=settings.layer_types,
        windows=tuple(
            settings.window if name == SLIDING else None for name in settings.layer_types
        ),
        images=images,
    )


def _tabulated_layer(shape: DecoderShape, epsilon: float, activation: Activation) -> Layer:
    layout = shape.layout

    def norm(name: str) -> Norm:
        return Norm(name, epsilon, offset=layout.norm_offset)

    post_norms = [
        norm(name) for name in layout.norms if name not in {*_INPUT_NORM, layout.ffn_norm}
    ]
    gate_up = ("gate_up_proj",) if layout.fused_ffn else ("gate_proj", "up_proj")
    return Layer(
        attention=Attention(
            tuple(f"self_attn.{part}_proj" for part in "qkv"),
            "self_attn.o_proj",
            head_norms=tuple(norm(f"self_attn.{name}") for name in layout.head_norms),
        ),
        ffn=FeedForward(
            tuple(f"mlp.{name}" for name in gate_up), "mlp.down_proj", shape.ffn, activation
        ),
        pre_attention=norm(*_INPUT_NORM),
        pre_ffn=norm(layout.ffn_norm),
        post_attention=post_norms[0] if post_norms else None,
        post_ffn=post_norms[1] if post_norms else None,
    )
