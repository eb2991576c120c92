"""Architecture of a decoder: what its graph computes, as values.

``read_architecture`` fills the record from config.json for architectures with a row in the tables,
and from the class of transformers for those with a structure (``class_architecture``).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from compressor.errors import RequirementError
from compressor.graphs.decoder.limits import ACTIVATIONS, Activation, graph_problems
from compressor.models.families.transformers.decoder_settings import SLIDING, decoder_settings
from compressor.models.families.transformers.layouts import (
    LM_HEAD,
    DecoderShape,
    decoder_shape,
    is_tabulated,
    text_config,
)
from compressor.models.families.transformers.modules import build_on_meta

ATTENTION_CAP, LOGIT_CAP = "attn_logit_softcapping", "final_logit_softcapping"
"""Fields of config.json with the caps of attention scores and of logits."""


@dataclass(frozen=True, slots=True)
class Rotary:
    """Cosines and sines of rotary position embeddings, each [positions, width / 2]."""

    cos: Tensor
    sin: Tensor


@dataclass(frozen=True, slots=True)
class ImageTokens:
    """Placement of image embeddings in the sequence of a vision-language model."""

    token_id: int
    """The token that an image embedding replaces."""
    sections: tuple[int, ...]
    """Rotary frequencies of a head that follow the position in time, in height and in width."""


@dataclass(frozen=True, slots=True)
class Norm:
    """One norm over the last axis; weight and bias are those that the checkpoint has."""

    name: str
    """Module name, relative to the layer or to the decoder."""
    epsilon: float
    kind: Literal["rms", "layer"] = "rms"
    offset: float = 0.0
    """Value added to its weight."""


@dataclass(frozen=True, slots=True)
class Attention:
    """Linear layers and norms of the attention; names are relative to the layer."""

    projections: tuple[str, ...]
    """Query, key and value projections, or one that holds all three."""
    output: str
    by_group: bool = False
    """True if one projection holds the queries, the key and the value of each key head in turn;
    otherwise all queries come first, then all keys, then all values."""
    head_norms: tuple[Norm, ...] = ()
    """Norms of queries and of keys."""
    normalizes_whole: bool = False
    """True if these norms are over all heads together; otherwise over each head."""
    output_norm: Norm | None = None
    """Norm before the output projection."""


@dataclass(frozen=True, slots=True)
class FeedForward:
    """Linear layers of the feed-forward network; names are relative to the layer."""

    inputs: tuple[str, ...]
    """Gate and up projection, one matrix that holds both, or the up projection alone."""
    output: str
    width: int
    activation: Activation
    is_gated: bool = True
    activation_name: str = ""
    """Module of an activation with parameters."""
    output_norm: Norm | None = None
    """Norm before the output projection."""


@dataclass(frozen=True, slots=True)
class Layer:
    """Structure of a decoder layer, the same for all layers."""

    attention: Attention
    ffn: FeedForward
    pre_attention: Norm | None
    pre_ffn: Norm | None
    post_attention: Norm | None = None
    """Norm over the attention's result, before it is added to the residual stream."""
    post_ffn: Norm | None = None
    is_parallel: bool = False
    """True if attention and feed-forward network read the same residual stream. Without
    ``pre_ffn`` they read the same norm too."""


@dataclass(frozen=True, slots=True)
class DecoderSizes:
    """Dimensions of a decoder."""

    layers: int
    hidden: int
    heads: int
    key_heads: int
    head_width: int
    vocabulary: int
    tied: bool
    """True if the head shares the weight of the embedding."""


@dataclass(frozen=True, slots=True)
class Names:
    """Names of the modules outside of the layers."""

    root: str
    """The module that holds the others, except for the head."""
    embedding: str = "embed_tokens"
    layers: str = "layers"
    head: str = LM_HEAD


@dataclass(frozen=True, slots=True)
class LearnedPositions:
    """A table of learned position embeddings, added to those of the tokens."""

    name: str
    offset: int
    """Row of the first position."""


@dataclass(frozen=True, slots=True)
class Scales:
    """Factors of values on their way through the decoder, and caps c · tanh(x / c)."""

    attention: float
    embedding: float = 1.0
    residual: float = 1.0
    """Factor of what a block adds to the residual stream."""
    logits: float = 1.0
    attention_cap: float = 0.0
    """Cap of the attention scores; 0 for none."""
    logit_cap: float = 0.0


@dataclass(frozen=True, slots=True)
class DecoderArchitecture:
    """A decoder-only language model, with or without images."""

    decoder: DecoderSizes
    names: Names
    layer: Layer
    final_norm: Norm
    scales: Scales
    context: int
    """Positions that the graph attends to."""
    rotary: Mapping[str, Rotary]
    """Layer type to its tables."""
    rotary_in_pairs: bool
    """True if rotary embeddings rotate neighbouring values; otherwise value d and d + width / 2."""
    layer_types: tuple[str | None, ...]
    """Type of each layer: a key of ``rotary``; None for a layer without rotary embeddings."""
    windows: tuple[int | None, ...]
    """Tokens that each layer attends to, the current one included; None for all."""
    images: ImageTokens | None = None
    positions: LearnedPositions | None = None
    query_factors: Tensor | None = None
    """Factor of the queries at each position, [positions]; None where all are 1."""
    transposed: bool = False
    """True if matrices are stored as [inputs, outputs], as ``Conv1D`` does."""

    def rotary_width(self, layer: int) -> int:
        """Return how many values of a head, from the first one, a layer rotates by positions."""
        if self.images is not None:
            return 2 * sum(self.images.sections)
        layer_type = self.layer_types[layer]
        return 0 if layer_type is None else 2 * self.rotary[layer_type].cos.shape[1]


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
        from compressor.graphs.decoder.class_architecture import class_architecture

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
        layer=_tabulated_layer(shape, settings.epsilon, ACTIVATIONS[settings.activation]),
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


_INPUT_NORM = ("input_layernorm",)


def rotary_tables(
    module: Any, layer_type: str, positions: int, in_pairs: bool, head_width: int
) -> Rotary:
    """Return the tables of a layer type from the buffers of transformers' own module."""
    prefix = f"{layer_type}_" if hasattr(module, f"{layer_type}_inv_freq") else ""
    frequencies = getattr(module, f"{prefix}inv_freq").float()
    angles = torch.outer(torch.arange(positions).float(), frequencies)
    scaling = float(getattr(module, f"{prefix}attention_scaling"))
    cos, sin = angles.cos() * scaling, angles.sin() * scaling
    return padded_pairs(Rotary(cos, sin), head_width) if in_pairs else Rotary(cos, sin)


def padded_pairs(rotary: Rotary, head_width: int) -> Rotary:
    """Return tables of neighbours with a multiple of 8 pairs, which ONNX Runtime requires.

    An angle of 0 leaves the added pairs unchanged.
    """
    pairs = rotary.cos.shape[1]
    added = min(-pairs % 8, head_width // 2 - pairs)
    return Rotary(
        torch.nn.functional.pad(rotary.cos, (0, added), value=1.0),
        torch.nn.functional.pad(rotary.sin, (0, added)),
    )
