"""Architecture of a decoder: the numbers that its graph needs.

They are read from config.json; rotary frequencies from the buffers of transformers' own module.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from compressor.errors import RequirementError
from compressor.graphs.decoder.limits import ACTIVATIONS, Activation, graph_problems
from compressor.models.families.transformers.decoder_settings import SLIDING, decoder_settings
from compressor.models.families.transformers.layouts import DecoderShape, decoder_shape
from compressor.models.families.transformers.modules import build_on_meta


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
class DecoderArchitecture:
    """A decoder-only language model, with or without images."""

    decoder: DecoderShape
    root: str
    """The module with ``embed_tokens``, ``layers`` and ``norm``."""
    epsilon: float
    """Epsilon of the RMS norms."""
    activation: Activation
    attention_scale: float
    embedding_scale: float
    context: int
    """Positions that the graph attends to."""
    rotary: Mapping[str, Rotary]
    """Layer type to its tables."""
    layer_types: tuple[str, ...]
    """Type of each layer: a key of ``rotary``."""
    windows: tuple[int | None, ...]
    """Tokens that each layer attends to, the current one included; None for all."""
    images: ImageTokens | None

    @property
    def post_attention_norm(self) -> str | None:
        """Name of the norm over the attention's result; None if there is none."""
        return self._post_norm(0)

    @property
    def post_ffn_norm(self) -> str | None:
        """Name of the norm over the feed-forward network's result; None if there is none."""
        return self._post_norm(1)

    def rotary_width(self, layer: int) -> int:
        """Return how many values of a head, from the first one, a layer rotates by positions."""
        if self.images is not None:
            return 2 * sum(self.images.sections)
        return 2 * self.rotary[self.layer_types[layer]].cos.shape[1]

    def _post_norm(self, index: int) -> str | None:
        layout = self.decoder.layout
        pre_norms = {"input_layernorm", layout.ffn_norm}
        post_norms = [name for name in layout.norms if name not in pre_norms]
        return post_norms[index] if post_norms else None


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
    decoder, settings = decoder_shape(tree), decoder_settings(tree)
    layout, positions = decoder.layout, context or settings.positions
    rotary_module: Any = build_on_meta(tree).get_submodule(f"{layout.root}.rotary_emb")
    images = None
    if layout.vision is not None:
        images = ImageTokens(settings.image_token_id, settings.sections)
    return DecoderArchitecture(
        decoder=decoder,
        root=layout.root,
        epsilon=settings.epsilon,
        activation=ACTIVATIONS[settings.activation],
        attention_scale=settings.attention_scale,
        embedding_scale=decoder.hidden**0.5 if layout.scaled_embedding else 1.0,
        context=positions,
        rotary={
            layer_type: _rotary(rotary_module, layer_type, positions, decoder)
            for layer_type in settings.rotary
        },
        layer_types=settings.layer_types,
        windows=tuple(
            settings.window if name == SLIDING else None for name in settings.layer_types
        ),
        images=images,
    )


def _rotary(module: Any, layer_type: str, positions: int, decoder: DecoderShape) -> Rotary:
    prefix = f"{layer_type}_" if hasattr(module, f"{layer_type}_inv_freq") else ""
    frequencies = getattr(module, f"{prefix}inv_freq").float()
    angles = torch.outer(torch.arange(positions).float(), frequencies)
    scaling = float(getattr(module, f"{prefix}attention_scaling"))
    cos, sin = angles.cos() * scaling, angles.sin() * scaling
    if decoder.layout.rotary_in_pairs:
        # ONNX Runtime's operator requires a multiple of 8; an angle of 0 leaves a pair unchanged.
        pairs = cos.shape[1]
        added = min(-pairs % 8, decoder.head_width // 2 - pairs)
        cos = torch.nn.functional.pad(cos, (0, added), value=1.0)
        sin = torch.nn.functional.pad(sin, (0, added))
    return Rotary(cos, sin)
