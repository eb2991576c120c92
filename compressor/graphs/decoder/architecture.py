"""Architecture of a decoder: what its graph computes, as values.

``read_architecture`` fills the record from config.json for architectures with a row in the tables,
and ``class_architecture`` from the class of transformers for those with a structure.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from compressor.graphs.decoder.activations import Activation
from compressor.graphs.decoder.cache_bounds import CacheBound
from compressor.graphs.decoder.head_groups import HeadGroup, mixed_groups
from compressor.graphs.decoder.mixture import Experts, Router
from compressor.models.attention_patterns.record import LocalHeads
from compressor.models.families.transformers.layouts import (
    LM_HEAD,
)

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
    sinks: str | None = None
    """Tensor with a logit for each head that takes part in the softmax and has no value."""


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
class Mixture:
    """Feed-forward network that consists of experts; names are relative to the layer."""

    router: Router
    experts: Experts
    shared: FeedForward | None = None
    """Network that every token passes; its result is added."""
    shared_gate: str | None = None
    """Linear layer with one output, whose sigmoid is the factor of ``shared``."""


@dataclass(frozen=True, slots=True)
class Layer:
    """Structure of a decoder layer."""

    attention: Attention
    ffn: FeedForward | Mixture
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
    layers: tuple[Layer, ...]
    """Layers from the first to the last; they differ in ``ffn`` alone."""
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
    local_heads: tuple[LocalHeads | None, ...] = ()
    """Key heads of each layer that attend to some first tokens and a window alone; empty for a
    model without an attention pattern."""
    transposed: bool = False
    """True if matrices are stored as [inputs, outputs], as ``Conv1D`` does."""

    def rotary_width(self, layer: int) -> int:
        """Return how many values of a head, from the first one, a layer rotates by positions."""
        if self.images is not None:
            return 2 * sum(self.images.sections)
        layer_type = self.layer_types[layer]
        return 0 if layer_type is None else 2 * self.rotary[layer_type].cos.shape[1]

    def head_groups(self, layer: int) -> tuple[HeadGroup, ...]:
        """Return the groups of a layer's heads; one where all see the same positions."""
        local = self.local_heads[layer] if self.local_heads else None
        if local is not None:
            return mixed_groups(local, self.decoder.key_heads)
        window, bound = self.windows[layer], None
        if window is not None and CacheBound(window).rows < self.context:
            bound = CacheBound(window)
        return (HeadGroup(tuple(range(self.decoder.key_heads)), window, bound),)

    def cache_bounds(self) -> tuple[CacheBound, ...]:
        """Return the different bounds of the caches of all layers."""
        layers = range(self.decoder.layers)
        bounds = (group.bound for layer in layers for group in self.head_groups(layer))
        return tuple(dict.fromkeys(bound for bound in bounds if bound is not None))


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
